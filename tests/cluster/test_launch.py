"""What `headrace up` and `headrace down` do with what is on the machine already: a foreign Ray, a cluster that died."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from headrace.cluster import launch
from headrace.cluster.processes import processes_of
from tests.cluster.clusters import free_port, headrace, ray_started, up
from tests.cluster.plain import Load, add_logged_model
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_foreign_ray_is_left_alone(tmp_path: Path) -> None:
    add_logged_model(tmp_path / "models", "m", tmp_path / "log")
    with ray_started("--head") as foreign, up("--repository", tmp_path / "models", "--grpc", "127.0.0.1:0") as running:
        before = {process.pid for process in processes_of(foreign)}
        ours = {process.pid for process in running.processes}
        assert not ours & before
        with Load(running.grpc) as load:
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
            with Load(again.grpc) as load:
                load.wait_for(50)
