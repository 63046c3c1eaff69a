"""Clusters that are hurt as a whole: one whose GCS is killed, and what one that died has left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.clusters import Up, check, up, write_config
from tests.cluster.plain import add_logged_model
from tests.waiting import until
from tools.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ARGS = {"grpc": f"127.0.0.1:{free_port()}"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("launch")
    add_logged_model(place / "models", "m", place / "log")
    return place


@pytest.fixture(scope="module")
def running(place: Path) -> Iterator[Up]:
    """Its GCS has a Redis behind it."""
    redis = shutil.which("redis-server")
    assert redis is not None, "this test needs redis-server; on Debian and Ubuntu: apt-get install redis-server"
    port = str(free_port())
    store = [redis, "--bind", "127.0.0.1", "--port", port, "--save", "", "--dir", str(place)]
    with ExitStack() as stack:
        stack.callback(stack.enter_context(subprocess.Popen(store, stdout=subprocess.DEVNULL)).kill)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_REDIS_ADDRESS", f"127.0.0.1:{port}")
            running = stack.enter_context(up(write_config(place, args=ARGS)))
        yield running


def test_answers_go_on_while_gcs_is_gone(running: Up, place: Path) -> None:
    (gcs,) = running.pids("gcs_server")
    port = running.cluster.ray_address.rpartition(":")[2]
    command = Path(f"/proc/{gcs}/cmdline").read_text().rstrip("\0").replace("_port=0", f"_port={port}").split("\0")
    environment = dict(line.split("=", 1) for line in Path(f"/proc/{gcs}/environ").read_text().split("\0") if "=" in line)
    before = running.replicas
    with ExitStack() as stack:
        with running.load() as load:
            load.wait_for(50)
            os.kill(gcs, signal.SIGKILL)
            load.wait_for(2000)
            stack.callback(stack.enter_context(subprocess.Popen(command, env=environment)).kill)
            done = running.again(write_config(place, args=ARGS, revision="2"))
            assert done.returncode == 0, done.stderr
            load.wait_for(500)
        check(load, place / "log")
        assert running.replicas == before


def test_what_a_dead_cluster_left_is_ended(running: Up, place: Path) -> None:
    (orphan,) = running.pids("haproxy")
    for process in running.processes:
        if process.pid != orphan:
            os.kill(process.pid, signal.SIGKILL)
    until(lambda: [process.pid for process in running.processes] == [orphan], 30)
    with up(write_config(place, args=ARGS)) as again:
        assert running.processes == []
        assert again.grpc == running.grpc
        with again.load() as load:
            load.wait_for(50)
    check(load, place / "log")
