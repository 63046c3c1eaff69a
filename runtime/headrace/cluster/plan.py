"""What `headrace up` is to start: a Serve YAML, or the one that its options make, checked before anything starts."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from headrace.backends.installed import usable_gpus
from headrace.cluster.settings import ClusterConfig, Holding
from headrace.config import read_yaml
from headrace.errors import InvalidCluster
from headrace.machine import usable_cpus
from headrace.models.repository import Repository
from headrace.transport.listening import listen

IMPORT_PATH, DEPLOYMENT = "headrace.cluster.app:app", "Headrace"
OBJECT_STORE_BYTES = 80_000_000
"""What Ray keeps objects in; requests do not go through it. It takes no less than 75 MB."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A cluster of one box that can be started.

    Attributes:
        schema: what Serve is told, as in a file for `serve deploy`.
        app: the name of the application.
        config: its arguments.
        replicas: how many there are to be.
        cpus, gpus: what each asks for.
    """

    schema: Mapping[str, Any]
    app: str
    config: ClusterConfig
    replicas: int
    cpus: float
    gpus: float


def read_plan(file: Path | None, repository: Path | None, grpc: str | None, replicas: int | None) -> Plan:
    """The plan in a Serve YAML, over which options win; without a file, the one that they make.

    Raises:
        InvalidCluster: it cannot be carried out, and the message says what to change.
        InvalidRepository: the file is no YAML.
    """
    content: dict[str, Any] = read_yaml(file) if file is not None else {"proxy_location": "Disabled", "applications": [_bare()]}
    _check_keys(file, content)
    ours = [each for each in content["applications"] if each.get("import_path") == IMPORT_PATH]
    if len(ours) != 1:
        raise InvalidCluster(f"{_named(file)} has {len(ours)} applications with import_path {IMPORT_PATH}; there has to be one")
    (application,) = ours
    args = application.setdefault("args", {})
    args |= {"repository": str(repository.absolute())} if repository is not None else {}
    args |= {"grpc": grpc} if grpc is not None else {}
    if "repository" not in args:
        raise InvalidCluster("give --repository DIR, or `repository` in the args of the application")
    deployment = _deployment(file, application)
    if replicas is not None:
        deployment["num_replicas"] = replicas
    options = deployment.get("ray_actor_options") or {}
    plan = Plan(
        content,
        application.get("name", "default"),
        _validated(file, ClusterConfig, args, "args"),
        _most_replicas(deployment),
        float(options.get("num_cpus", 1)),
        float(options.get("num_gpus", 0)),
    )
    _validated(file, Holding, deployment.get("user_config") or {}, "user_config")
    return plan


def check(plan: Plan, *, is_new: bool = True) -> None:
    """Whether this machine can carry a plan out: for a cluster that is new, or for the one that runs here.

    Raises:
        InvalidCluster: it lacks cores, GPUs, or shared memory; or replicas without a balancer would be in each other's way.
        InvalidRepository: there is no such repository here.
        CannotListen: the address of the balancer is taken.
    """
    if not plan.config.repository.is_dir():
        raise InvalidCluster(f"there is no repository {plan.config.repository} on this node")
    Repository(plan.config.repository).names()
    if not plan.config.balancer and plan.replicas > 1:
        raise InvalidCluster(
            f"{plan.replicas} replicas on one node need the balancer: all of them would listen on {plan.config.grpc}"
        )
    _check_room("CPUs", plan.replicas, plan.cpus, usable_cpus(), "ray_actor_options.num_cpus")
    _check_room("GPUs", plan.replicas, plan.gpus, usable_gpus(), "ray_actor_options.num_gpus")
    if is_new:
        check_shared_memory()
        listen(plan.config.grpc).close()


def check_shared_memory(path: Path = Path("/dev/shm"), needed: int = OBJECT_STORE_BYTES) -> None:
    """Whether there is room for Ray's object store; without, Ray would use the disk, and say so where nobody looks.

    Raises:
        InvalidCluster: there is not.
    """
    told = os.statvfs(path)
    free = told.f_bavail * told.f_frsize
    if free < needed:
        raise InvalidCluster(
            f"{path} has {free / 2**20:.0f} MiB left and Ray needs {needed / 2**20:.0f}: make it larger (docker run "
            "--shm-size=256m; in Kubernetes, an emptyDir of medium Memory there)"
        )


def _bare() -> dict[str, Any]:
    return {"name": "headrace", "route_prefix": None, "import_path": IMPORT_PATH}


def _deployment(file: Path | None, application: dict[str, Any]) -> dict[str, Any]:
    deployments: list[dict[str, Any]] = application.setdefault("deployments", [])
    if not deployments:
        deployments.append({"name": DEPLOYMENT})
    for deployment in deployments:
        if deployment.get("name") != DEPLOYMENT:
            raise InvalidCluster(f"{_named(file)}: there is no deployment '{deployment.get('name')}', there is {DEPLOYMENT}")
    return deployments[0]


def _most_replicas(deployment: Mapping[str, Any]) -> int:
    scaling = deployment.get("autoscaling_config")
    if isinstance(scaling, Mapping):
        return int(scaling.get("max_replicas", 1))
    replicas = deployment.get("num_replicas", 1)
    if not isinstance(replicas, int) or replicas < 1:
        raise InvalidCluster(f"num_replicas is {replicas!r}: give a number above 0, or an autoscaling_config")
    return replicas


def _check_room(what: str, replicas: int, each: float, there: int, key: str) -> None:
    if replicas * each > there:
        raise InvalidCluster(
            f"{replicas} replicas with {each:g} {what} each need {replicas * each:g}, and this machine has {there}: start fewer, "
            f"or give each a smaller share ({key})"
        )


def _named(file: Path | None) -> str:
    return str(file) if file is not None else "the options"


def _validated(file: Path | None, model: type[BaseModel], content: object, place: str) -> Any:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = [_problem(model, place, dict(detail)) for detail in error.errors()]
        raise InvalidCluster(f"{_named(file)}: {'; '.join(problems)}") from None


def _problem(model: type[BaseModel], place: str, detail: Mapping[str, Any]) -> str:
    where = [place, *map(str, detail["loc"])]
    if detail["type"] == "extra_forbidden":
        return _unknown(".".join(where[:-1]), where[-1], model)
    message = str(detail["msg"])
    return f"{'.'.join(where)} is {detail['input']!r}: {message[:1].lower()}{message[1:]}"


def _unknown(place: str, key: str, model: type[BaseModel]) -> str:
    close = difflib.get_close_matches(key, model.model_fields, n=1)
    return f"key '{key}' in {place} is unknown" + (f"; did you mean '{close[0]}'?" if close else "")


def _check_keys(file: Path | None, content: Mapping[str, Any]) -> None:
    """Serve leaves keys aside that it does not know, and so what they were meant to say.

    Raises:
        InvalidCluster: there is one, or what Serve requires is missing.
    """
    from ray.serve.schema import ServeDeploySchema

    problems = list(_unknown_keys(ServeDeploySchema, content, "the file"))
    if problems:
        raise InvalidCluster(f"{_named(file)}: {'; '.join(problems)}")
    _validated(file, ServeDeploySchema, content, "the file")


def _unknown_keys(model: type[BaseModel], content: Mapping[str, Any], place: str) -> Iterator[str]:
    for key, value in content.items():
        field = model.model_fields.get(key)
        if field is None:
            yield _unknown(place, key, model)
            continue
        inner = _model_of(field.annotation)
        if inner is None:
            continue
        for number, each in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(each, Mapping):
                yield from _unknown_keys(inner, each, f"{key}[{number}]" if isinstance(value, list) else key)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `list[Model] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = [_model_of(each) for each in getattr(annotation, "__args__", ())]
    return next((model for model in models if model is not None), None)


def logical_cpus(plan: Plan) -> int:
    """How many CPUs Ray is told there are: room for a new replica beside each old one while they are replaced."""
    return max(1, math.ceil(2 * plan.replicas * plan.cpus))
