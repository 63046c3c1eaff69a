"""A cluster of one box: Ray, as slim as it goes, and the application on it; and the end of exactly what was started.

What is started has its files in one directory, which is noted in a file before anything starts: who ends the cluster later knows
from there which processes are ours. Another Ray on the machine is left alone.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace.cluster.directory import ReplicaState, View
from headrace.cluster.plan import OBJECT_STORE_BYTES, Plan, logical_cpus
from headrace.cluster.processes import MARK, end, processes_of
from headrace.errors import ClusterFailed, InvalidCluster, sentence
from headrace.files import replace_file
from headrace.ledger.home import roots

HOST = "127.0.0.1"
_RAY = "ray"
"""In the directory of a cluster, what Ray lets everybody write to."""
_RAY_UP_SECONDS = 120
_TRIES = 3
_APP_UP_SECONDS = 300
_LOOK_SECONDS = 0.2
_SETTLED_SECONDS = 10.0
_DRAIN_SECONDS = 90.0
_END_SECONDS = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that this user started on this machine.

    Attributes:
        directory: of all its files, for its user alone; its processes are found by it.
        app: the name of the application.
    """

    directory: str
    app: str

    @property
    def ray_address(self) -> str:
        """Where Ray is; empty while it is not."""
        with suppress(OSError):
            return (Path(self.directory) / _RAY / "ray_current_cluster").read_text().strip()
        return ""

    @property
    def token_file(self) -> Path:
        """For `RAY_AUTH_TOKEN_PATH`, of those who want to talk to its Ray."""
        return Path(self.directory) / "token"

    @property
    def token(self) -> str:
        """What its Ray lets in.

        Raises:
            InvalidCluster: its files are gone.
        """
        try:
            return self.token_file.read_text()
        except OSError as error:
            raise InvalidCluster(f"the files of the cluster are gone ({error}); end its processes yourself") from None


def record() -> Path:
    """The file that says which cluster was started."""
    root = next((root for root in roots() if root.is_dir()), Path(tempfile.gettempdir()))
    return root / f"headrace-cluster-{os.getuid()}.json"


def started() -> Cluster | None:
    """The cluster that was started and not ended; it may have died."""
    try:
        return Cluster(**json.loads(record().read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def start(plan: Plan, token: str, say: Say) -> Cluster:
    """Start Ray and deploy the application; returns when it serves. What does not come up is ended again.

    Args:
        plan: what to start. It is checked.
        token: of its Ray, into which this process has been let.
        say: is told how far it has come, a line each time.

    Raises:
        ClusterFailed: it did not come up, and the message says why.
    """
    cluster = Cluster(tempfile.mkdtemp(prefix="headrace-"), plan.app)
    try:
        cluster.token_file.write_text(token)
        replace_file(record(), json.dumps(asdict(cluster)).encode())
        _start_ray(cluster, plan, say)
        deploy(cluster, plan, say)
    except BaseException:
        stop(cluster, say, gently=False)
        raise
    return cluster


def is_alive(cluster: Cluster) -> bool:
    """Whether its Ray runs."""
    return any(b"gcs_server" in process.command for process in processes_of(Path(cluster.directory)))


def stop(cluster: Cluster, say: Say, *, gently: bool = True) -> None:
    """End a cluster: its application, so that requests under way are answered, then every process of it."""
    directory = Path(cluster.directory)
    if gently and is_alive(cluster):
        say("draining")
        with suppress(ClusterFailed):
            _shut_down(cluster)
    ended = end(directory, _END_SECONDS)
    say(f"{ended} processes ended")
    shutil.rmtree(directory, ignore_errors=True)
    record().unlink(missing_ok=True)


def let_in(token: str) -> None:
    """Let this process, and those that it starts, into the Ray whose token this is. Before anything imports Ray.

    What is set for another Ray does not count any more.
    """
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "RAY_NAMESPACE"):
        os.environ.pop(name, None)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, RAY_USAGE_STATS_ENABLED="0")


