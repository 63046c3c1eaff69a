"""Ray's own commands, `serve deploy` and `serve run`, and `headrace up`, where there is a Ray already."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.cluster import launch
from headrace.cluster.processes import processes_of
from tests.cluster.clusters import PAUSE, check, headrace, index, processes, ray_started, up, write_config
from tests.cluster.plain import Load, add_logged_model
from tests.waiting import until
from tools.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PRODUCTION = Path(__file__).parents[2] / "configs/cluster/production.yaml"
VARIABLES = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
ENVIRONMENT = {**os.environ, **VARIABLES}
SERVE = Path(sys.executable).with_name("serve")
RUNNING_SECONDS = 200


@dataclass(frozen=True)
class Ray:
    """A Ray with a dashboard, which `serve deploy` talks to."""

    directory: Path
    dashboard: str

    @property
    def address(self) -> str:
        return (self.directory / "ray_current_cluster").read_text().strip()

    def serve(self, command: str, *words: str | Path) -> str:
        """What a command of Ray's says."""
        command_line = [SERVE, command, "--address", self.dashboard, *words]
        done = subprocess.run(command_line, env=ENVIRONMENT, capture_output=True, text=True, timeout=RUNNING_SECONDS, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def wait_running(self) -> None:
        def is_running() -> bool:
            applications = yaml.safe_load(self.serve("status"))["applications"]
            told = {name: (each["status"], each["message"]) for name, each in applications.items()}
            assert not [each for each in told.values() if each[0] == "DEPLOY_FAILED"], told
            return {status for status, _ in told.values()} == {"RUNNING"}

        until(is_running, RUNNING_SECONDS)

    @property
    def daemons(self) -> set[int]:
        """GCS and raylet; workers come and go."""
        programs = (b"gcs_server", b"raylet")
        return {process.pid for process in processes_of(self.directory) if process.command.split(b"\0")[0].endswith(programs)}

    def replicas(self, app: str) -> set[int]:
        title = f"ray::ServeReplica:{app}:".encode()
        return {process.pid for process in processes_of(self.directory) if process.command.startswith(title)}


@pytest.fixture(scope="module")
def ray() -> Iterator[Ray]:
    port = free_port()
    options = (
        "--head",
        "--port=0",
        f"--dashboard-port={port}",
        "--dashboard-agent-listen-port=0",
        "--no-monitor",
        f"--ray-client-server-port={free_port()}",
    )
    with ray_started(*options, cpus=4, **VARIABLES) as directory:
        yield Ray(directory, f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("serve")
    add_logged_model(place / "models", "m", place / "log")
    return place


def small(place: Path) -> dict[str, Any]:
    """`production.yaml` for this machine."""
    content: dict[str, Any] = yaml.safe_load(PRODUCTION.read_text())
    content["http_options"] = {"host": "127.0.0.1", "port": free_port()}
    content["grpc_options"]["port"] = free_port()
    (application,) = content["applications"]
    args = application["args"]
    args |= {"repository": str(place / "models"), "grpc": f"127.0.0.1:{free_port()}", "run_directory": str(place / "balancer")}
    args["server"] |= {"probe": False, "drain_seconds": 10}
    application["deployments"][0] |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.5}}
    return content


