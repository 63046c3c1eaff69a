"""Batch jobs on real Ray: their parts are those of a job without it, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.cluster.processes import processes_of
from headrace.errors import InvalidRepository, JobFailed, JobStopped
from headrace.jobs import BatchJob, Options, Stage
from headrace.jobs.manifest import Done
from tests.cluster.clusters import address_of, driver, ray_started
from tests.jobs.conftest import build_repository, column, digests, read, write_vectors
from tests.waiting import until
from tools.ports import free_port

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

SIXTEEN = Options(batch_rows=16)
ROWS = (3000, 100, 3000)
DEADLY = """
max_batch_size: 16
inputs: {x: "FP32[32]", id: "INT64[1]"}
outputs: {y: "FP32[1]"}
nodes:
  deadly:
    run: nodes.py:Deadly
    inputs: {x: x, id: id}
    outputs: {y: y}
"""
DEADLY_NODE = """
import os, signal
from pathlib import Path

class Deadly:
    inputs = {{"x": "FP32[32]", "id": "INT64[1]"}}
    outputs = {{"y": "FP32[1]"}}

    def load(self, context):
        pass

    def run(self, tensors):
        lives = Path({lives!r})
        left = int(lives.read_text())
        if left and (tensors["id"] == 2500).any():
            lives.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return {{"y": tensors["x"][:, :1] * 2}}
"""
"""Kills its process in the middle of a split, as often as a file says."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ray-jobs")
    repository = build_repository(place / "models")
    (repository / "deadly").mkdir()
    (repository / "deadly/graph.yaml").write_text(DEADLY)
    (repository / "deadly/nodes.py").write_text(DEADLY_NODE.format(lives=str(place / "lives")))
    (repository / "broken/1").mkdir(parents=True)
    (repository / "broken/1/model.onnx").write_bytes(b"no model")
    (place / "lives").write_text("0")
    write_vectors(place / "in", ROWS)
    return place


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """This process is a driver of a slim Ray."""
    with driver(cpus=3, RAY_DATA_DISABLE_PROGRESS_BARS="1") as ray:
        yield ray


def on_ray(place: Path, graph: str, output: Path, *, resume: bool = False, count: int = 2) -> BatchJob:
    from headrace.cluster.batch import Actors, RayJob

    return RayJob(Actors(count), graph, place / "models", place / "in", output, SIXTEEN, resume=resume)


def here(place: Path, graph: str, output: Path, *, resume: bool = False) -> BatchJob:
    return BatchJob(graph, place / "models", place / "in", output, SIXTEEN, resume=resume)


def stopped(job: BatchJob, patch: pytest.MonkeyPatch) -> int:
    """Run it, and stop it when it has recorded a split; how many it has."""
    record: Callable[[Done], None] = job._recorded

    def recorded(done: Done) -> None:
        record(done)
        job.stop()

    patch.setattr(job, "_recorded", recorded)
    with pytest.raises(JobStopped):
        job.run()
    return job.progress.splits


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, str]:
    here(place, "mlp", place / "expected").run()
    return digests(place / "expected")


