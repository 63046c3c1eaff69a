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

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.cluster.clusters import SERVE_GRPC, Up, check, index, processes, up, write_config
from tests.cluster.plain import PATIENCE, Load, add_logged_model, answer_of, channel, executions, message, stub
from tests.ledger.servers import one
from tests.python.conftest import write_node
from tests.waiting import until

pytestmark = pytest.mark.timeout(600)


HANGS = """
import os, time
class Model:
    inputs = {{"x": "FP32[1]"}}
    outputs = {{"y": "FP32[1]"}}
    def load(self, context):
        pass
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
    add_logged_model(place / "models", "m", place / "log")
    (place / "models/hangs/1").mkdir(parents=True)
    write_node(place / "models/hangs/1", HANGS.format(gate=str(place / "gate")))
    (place / "models/hangs/config.pbtxt").write_text(HANGS_CONFIG)
    return place


@pytest.fixture(scope="module")
def running(place: Path) -> Iterator[Up]:
    with up(write_config(place)) as running:
        yield running


def test_requests_of_one_channel_reach_every_replica(running: Up, place: Path) -> None:
    with running.load() as load:
        load.wait_for(1000)
    check(load, place / "log")
    counts = processes(load, place / "log")
    assert set(counts) == set(running.replicas)
    assert max(counts.values()) <= 1.5 * min(counts.values())


ASK_HANDLE = """
import json, sys
import numpy as np
import pyarrow as pa
import ray
from ray import serve
ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
handle = serve.get_app_handle("headrace")
told = {}
table = pa.table({"x": [[1 << 40], [1 << 41, 5], [], [1 << 42]]})
told["table"] = handle.infer.remote("m", table).result().to_pydict()
outputs = handle.infer.remote("m", {"x": np.array([[1 << 40], [1 << 41]])}, outputs=["y"], timeout=20).result()
told["y"] = outputs["y"][:, 0].tolist()
try:
    handle.infer.remote("nothing", {"x": np.array([[1]])}).result()
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
    assert told["y"] == [(1 << 40) + 1, (1 << 41) + 1]
    assert told["table"] == {"y": [[(1 << 40) + 1], [(1 << 41) + 1, 6], [], [(1 << 42) + 1]]}
    assert told["error"] == ["RayTaskError(ModelNotFound)", "Request for unknown model: 'nothing' is not found"]
    assert told["status"]["models"] == {"hangs/1": ["READY", ""], "m/1": ["READY", ""]}


def test_serves_own_proxy_comes_to_the_same_queues(running: Up, place: Path) -> None:
    with channel(f"127.0.0.1:{SERVE_GRPC}") as opened:
        v2 = stub(opened)
        answer = v2.ModelInfer(message(1 << 50), timeout=PATIENCE)
        assert answer_of(answer) == 1 << 50
        assert v2.ModelMetadata(pb.ModelMetadataRequest(name="m"), timeout=PATIENCE).inputs[0].name == "x"
        with pytest.raises(grpc.RpcError) as raised:
            v2.ModelInfer(message(1, model="nothing"), timeout=PATIENCE)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        assert "Request for unknown model: 'nothing' is not found" in raised.value.details()
        answers = list(v2.ModelStreamInfer(iter([message(n) for n in (1 << 51, 1 << 52)]), timeout=PATIENCE))
        assert [answer_of(each.infer_response) for each in answers] == [1 << 51, 1 << 52]
    log = executions(place / "log")
    assert all(len(log[1 << power]) == 1 for power in (50, 51, 52))


def version_that_answers(address: str) -> str:
    with channel(address) as opened:
        return stub(opened).ModelInfer(message(0), timeout=PATIENCE).model_version


@pytest.mark.slow
def test_a_new_version_while_requests_come(running: Up, place: Path) -> None:
    before = running.replicas
    with running.load() as load:
        load.wait_for(50)
        shutil.copytree(place / "models/m/1", place / "models/m/2")
        done = running.again(write_config(place, revision="2"))
        assert done.returncode == 0, done.stderr
        until(lambda: ("m", "2") in index(running.grpc), 60)
        load.wait_for(200)
    check(load, place / "log")
    assert version_that_answers(running.grpc) == "2"
    assert running.replicas == before  # nobody was started anew


