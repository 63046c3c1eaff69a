"""A job that goes on: what is finished is left alone, and what has changed is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import InvalidJob, JobChanged, JobLocked, JobStopped
from headrace.jobs import BatchJob, Options, beginning
from headrace.jobs.directory import JobDirectory
from tests.jobs.conftest import Run, build_repository, digests, write_vectors
from tests.jobs.counting import Counting

OPTIONS = Options(batch_rows=16)


def stopped_after(splits: int, graph: str, repository: Path, input: Path, output: Path) -> None:
    """A job that is stopped as soon as so many of its splits are recorded."""
    job = BatchJob(graph, repository, input, output, OPTIONS)
    put = JobDirectory.put_part

    def put_part(directory: JobDirectory, done: object) -> None:
        put(directory, done)  # type: ignore[arg-type]
        if len(directory.done()) == splits:
            job.stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobDirectory, "put_part", put_part)
        with pytest.raises(JobStopped):
            job.run()


STOPPING = """
max_batch_size: 8
inputs: {x: "FP32[32]"}
outputs: {y: "FP32[1]"}
nodes:
  add: {run: "nodes.py:Add", inputs: {x: x}, outputs: {y: y}}
"""
STOPPING_NODE = """
from tests.jobs import test_resume

class Add:
    inputs = {"x": "FP32[32]"}
    outputs = {"y": "FP32[1]"}

    def load(self, context):
        pass

    def run(self, tensors):
        test_resume.on_batch.pop()()
        return {"y": tensors["x"].sum(1, keepdims=True)}