def test_the_same_parts_as_without_ray(ray: Any, place: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    progress = on_ray(place, "mlp", tmp_path / "out").run()
    assert digests(tmp_path / "out") == expected
    assert read(tmp_path / "out").column("id").to_pylist() == list(range(sum(ROWS)))
    assert (progress.rows, progress.splits, progress.rejected) == (sum(ROWS), len(expected), 0)
    assert sum(actor.rows for actor in progress.actors) == sum(ROWS)
    assert sum(actor.splits for actor in progress.actors) == len(expected)
    assert list((tmp_path / "out/_headrace/tmp").iterdir()) == []


def test_begun_here_gone_on_with_there_and_back(
    ray: Any, place: Path, tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    first = stopped(here(place, "mlp", output), monkeypatch)
    second = stopped(on_ray(place, "mlp", output, resume=True, count=1), monkeypatch)
    assert 0 < first < second < len(expected)
    here(place, "mlp", output, resume=True).run()
    assert digests(output) == expected


@pytest.mark.slow
def test_begun_on_ray(ray: Any, place: Path, tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < stopped(on_ray(place, "mlp", tmp_path / "out", count=1), monkeypatch) < len(expected)
    here(place, "mlp", tmp_path / "out", resume=True).run()
    assert digests(tmp_path / "out") == expected


@pytest.mark.slow
def test_an_actor_dies_in_the_middle_of_a_split(ray: Any, place: Path, tmp_path: Path) -> None:
    here(place, "deadly", tmp_path / "expected").run()
    (place / "lives").write_text("2")
    progress = on_ray(place, "deadly", tmp_path / "out").run()
    assert (place / "lives").read_text() == "0"
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")
    assert progress.rows == sum(actor.rows for actor in progress.actors) == sum(ROWS)
    assert list((tmp_path / "out/_headrace/tmp").iterdir()) == []


@pytest.mark.slow
def test_a_split_that_every_actor_dies_of(ray: Any, place: Path, tmp_path: Path) -> None:
    (place / "lives").write_text("9")
    told = r"actors die of split 2 \(\d+ rows from row 2\d+ of .*/000.parquet on\); the last one, .*/\d+: .* go on with --resume"
    with pytest.raises(JobFailed, match=told):
        on_ray(place, "deadly", tmp_path / "out").run()
    (place / "lives").write_text("0")
    on_ray(place, "deadly", tmp_path / "out", resume=True).run()
    here(place, "deadly", tmp_path / "expected").run()
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")


@pytest.mark.slow
def test_a_node_dies(ray: Any, place: Path, tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with ray_started(f"--address={ray.get_runtime_context().gcs_address}") as node:
        until(lambda: ray.cluster_resources()["CPU"] == 4, 60)
        job = on_ray(place, "mlp", tmp_path / "out", count=4)
        record: Callable[[Done], None] = job._recorded

        def recorded(done: Done) -> None:
            record(done)
            for process in processes_of(node):
                os.kill(process.pid, signal.SIGKILL)

        monkeypatch.setattr(job, "_recorded", recorded)
        assert job.run().rows == sum(ROWS)
    assert digests(tmp_path / "out") == expected
    # Until Ray has noticed, it goes on to place actors there: those of the next test would die.
    until(lambda: ray.cluster_resources()["CPU"] == 3, 120)


def test_a_graph_that_does_not_load(ray: Any, place: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRepository, match=f"^on {os.uname().nodename}: .*broken"):
        on_ray(place, "broken", tmp_path / "out").run()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["actors", "tasks"])
def test_a_stage_in_ray_data(ray: Any, place: Path, expected: dict[str, str], kind: str) -> None:
    """There is a CPU left for those who read."""
    from ray import data

    told = {"graph": "mlp", "repository": str(place / "models"), "batch_rows": 16}
    options: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": 1024, "num_cpus": 1}
    if kind == "actors":
        stage: Any = Stage
        options |= {"compute": data.ActorPoolStrategy(size=1), "fn_constructor_kwargs": told}
    else:
        stage = Stage(**told)
    made = data.read_parquet(str(place / "in")).map_batches(stage, **options).take_all()
    made.sort(key=lambda row: row["id"])
    whole = read(place / "expected")
    assert [row["id"] for row in made] == whole["id"].to_pylist()
    np.testing.assert_allclose(np.stack([row["y"] for row in made]), column(whole, "y"), rtol=1e-5, atol=1e-6)


# The command line, with a Ray of its own.


def command(place: Path, output: Path, *more: str) -> list[str]:
    words = ["batch", "mlp", "-r", place / "models", "--input", place / "in", "--output", output, "--batch-rows=16", *more]
    return [sys.executable, "-m", "headrace", *map(str, words)]


@pytest.mark.slow
def test_the_command_line(place: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    job = command(place, tmp_path / "out", "--on", "ray", "--actors", "2")
    done = subprocess.run(job, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["event"], told["rows"]) == ("done", sum(ROWS))
    assert set(told["actors"][0]) == {"name", "rows", "splits", "rows_per_second"}
    assert digests(tmp_path / "out") == expected


@pytest.mark.slow
def test_on_a_ray_that_is_there(place: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    """By `ray job submit`, and by RAY_ADDRESS: its processes are the actors, and no Ray is started."""
    port, token = free_port(), {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    head = ("--head", "--port=0", "--dashboard-agent-listen-port=0", f"--dashboard-port={port}", "--no-monitor")
    with ray_started(*head, cpus=2, **token) as directory:
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", f"--address=http://127.0.0.1:{port}", "--"]
        for name, words, address in (("submitted", submit, {}), ("told", [], {"RAY_ADDRESS": address_of(directory)})):
            job = [*words, *command(place, tmp_path / name, "--on", "ray", "--actors", "2")]
            variables = {**os.environ, **token, **address}
            done = subprocess.run(job, env=variables, capture_output=True, text=True, check=False, timeout=200)
            assert done.returncode == 0, done.stdout + done.stderr
            (told,) = (json.loads(line) for line in done.stdout.splitlines() if '"event": "done"' in line)
            assert (told["rows"], digests(tmp_path / name)) == (sum(ROWS), expected)
            assert told["actors"]
            for actor in told["actors"]:
                assert list(directory.glob(f"session_latest/logs/worker-*-{actor['name'].rpartition('/')[2]}.out"))
    nobody = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    job = command(place, tmp_path / "nobody", "--on", "ray")
    done = subprocess.run(job, env=nobody, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2
    assert f"no Ray answers at {nobody['RAY_ADDRESS']}, which RAY_ADDRESS says: Connection refused" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("again", [(), ("--on", "ray", "--actors", "1")], ids=["here", "on Ray"])
def test_the_driver_is_killed(place: Path, tmp_path: Path, expected: dict[str, str], again: tuple[str, ...]) -> None:
    output, splits = tmp_path / "out", tmp_path / "out/_headrace/splits"
    job = subprocess.Popen(command(place, output, "--on", "ray", "--actors", "1"), stdout=subprocess.DEVNULL)
    until(lambda: job.poll() is not None or (splits.is_dir() and len(list(splits.iterdir())) >= 2), 200)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    assert subprocess.run(command(place, output, "--resume", *again), check=False, timeout=200).returncode == 0
    assert digests(output) == expected