def write(place: Path, content: dict[str, Any]) -> Path:
    file = place / "serve.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_deploy_a_file_and_what_has_changed_in_it(ray: Ray, place: Path) -> None:
    content = small(place)
    (balanced,) = content["applications"]
    alone = copy.deepcopy(balanced) | {"name": "alone", "route_prefix": "/alone"}
    alone["args"] |= {"balancer": False, "grpc": f"127.0.0.1:{free_port()}"}
    alone["deployments"] = [{"name": "Headrace", "ray_actor_options": {"num_cpus": 0.5}}]
    content["applications"].append(alone)
    ray.serve("deploy", write(place, content))
    ray.wait_running()
    before, (first,) = ray.replicas("headrace"), ray.replicas("alone")
    assert len(before) == 2
    with Load(balanced["args"]["grpc"]) as load, Load(alone["args"]["grpc"]) as direct:
        load.wait_for(200)
        direct.wait_for(200)
    assert set(processes(load, place / "log")) == before
    assert set(processes(direct, place / "log")) == {first}

    shutil.copytree(place / "models/m", place / "models/n")
    balanced["deployments"][0]["user_config"]["revision"] = "2"
    alone["args"]["server"]["drain_seconds"] = 9
    with Load(balanced["args"]["grpc"], pause=PAUSE) as load:
        ray.serve("deploy", write(place, content))
        until(lambda: ("n", "1") in index(balanced["args"]["grpc"]), RUNNING_SECONDS)
        until(lambda: first not in ray.replicas("alone"), RUNNING_SECONDS)
        ray.wait_running()
        load.wait_for(200)
    check(load, place / "log")
    assert ray.replicas("headrace") == before  # reconfigured
    (second,) = ray.replicas("alone")  # which waited for the address
    with Load(alone["args"]["grpc"]) as direct:
        direct.wait_for(200)
    assert set(processes(direct, place / "log")) == {second}


def test_a_node_dies_with_all_that_is_on_it(ray: Ray, place: Path) -> None:
    content = small(place)
    (application,) = content["applications"]
    application["args"]["grpc"] = "127.0.0.1:0"  # both nodes are this machine
    (deployment,) = application["deployments"]
    deployment |= {"num_replicas": 1, "max_replicas_per_node": 1}
    application["name"] = "nodes"
    ray.serve("deploy", write(place, content))
    ray.wait_running()
    (address,) = (file.read_text() for file in (place / "balancer").glob("nodes-*.address"))
    with ray_started(f"--address={ray.address}", "--node-ip-address=127.0.0.2", **VARIABLES) as second:
        deployment["num_replicas"] = 2
        ray.serve("deploy", write(place, content))
        with Load(address, pause=PAUSE) as load:
            until(lambda: len(processes(load, place / "log")) == 2, RUNNING_SECONDS)
            for process in processes_of(second):
                os.kill(process.pid, signal.SIGKILL)
            load.wait_for(1000)
        check(load, place / "log", lost=16)
        with Load(address) as after:
            after.wait_for(100)
        assert set(after.codes) == {"answered"}
        assert set(processes(after, place / "log")) == ray.replicas("nodes")


def test_headrace_up_leaves_it_alone(ray: Ray, place: Path) -> None:
    before = ray.daemons
    assert len(before) == 2
    config = write_config(place, 1, args={"grpc": f"127.0.0.1:{free_port()}", "balancer": False})
    with up(config) as running:
        assert not {process.pid for process in running.processes} & before
        with running.load() as load:
            load.wait_for(50)
        check(load, place / "log")
        assert headrace("down").returncode == 0
        assert running.processes == []
        assert not Path(running.cluster.directory).exists()
        assert launch.started() is None
        assert ray.daemons == before
        assert headrace("down").returncode == 2


def test_run_an_application(ray: Ray, place: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    words = ("--name=run", "--route-prefix=/run", "headrace.cluster.app:app", f"repository={place / 'models'}", f"grpc={address}")
    command = [SERVE, "run", "--address", ray.address, *words]
    with (place / "said").open("wb") as said, subprocess.Popen(command, env=ENVIRONMENT, stdout=said, stderr=said) as running:
        try:
            until(lambda: b"is ready" in (place / "said").read_bytes() or running.poll() is not None, RUNNING_SECONDS)
            assert running.poll() is None, (place / "said").read_text()
            with Load(address) as load:
                load.wait_for(200)
            check(load, place / "log")
            running.send_signal(signal.SIGINT)
            assert running.wait(100) == 0
        finally:
            running.kill()
    assert ray.replicas("run") == set()
