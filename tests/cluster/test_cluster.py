"""A cluster of two replicas on real Ray: its ways in, its changes while requests come, and its failures."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
import yaml
from tritonclient.utils import InferenceServerException

from tests.cluster.clusters import Up, up
from tests.cluster.numbered import ALLOWED, add_numbered, loaded, many
from tests.ledger.servers import one
from tests.python.conftest import write_node
from tests.waiting import until

pytestmark = pytest.mark.timeout(300)


HANGS = """
import os, time
class Model:
    inputs = {{"x": "FP32[1]"}}
    outputs = {{"y": "FP32[1]"}}
    def run(self, tensors):
        if os.path.exists({gate!r}):
            with open({gate!r}, "w") as file:
                file.write(str(os.getpid()))
            while os.path.exists({gate!r}):
                time.sleep(0.1)
        return {{"y": tensors["x"]}}
"""
HANGS_CONFIG = """
max_batch_size: 1
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
instance_group { count: 1 kind: KIND_CPU }
parameters { key: "isolation" value { string_value: "thread" } }
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cluster")
    add_numbered(place / "models", place / "runs.log")
    (place / "models/hangs/1").mkdir(parents=True)
    write_node(place / "models/hangs/1", HANGS.format(gate=str(place / "gate")))
    (place / "models/hangs/config.pbtxt").write_text(HANGS_CONFIG)
    return place


def write_config(place: Path, replicas: int = 2, drain_seconds: float = 20, **user_config: object) -> Path:
    content: dict[str, Any] = {
        "proxy_location": "Disabled",
        "applications": [
            {
                "name": "headrace",
                "route_prefix": None,
                "import_path": "headrace.cluster.app:app",
                "args": {
                    "repository": str(place / "models"),
                    "grpc": "127.0.0.1:0",
                    "hung_seconds": 3,
                    "server": {"probe": False, "drain_seconds": drain_seconds},
                },
                "deployments": [
                    {
                        "name": "Headrace",
                        "num_replicas": replicas,
                        "ray_actor_options": {"num_cpus": 0.5},
                        "user_config": {"models": ["*"], **user_config},
                    }
                ],
            }
        ],
    }
    file = place / "cluster.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def running(place: Path) -> Iterator[Up]:
    with up(write_config(place)) as running:
        yield running


def test_requests_of_one_channel_reach_every_replica(running: Up, place: Path) -> None:
    with loaded(running.grpc) as load:
        until(many(load, 400), 60)
    load.check(place / "runs.log")
    assert load.failed == []
    assert len(load.processes) == 2
    assert max(load.processes.values()) <= 1.5 * min(load.processes.values())


ASK_HANDLE = """
import json, sys
import numpy as np
import ray
from ray import serve
ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False, _node_ip_address="127.0.0.1")
handle = serve.get_app_handle("headrace")
told = {}
outputs = handle.infer.remote("numbered", {"n": np.array([[1000001], [1000002]])}, outputs=["y"], timeout=20).result()
told["y"] = outputs["y"][:, 0].tolist()
try:
    handle.infer.remote("nothing", {"n": np.array([[1]])}).result()
except Exception as error:
    told["error"] = [type(error).__name__, str(error.cause)]
told["status"] = handle.status.remote().result()
print(json.dumps(told))
"""


def test_handles_come_to_the_same_queues(running: Up, place: Path) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(running.cluster.token_file)}
    command = [sys.executable, "-c", ASK_HANDLE, running.cluster.ray_address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["y"] == [3000010, 3000013]
    assert told["error"] == ["RayTaskError(ModelNotFound)", "Request for unknown model: 'nothing' is not found"]
    assert told["status"]["models"] == {"hangs/1": ["READY", ""], "numbered/1": ["READY", ""]}


def index(address: str) -> dict[tuple[str, str], tuple[str, str]]:
    with triton.InferenceServerClient(address) as client:
        told = client.get_model_repository_index().models
    return {(model.name, model.version): (model.state, model.reason) for model in told}


def test_a_new_version_while_requests_come(running: Up, place: Path) -> None:
    before = running.replicas
    with loaded(running.grpc) as load:
        until(many(load, 50), 60)
        add_numbered(place / "models", place / "runs.log", factor=5, version=2)
        done = running.again(write_config(place, revision="2"))
        assert done.returncode == 0, done.stderr
        until(lambda: ("numbered", "2") in index(running.grpc), 60)
        first_new = len(load.outcomes) + 100
        until(many(load, 200), 60)
    assert load.failed == []
    load.check(place / "runs.log", factors=(3, 5))
    for number, _, answer in load.outcomes[first_new:]:
        assert answer is not None and answer[0] == number * 5 + 7
    assert running.replicas == before  # nobody was started anew


def test_a_bad_model_takes_nothing_away(running: Up, place: Path) -> None:
    before = running.replicas
    (place / "models/broken/1").mkdir(parents=True)
    (place / "models/broken/1/model.onnx").write_bytes(b"no model")
    try:
        with loaded(running.grpc) as load:
            assert running.again(write_config(place, revision="3")).returncode == 0
            until(lambda: index(running.grpc).get(("broken", "1"), ("", ""))[0] == "UNAVAILABLE", 60)
            until(many(load, 100), 60)
        assert load.failed == []
        assert running.replicas == before
        # A new replica does not start with it, so those that serve stay.
        with loaded(running.grpc) as load:
            done = running.again(write_config(place, revision="3", drain_seconds=19))
            assert done.returncode == 2
            assert "broken" in done.stderr.splitlines()[-1]
            until(many(load, 100), 60)
        assert load.failed == []
        assert running.replicas == before
    finally:
        shutil.rmtree(place / "models/broken")


def test_a_replica_is_killed(running: Up, place: Path) -> None:
    before = running.replicas
    with loaded(running.grpc) as load:
        until(lambda: len(load.processes) == 2, 60)
        victim = next(iter(load.processes))
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(set(running.replicas) - set(before)) == 1, 120)
        until(lambda: len(set(load.processes) - {victim}) == 2, 120)
    load.check(place / "runs.log", factors=(3, 5))
    assert len(load.failed) <= 8  # what the clients had there
    assert {code for _, code in load.failed} <= set(ALLOWED)