"""
on_batch: list[Callable[[], object]] = []
"""What the node does in its next batch, and before that."""


def test_it_stops_with_the_batch_that_runs(tmp_path: Path) -> None:
    """However many others belong to the same window; their rows are not taken for rows that have run."""
    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "models" / "m" / "graph.yaml").write_text(STOPPING)
    (tmp_path / "models" / "m" / "nodes.py").write_text(STOPPING_NODE)
    files = write_vectors(tmp_path / "in", [1024])
    job = BatchJob("m", tmp_path / "models", files, tmp_path / "out", Options(batch_rows=8))
    on_batch[:] = [int, int, job.stop, int, int]  # the last one first
    with pytest.raises(JobStopped):
        job.run()
    assert on_batch == [int, int]
    assert job.progress.rows == 0


def test_finished_splits_are_not_opened_again(run: Run, repository: Path, tmp_path: Path) -> None:
    """Files all of whose splits are finished are looked at, and never opened; what comes out is what an undisturbed job makes."""
    files = write_vectors(tmp_path / "in", [1024, 1024, 1500, 1024])
    stopped_after(3, "mlp", repository, files, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    assert len(before) == 3
    assert not list((tmp_path / "out" / "_headrace" / "tmp").iterdir())
    assert (tmp_path / "out" / "_headrace" / "lock").read_bytes() == b""
    counting = Counting()
    run("mlp", files, resume=True, filesystem=counting.filesystem)
    assert {Path(path).name for path in counting.opened} == {"002.parquet", "003.parquet"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert digests(tmp_path / "out") == digests(run("mlp", files, "undisturbed"))
    counting.opened.clear()
    done = BatchJob("mlp", repository, files, tmp_path / "out", OPTIONS, resume=True, filesystem=counting.filesystem).run()
    assert counting.opened == []
    assert (done.rows, done.before, done.splits) == (4572, 4572, 5)


def test_as_many_batches_run_at_once_as_there_are_cores_now(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to what a class of somebody else expects; the bytes are the same."""
    models = build_repository(tmp_path / "models")
    graph = models / "words" / "graph.yaml"
    graph.write_text(f"instances: 3\n{graph.read_text()}")
    files = write_vectors(tmp_path / "in", [3000])
    texts = [" ".join("x" * (1 + (row * k) % 9) for k in range(row % 7)) for row in range(3000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "texts.parquet")
    for name, input, expected in (("mlp", files, 4), ("words", tmp_path / "texts.parquet", 3)):
        monkeypatch.setattr(beginning, "usable_cpus", lambda: 1)
        BatchJob(name, models, input, tmp_path / f"{name}-alone", OPTIONS).run()
        stopped_after(1, name, models, input, tmp_path / name)
        monkeypatch.setattr(beginning, "usable_cpus", lambda: 4)
        job = BatchJob(name, models, input, tmp_path / name, OPTIONS, resume=True)
        job.run()
        assert len(job._runners) == expected
        assert digests(tmp_path / name) == digests(tmp_path / f"{name}-alone")


def _append(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(0, 10), path)


CHANGES: dict[str, tuple[Callable[[Path, Path], None], Options, str]] = {
    "file": (lambda models, files: _append(files / "001.parquet"), OPTIONS, r"001\.parquet"),
    "touched": (lambda models, files: os.utime(files / "001.parquet", (1, 1)), OPTIONS, r"001\.parquet"),
    "gone": (lambda models, files: (files / "000.parquet").unlink(), OPTIONS, r"000\.parquet"),
    "new": (lambda models, files: shutil.copy(files / "000.parquet", files / "009.parquet") and None, OPTIONS, r"009\.parquet"),
    "model": (
        lambda models, files: (models / "mlp" / "1" / "notes").write_text("x") and None,
        OPTIONS,
        "model 'mlp' has other files",
    ),
    "config": (
        lambda models, files: (
            (models / "mlp" / "config.pbtxt").write_text((models / "mlp" / "config.pbtxt").read_text() + "dynamic_batching { }")
            and None
        ),
        OPTIONS,
        "model 'mlp' has other files, or another configuration",
    ),
    "batch": (lambda models, files: None, Options(batch_rows=8), "option batch_rows was 16, and is 8"),
    "columns": (lambda models, files: None, Options(batch_rows=16, keep=()), "option keep was not given"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_is_told(tmp_path: Path, what: str) -> None:
    """And nothing of the output is touched."""
    change, options, told = CHANGES[what]
    models, files = build_repository(tmp_path / "models"), write_vectors(tmp_path / "in", [100, 100])
    BatchJob("mlp", models, files, tmp_path / "out", OPTIONS).run()
    before = digests(tmp_path / "out")
    change(models, files)
    with pytest.raises(JobChanged, match=told) as raised:
        BatchJob("mlp", models, files, tmp_path / "out", options, resume=True).run()
    assert len(raised.value.changes) == 1
    assert digests(tmp_path / "out") == before


def test_another_release_of_a_library_is_a_change(run: Run, tmp_path: Path) -> None:
    output = run("mlp", write_vectors(tmp_path / "in", [10]))
    file = output / "_headrace" / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "versions": {**manifest["versions"], "onnxruntime": "1.0"}}))
    with pytest.raises(JobChanged, match=r"onnxruntime was 1\.0, and is 1\."):
        run("mlp", tmp_path / "in", resume=True)


def test_a_job_is_not_begun_twice(run: Run, tmp_path: Path) -> None:
    run("mlp", write_vectors(tmp_path / "in", [10]))
    with pytest.raises(InvalidJob, match="has a job already: go on with it"):
        run("mlp", tmp_path / "in")


def test_two_runs_exclude_each_other(run: Run, repository: Path, tmp_path: Path) -> None:
    """Threads and processes alike; who holds it is told."""
    files = write_vectors(tmp_path / "in", [10])
    output = run("mlp", files)
    with JobDirectory(output).lock(), pytest.raises(JobLocked, match=f"process {os.getpid()} on "):
        run("mlp", files, resume=True)
    run("mlp", files, resume=True)


def test_the_lock_of_a_dead_run_is_taken_over(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = write_vectors(tmp_path / "in", [10])
    output = run("mlp", files)
    text = "import os, sys; from pathlib import Path; from headrace.jobs.lock import locked\n"
    text += "with locked(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    lock = output / "_headrace" / "lock"
    dead = subprocess.Popen([sys.executable, "-c", text, str(lock)])
    assert dead.wait(30) == -9
    run("mlp", files, resume=True)
    assert f"the last run did not come to its end: process {dead.pid} on " in caplog.text
    assert lock.read_bytes() == b""
