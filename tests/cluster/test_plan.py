"""What is said of clusters that cannot be started, before anything is."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.cluster.plan import check, check_shared_memory, logical_cpus, read_plan
from headrace.errors import CannotListen, HeadraceError, InvalidCluster
from headrace.machine import usable_cpus
from tests.cluster.clusters import headrace

# Ray's own, when its schemas are imported.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "configs/cluster").glob("*.yaml"))


def write(tmp_path: Path, application: dict[str, Any], **rest: object) -> Path:
    file = tmp_path / "cluster.yaml"
    content = {"applications": [{"import_path": "headrace.cluster.app:app", **application}], **rest}
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_the_examples_can_be_read(file: Path, repository: Path) -> None:
    assert read_plan(file, repository, None, None).config.repository == repository


def test_options_alone_are_a_plan(repository: Path) -> None:
    plan = read_plan(None, repository, "127.0.0.1:0", 2)
    assert (plan.config.repository, plan.config.grpc, plan.replicas) == (repository, "127.0.0.1:0", 2)
    assert logical_cpus(plan) == 4  # each has room for its successor


def test_options_win_over_the_file(tmp_path: Path, repository: Path) -> None:
    file = write(tmp_path, {"args": {"repository": "/elsewhere"}, "deployments": [{"name": "Headrace", "num_replicas": 3}]})
    plan = read_plan(file, repository, None, 1)
    assert (plan.config.repository, plan.replicas) == (repository, 1)


@pytest.mark.parametrize(
    ("application", "told"),
    [
        ({"arg": {}}, "key 'arg' in applications[0] is unknown; did you mean 'args'?"),
        ({"args": {"repositry": "/x"}}, "key 'repositry' in args is unknown; did you mean 'repository'?"),
        ({"args": {"server": {"drain_grce": 1}}}, "key 'drain_grce' in args.server is unknown"),
        ({"args": {"server": {"http": "127.0.0.1:8000"}}}, "'http' is decided by the cluster: REST is not balanced"),
        ({"args": {"server": {"allow_client_shm": True}}}, "means nothing behind a balancer"),
        ({"args": {"repository": "models"}}, "expected an absolute path"),
        ({"args": {"hung_seconds": 0}}, "args.hung_seconds is 0"),
        ({"deployments": [{"name": "Headrace", "num_replica": 2}]}, "did you mean 'num_replicas'?"),
        ({"deployments": [{"name": "Replica"}]}, "there is no deployment 'Replica'"),
        ({"deployments": [{"name": "Headrace", "num_replicas": 0}]}, "num_replicas"),
        ({"deployments": [{"name": "Headrace", "user_config": {"model": ["m"]}}]}, "key 'model' in user_config is unknown"),
        ({"deployments": [{"name": "Headrace", "ray_actor_options": {"num_cpu": 1}}]}, "did you mean 'num_cpus'?"),
        ({"import_path": "other.app:app"}, "has 0 applications with import_path headrace.cluster.app:app"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, repository: Path, application: dict[str, Any], told: str) -> None:
    given = repository if "repository" not in application.get("args", {}) else None
    with pytest.raises(InvalidCluster) as raised:
        read_plan(write(tmp_path, application), given, None, None)
    assert told in raised.value.message
    assert str(tmp_path / "cluster.yaml") in raised.value.message


def test_unknown_keys_beside_the_applications(tmp_path: Path, repository: Path) -> None:
    with pytest.raises(InvalidCluster, match="key 'proxy_locations' in the file is unknown; did you mean 'proxy_location'"):
        read_plan(write(tmp_path, {}, proxy_locations="Disabled"), repository, None, None)


def refused(tmp_path: Path, application: dict[str, Any], repository: Path) -> str:
    application["args"] = {"grpc": "127.0.0.1:0", **application.get("args", {})}
    with pytest.raises(HeadraceError) as raised:
        check(read_plan(write(tmp_path, application), repository, None, None))
    return raised.value.message


def test_more_than_the_machine_has(tmp_path: Path, repository: Path) -> None:
    deployment: dict[str, Any] = {"name": "Headrace", "num_replicas": 2, "ray_actor_options": {"num_cpus": usable_cpus()}}
    told = refused(tmp_path, {"deployments": [deployment]}, repository)
    assert told.startswith(
        f"2 replicas with {usable_cpus()} CPUs each need {2 * usable_cpus()}, and this machine has {usable_cpus()}"
    )
    deployment["ray_actor_options"] = {"num_cpus": 0, "num_gpus": 99}
    assert "2 replicas with 99 GPUs each need 198" in refused(tmp_path, {"deployments": [deployment]}, repository)


def test_replicas_without_a_balancer_have_one_address(tmp_path: Path, repository: Path) -> None:
    application = {"args": {"balancer": False}, "deployments": [{"name": "Headrace", "num_replicas": 2}]}
    assert "need the balancer: all of them would listen on 127.0.0.1:0" in refused(tmp_path, application, repository)


def test_a_repository_that_is_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path, {}, tmp_path / "no") == f"there is no repository {tmp_path / 'no'} on this node"


def test_an_address_that_is_taken(tmp_path: Path, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert (
            refused(tmp_path, {"args": {"grpc": address}}, repository) == CannotListen(address, "Address already in use").message
        )


def test_too_little_shared_memory(tmp_path: Path) -> None:
    check_shared_memory(tmp_path, needed=1)
    with pytest.raises(InvalidCluster, match=rf"{tmp_path} has \d+ MiB left and Ray needs 1099511627776: .*--shm-size=256m"):
        check_shared_memory(tmp_path, needed=1 << 60)


def test_nothing_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_RUNTIME_DIR", str(tmp_path))
    done = headrace("down")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("headrace: nothing was started by headrace up")


def test_up_wants_to_be_told_what(tmp_path: Path) -> None:
    done = headrace("up", "--repository", tmp_path)
    assert done.returncode == 2
    assert "say --cluster; a single server is started by headrace serve" in done.stderr
