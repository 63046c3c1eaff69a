"""Clusters on real Ray, as people start them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
import yaml

from headrace.cluster import launch
from headrace.cluster.processes import MARK, Process, end, processes_of
from tests.cluster.plain import Load, executions
from tools.ports import free_port

HEADRACE = [sys.executable, "-m", "headrace"]
UP_SECONDS = 400
PAUSE = 0.02
"""Of clients of a cluster on Ray, which needs the machine, too."""


@dataclass(frozen=True)
class Up:
    """A cluster that runs: where clients come, and how it was started."""

    grpc: str
    cluster: launch.Cluster
    options: tuple[str, ...]

    @property
    def processes(self) -> list[Process]:
        return processes_of(Path(self.cluster.directory))

    def pids(self, title: str) -> list[int]:
        """The processes whose title begins so: `ray::ServeReplica:`, `ray::ServeController`, `raylet`."""
        return [each.pid for each in self.processes if title.encode() in each.command.replace(b"\0", b" ")]

    @property
    def replicas(self) -> list[int]:
        return sorted(self.pids("ray::ServeReplica:"))

    def load(self) -> Load:
        """Clients at the balancer."""
        return Load(self.grpc, pause=PAUSE)

    def again(self, *options: str | Path) -> subprocess.CompletedProcess[str]:
        """`headrace up` once more, with other options."""
        return headrace("up", "--cluster", *(options or self.options))


SERVE_HTTP, SERVE_GRPC = free_port(), free_port()
"""Of Serve's own proxy."""


def write_config(
    place: Path,
    replicas: int = 2,
    drain_seconds: float = 20,
    args: Mapping[str, object] = {},
    deployment: Mapping[str, object] = {},
    **user_config: object,
) -> Path:
    """A Serve YAML for the repository `models` in `place`."""
    server = {"probe": False, "drain_seconds": drain_seconds}
    application = {
        "name": "headrace",
        "route_prefix": "/",  # without it, Serve's proxies do not know it
        "import_path": "headrace.cluster.app:app",
        "args": {"repository": str(place / "models"), "grpc": "127.0.0.1:0", "hung_seconds": 3, "server": server, **args},
        "deployments": [
            {
                "name": "Headrace",
                "num_replicas": replicas,
                "ray_actor_options": {"num_cpus": 0.5},
                "user_config": {"models": ["*"], **user_config},
                **deployment,
            }
        ],
    }
    content = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": SERVE_HTTP},
        "grpc_options": {"port": SERVE_GRPC, "grpc_servicer_functions": ["headrace.cluster.calls.add_v2_to_server"]},
        "applications": [application],
    }
    file = place / "cluster.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def headrace(*words: str | Path, seconds: float = UP_SECONDS, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*HEADRACE, *map(str, words)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=seconds, check=False
    )


@contextmanager
def up(*options: str | Path) -> Iterator[Up]:
    words = tuple(map(str, options))
    try:
        # What is set for another Ray is not meant for ours.
        done = headrace("up", "--cluster", *words, RAY_ADDRESS="192.0.2.1:6379", RAY_AUTH_TOKEN_PATH="/no/such/token")
        assert done.returncode == 0, done.stderr
        told = dict(word.split("=") for word in done.stdout.split()[1:])
        cluster = launch.started()
        assert cluster is not None
        yield Up(told["grpc"], cluster, words)
    finally:
        headrace("down")


@contextmanager
def ray_started(*words: str, cpus: int = 1, **environment: str) -> Iterator[Path]:
    """Processes of Ray that `headrace up` has not started, with a mark by which they are ended; the directory of their files."""
    with tempfile.TemporaryDirectory(prefix="foreign-", ignore_cleanup_errors=True) as directory:
        own = [f"--temp-dir={directory}", f"--num-cpus={cpus}", "--object-store-memory=80000000", "--disable-usage-stats"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words, *own]
        marked = {**os.environ, **environment, MARK: directory}
        try:
            subprocess.run(command, env=marked, check=True, capture_output=True, timeout=300)
            yield Path(directory)
        finally:
            end(Path(directory), 5)


@contextmanager
def driver(*, cpus: int, **environment: str) -> Iterator[Any]:
    """This process as a driver of a slim Ray, with these variables; what is imported as `ray`."""
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, **environment}
    slim = ("--head", "--port=0", "--dashboard-agent-listen-port=0", "--include-dashboard=False", "--no-monitor")
    with pytest.MonkeyPatch.context() as patch, ray_started(*slim, cpus=cpus, **variables) as directory:
        for name, value in variables.items():
            patch.setenv(name, value)
        import ray
        from ray._private.authentication_test_utils import reset_auth_token_state

        reset_auth_token_state()  # another test may have imported Ray before the variables were there
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(address=address_of(directory), log_to_driver=False, configure_logging=False)
        yield ray
        ray.shutdown()
        signal.signal(signal.SIGTERM, handler)


def address_of(directory: Path) -> str:
    """Of the Ray whose files are there."""
    return (directory / "ray_current_cluster").read_text().strip()


def index(address: str) -> dict[tuple[str, str], tuple[str, str]]:
    with triton.InferenceServerClient(address) as client:
        told = client.get_model_repository_index().models
    return {(model.name, model.version): (model.state, model.reason) for model in told}


def processes(load: Load, log: Path) -> Counter[int]:
    """How many of the answers came from which process, so far."""
    answered = [number for number, outcome in load.outcomes.copy().items() if outcome == "answered"]
    ran = executions(log)
    return Counter(ran[number][0] for number in answered)


def check(load: Load, log: Path, *, lost: int = 0) -> None:
    """Every answer was right and ran once, nothing ran twice, and at most `lost` requests failed, as in a killed process."""
    ran = executions(log)
    assert {number: ran[number] for number in load.outcomes if len(ran.get(number, ())) > 1} == {}
    assert [number for number, outcome in load.outcomes.items() if outcome == "answered" and number not in ran] == []
    assert set(load.codes) <= {"answered", "UNAVAILABLE", "DEADLINE_EXCEEDED"}, load.codes
    assert load.codes.total() - load.codes["answered"] <= lost, load.codes