@pytest.mark.slow
def test_a_bad_model_takes_nothing_away(running: Up, place: Path) -> None:
    before = running.replicas
    (place / "models/broken/1").mkdir(parents=True)
    (place / "models/broken/1/model.onnx").write_bytes(b"no model")
    try:
        with running.load() as load:
            assert running.again(write_config(place, revision="3")).returncode == 0
            until(lambda: index(running.grpc).get(("broken", "1"), ("", ""))[0] == "UNAVAILABLE", 60)
            # A new replica does not start with it, so those that serve stay.
            done = running.again(write_config(place, revision="3", drain_seconds=19))
            assert done.returncode == 2
            assert "broken" in done.stderr.splitlines()[-1]
            load.wait_for(200)
        check(load, place / "log")
        until(lambda: running.replicas == before, 60)
    finally:
        shutil.rmtree(place / "models/broken")
        assert running.again(write_config(place, revision="4")).returncode == 0


@pytest.mark.slow
def test_a_replica_is_killed(running: Up, place: Path) -> None:
    before = running.replicas
    with running.load() as load:
        load.wait_for(200)
        os.kill(before[0], signal.SIGKILL)
        wait_replaced(running, before[:1])
        wait_all_answer(running, load, place)
    check(load, place / "log", lost=16)  # as many as there are clients


@pytest.mark.slow
def test_a_rolling_update_loses_nothing(running: Up, place: Path) -> None:
    before = running.replicas
    with running.load() as load:
        load.wait_for(50)
        done = running.again(write_config(place, drain_seconds=18))
        assert done.returncode == 0, done.stderr
        wait_replaced(running, before)
        wait_all_answer(running, load, place)
    check(load, place / "log")


@pytest.mark.slow
def test_the_controller_is_killed(running: Up, place: Path) -> None:
    before = running.replicas
    (controller,) = running.pids("ray::ServeController")
    with running.load() as load:
        load.wait_for(50)
        os.kill(controller, signal.SIGKILL)
        until(lambda: set(running.pids("ray::ServeController")) - {controller} != set(), 120)
        load.wait_for(1000)
    check(load, place / "log")
    assert running.replicas == before
    assert running.again(write_config(place, drain_seconds=18)).returncode == 0  # and it knows what there is


@pytest.mark.slow
@pytest.mark.parametrize("title", ["ray::_Directory", "ray::_Agent"])
def test_what_the_balancer_follows_is_killed(running: Up, place: Path, title: str) -> None:
    before = running.replicas
    (victim,) = running.pids(title)
    with running.load() as load:
        load.wait_for(50)
        os.kill(victim, signal.SIGKILL)
        until(lambda: set(running.pids(title)) - {victim} != set(), 120)
        load.wait_for(1000)
    # When the agent's successor takes the address over, what each client sends in that moment may be lost.
    check(load, place / "log", lost=0 if title == "ray::_Directory" else 16)
    with running.load() as load:
        load.wait_for(50)
        os.kill(before[0], signal.SIGKILL)  # whose successor has to be found
        wait_replaced(running, before[:1])
        wait_all_answer(running, load, place)
    check(load, place / "log", lost=16)


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
def test_a_hung_instance_has_its_replica_replaced(running: Up, place: Path) -> None:
    with running.load() as load:
        load.wait_for(50)
        victim = hang_one(running.grpc, place / "gate")
        wait_replaced(running, [victim])
        (place / "gate").unlink()
        wait_all_answer(running, load, place)
    check(load, place / "log")  # the other models had answered what they had before it was ended


@pytest.mark.slow
def test_a_stopped_replica_is_replaced(running: Up, place: Path) -> None:
    victim = running.replicas[0]
    with running.load() as load:
        load.wait_for(50)
        os.kill(victim, signal.SIGSTOP)
        wait_replaced(running, [victim])
        wait_all_answer(running, load, place)
    check(load, place / "log", lost=16)  # what it had may wait for its deadline


def wait_replaced(running: Up, gone: list[int]) -> None:
    until(lambda: not set(gone) & set(running.replicas) and len(running.replicas) == 2, 120)


def wait_all_answer(running: Up, load: Load, place: Path) -> None:
    until(lambda: set(running.replicas) <= set(processes(load, place / "log")), 60)