@pytest.mark.slow
def test_a_rolling_update_loses_nothing(running: Up, place: Path) -> None:
    before = running.replicas
    with loaded(running.grpc) as load:
        until(many(load, 50), 60)
        done = running.again(write_config(place, drain_seconds=18))
        assert done.returncode == 0, done.stderr
        until(lambda: not set(before) & set(running.replicas) and len(running.replicas) == 2, 120)
        until(lambda: set(running.replicas) <= set(load.processes), 60)
    assert load.failed == []
    load.check(place / "runs.log", factors=(3, 5))


@pytest.mark.slow
def test_the_controller_is_killed(running: Up, place: Path) -> None:
    before = running.replicas
    (controller,) = running.pids("ray::ServeController")
    with loaded(running.grpc) as load:
        until(many(load, 50), 60)
        os.kill(controller, signal.SIGKILL)
        until(lambda: set(running.pids("ray::ServeController")) - {controller} != set(), 120)
        until(many(load, 500), 60)
    assert load.failed == []
    assert running.replicas == before
    assert running.again(write_config(place, drain_seconds=18)).returncode == 0  # and it knows what there is


@pytest.mark.slow
def test_the_directory_and_the_agent_are_killed(running: Up, place: Path) -> None:
    before = running.replicas
    victims = [*running.pids("ray::_Directory"), *running.pids("ray::_Agent")]
    assert len(victims) == 2
    with loaded(running.grpc) as load:
        until(many(load, 50), 60)
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        until(lambda: len({*running.pids("ray::_Directory"), *running.pids("ray::_Agent")} - set(victims)) == 2, 120)
        until(many(load, 500), 60)
        assert load.failed == []
        os.kill(before[0], signal.SIGKILL)  # whose successor has to be found
        until(lambda: set(running.replicas) - set(before) and len(set(load.processes) - {before[0]}) == 2, 120)
    load.check(place / "runs.log", factors=(3, 5))
    assert len(load.failed) <= 8


def hang_one(address: str, gate: Path) -> int:
    """Have an instance of one of the replicas hang; the replica's process."""
    gate.touch()

    def ask() -> None:
        with triton.InferenceServerClient(address) as client, contextlib.suppress(InferenceServerException):
            client.infer("hangs", [one()])

    threading.Thread(target=ask, daemon=True).start()
    until(lambda: gate.read_text() != "", 60)
    return int(gate.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "hung"])
def test_a_replica_that_does_not_move_gets_nothing_new_and_is_replaced(running: Up, place: Path, how: str) -> None:
    before = running.replicas
    with loaded(running.grpc, timeout=5) as load:
        until(lambda: len(load.processes) == 2, 60)
        if how == "stopped":
            victim = before[0]
            os.kill(victim, signal.SIGSTOP)
        else:
            victim = hang_one(running.grpc, place / "gate")
        until(lambda: victim not in running.replicas and len(running.replicas) == 2, 120)
        (place / "gate").unlink(missing_ok=True)
        until(lambda: len(set(load.processes) - {victim}) == 2, 120)
        failed = len(load.failed)
        until(many(load, 200), 60)
    load.check(place / "runs.log", factors=(3, 5))
    # What was with it when it stopped, and what came in the seconds until it was found out.
    assert {code for _, code in load.failed} <= set(ALLOWED)
    assert len(load.failed) == failed
    if how == "hung":
        assert failed <= 8