def _start_ray(cluster: Cluster, plan: Plan, say: Say) -> None:
    say(f"starting Ray in {cluster.directory}")
    # Another Ray on this machine has the ports that it takes by itself.
    options: dict[str, object] = {
        "port": 0,
        "dashboard-agent-listen-port": 0,
        "num-cpus": logical_cpus(plan),
        "object-store-memory": OBJECT_STORE_BYTES,
        "include-dashboard": False,
        "include-log-monitor": False,
        "temp-dir": f"{cluster.directory}/{_RAY}",
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--no-monitor", "--disable-usage-stats", *words]
    for left in reversed(range(_TRIES)):
        told = _run_ray(command, cluster)
        if cluster.ray_address:
            return
        if not left:
            raise ClusterFailed(f"Ray did not start: {told}")
        # Its own patience with itself is half a minute, which is not enough where there is much else to do.
        say(f"once more: {told}")
        end(Path(cluster.directory), _END_SECONDS)


def _run_ray(command: Sequence[str], cluster: Cluster) -> str:
    """Start Ray's processes, which stay; the last it said."""
    log = Path(cluster.directory) / "start.log"
    with log.open("wb") as output:
        try:
            subprocess.run(
                command,
                env={**os.environ, "RAY_START_HOOK": "headrace.cluster.slim.slim", MARK: cluster.directory},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=_RAY_UP_SECONDS,
                start_new_session=True,  # Ctrl-C is ours
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it has not come up within {_RAY_UP_SECONDS} s"
    return _last_line(log.read_text(errors="replace"))


def deploy(cluster: Cluster, plan: Plan, say: Say) -> None:
    """Bring a cluster that runs to what a plan says; returns when it serves.

    Raises:
        ClusterFailed: it did not come to it, and the message says why. What served before goes on.
    """
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    _connect(cluster)
    say("deploying")
    schema = ServeDeploySchema.model_validate(_schema(cluster, plan))
    # As `serve run` does it. The public way to deploy a file needs Ray's dashboard.
    serve.start(
        proxy_location=schema.proxy_location,
        http_options=schema.http_options.model_dump(),
        grpc_options=schema.grpc_options.model_dump(),
        logging_config=schema.logging_config,
        tracing_config=schema.tracing_config,
    )
    client: Any = _get_global_client()
    client.deploy_apps(schema)
    until, told = time.monotonic() + _APP_UP_SECONDS, ""
    while True:
        status = serve.status().applications.get(plan.app)
        if status is not None and status.status == "RUNNING":
            return
        if status is not None and status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            why = "\n".join([status.message, *(deployment.message for deployment in status.deployments.values())])
            raise ClusterFailed(f"the application did not come up: {_reason(why)}")
        states = [deployment.replica_states for deployment in status.deployments.values()] if status is not None else []
        line = ", ".join(f"{count} {state.lower()}" for each in states for state, count in sorted(each.items()))
        if line and line != told:
            say(f"replicas: {line}")
            told = line
        if time.monotonic() > until:
            raise ClusterFailed(f"the application has not come up within {_APP_UP_SECONDS} s: {told or 'no replica yet'}")
        time.sleep(_LOOK_SECONDS)


def settled(app: str) -> View:
    """The directory of an application that has come up, once its balancers have found its replicas; after a while, as it is."""
    from headrace.cluster.actors import RayDirectory

    with closing(RayDirectory(app, "up")) as directory:
        view, until = directory.view(), time.monotonic() + _SETTLED_SECONDS
        while not view.is_settled and (left := until - time.monotonic()) > 0:
            view = directory.changed(view.token, left)
    return view


def addresses(cluster: Cluster) -> tuple[list[str], int]:
    """Where clients reach it, and how many replicas are ready. This process has deployed it."""
    view = settled(cluster.app)
    ready = [replica.address for replica in view.replicas.values() if replica.state is ReplicaState.READY]
    return [balancer.address for balancer in view.balancers.values()] or ready, len(ready)


def _schema(cluster: Cluster, plan: Plan) -> dict[str, Any]:
    """What Serve is told: the balancer's files are among those of this cluster, and only this machine reaches its replicas."""
    content = copy.deepcopy(dict(plan.schema))
    for application in content["applications"]:
        if application.get("name", "default") == plan.app:
            application["args"] = {"host": HOST, "run_directory": f"{cluster.directory}/balancers", **application["args"]}
    return content


def _connect(cluster: Cluster) -> None:
    import ray
    from ray.exceptions import RayError

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        ray.init(
            address=cluster.ray_address,
            namespace="serve",
            configure_logging=False,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, RayError) as error:
        raise ClusterFailed(f"Ray at {cluster.ray_address} does not answer: {sentence(error)}") from None


def _shut_down(cluster: Cluster) -> None:
    """Have Serve drain and end its replicas. What hangs is not waited for: everything is ended after it."""
    from ray import serve

    _connect(cluster)
    waiting = threading.Thread(target=serve.shutdown, daemon=True)
    waiting.start()
    waiting.join(_DRAIN_SECONDS)


def _reason(told: str) -> str:
    """Of what Serve says of a deployment, the sentence that was raised first: it has whole tracebacks."""
    found = re.findall(r"^headrace\.errors\.\w+: (.*)$", told, re.MULTILINE)
    return found[0] if found else _last_line(told)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it does not say why"
