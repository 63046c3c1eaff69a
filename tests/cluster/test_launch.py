"""Clusters and Ray: a foreign one, one that died, and one whose GCS is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from headrace.cluster import launch
from headrace.cluster.processes import processes_of
from tests.cluster.clusters import check, free_port, headrace, ray_started, up, write_config
from tests.cluster.plain import add_logged_model
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_foreign_ray_is_left_alone(tmp_path: Path) -> None:
    add_logged_model(tmp_path / "models", "m", tmp_path / "log")
    with ray_started("--head") as foreign, up("--repository", tmp_path / "models", "--grpc", "127.0.0.1:0") as running:
        before = {process.pid for process in processes_of(foreign)}
        ours = {process.pid for process in running.processes}
        assert not ours & before
        with running.load() as load:
            load.wait_for(50)
        assert headrace("down").returncode == 0
        assert running.processes == []
        assert not Path(running.cluster.directory).exists()
        assert launch.started() is None
        assert {process.pid for process in processes_of(foreign)} >= before
        assert headrace("down").returncode == 2


def test_what_a_dead_cluster_left_is_ended(tmp_path: Path) -> None:
    add_logged_model(tmp_path / "models", "m", tmp_path / "log")
    options = ("--repository", tmp_path / "models", "--grpc", f"127.0.0.1:{free_port()}")
    with up(*options) as running:
        (orphan,) = running.pids("haproxy")
        for process in running.processes:
            if process.pid != orphan:
                os.kill(process.pid, signal.SIGKILL)
        until(lambda: [process.pid for process in running.processes] == [orphan], 30)
        with up(*options) as again:
            assert running.processes == []
            assert again.grpc == running.grpc
            with again.load() as load:
                load.wait_for(50)


def test_answers_go_on_while_gcs_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redis = shutil.which("redis-server")
    assert redis is not None, "this test needs redis-server; on Debian and Ubuntu: apt-get install redis-server"
    address = f"127.0.0.1:{free_port()}"
    add_logged_model(tmp_path / "models", "m", tmp_path / "log")
    store = [redis, "--bind", "127.0.0.1", "--port", address.rpartition(":")[2], "--save", "", "--dir", str(tmp_path)]
    with ExitStack() as stack:
        stack.callback(stack.enter_context(subprocess.Popen(store, stdout=subprocess.DEVNULL)).kill)
        monkeypatch.setenv("RAY_REDIS_ADDRESS", address)
        running = stack.enter_context(up(write_config(tmp_path)))
        (gcs,) = running.pids("gcs_server")
        port = running.cluster.ray_address.rpartition(":")[2]
        command = Path(f"/proc/{gcs}/cmdline").read_text().rstrip("\0").replace("_port=0", f"_port={port}").split("\0")
        environment = dict(line.split("=", 1) for line in Path(f"/proc/{gcs}/environ").read_text().split("\0") if "=" in line)
        before = running.replicas
        with running.load() as load:
            load.wait_for(50)
            os.kill(gcs, signal.SIGKILL)
            load.wait_for(2000)
            stack.callback(stack.enter_context(subprocess.Popen(command, env=environment)).kill)
            done = running.again(write_config(tmp_path, revision="2"))
            assert done.returncode == 0, done.stderr
            load.wait_for(500)
        check(load, tmp_path / "log")
        assert running.replicas == before
