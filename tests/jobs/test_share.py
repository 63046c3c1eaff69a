"""A job whose rows a server runs beside its other requests."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import HeadraceError, JobChanged, JobFailed, JobStopped
from headrace.jobs import BatchJob, Options, Server
from headrace.jobs.beginning import Begun
from headrace.jobs.served import Served
from headrace.jobs.verify import verify_output
from tests.jobs.conftest import column, read
from tests.jobs.test_cli import headrace
from tests.ledger.servers import Served as Serving
from tests.ledger.servers import one, served
from tests.python.conftest import write_node
from tests.steering.test_live import OBJECTIVE, set_pace
from tests.waiting import until

QUICK, CALM, SLOW = "0", "0.01", "0.1"
"""Seconds of a batch; the objective is 50 ms."""
ROWS, GUILTY = 20_000, 17_777
MODEL = """
import time
time.sleep(float(open({pace!r}).read()))
if (x == {guilty}).any():
    raise ValueError("not that one")
return {{"y": 2 * x}}
"""
CONFIG = """
max_batch_size: 8
input {{ name: "x" data_type: TYPE_FP32 dims: -1 }}
output {{ name: "y" data_type: TYPE_FP32 dims: -1 }}
instance_group {{ count: 1 kind: KIND_CPU }}
dynamic_batching {{ {levels} }}
parameters {{ key: "isolation" value {{ string_value: "thread" }} }}
"""
OPTIONS = Options(batch_rows=4)


@pytest.fixture(scope="module")
def pace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pace") / "pace"
    file.write_text(CALM)
    return file


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, pace: Path) -> Path:
    """`m` with a class for jobs, and `plain` without; an objective for the requests of `m`."""
    root = tmp_path_factory.mktemp("served")
    for name, levels in (("m", "priority_levels: 2 default_priority_level: 1"), ("plain", "")):
        (root / name / "1").mkdir(parents=True)
        write_node(root / name / "1", MODEL.format(pace=str(pace), guilty=GUILTY))
        (root / name / "config.pbtxt").write_text(CONFIG.format(levels=levels))
    (root / "slo").mkdir()
    (root / "slo" / "soon.yaml").write_text(OBJECTIVE.replace("model: m,", "model: m, classes: [1],"))
    return root


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Serving]:
    with served(models) as server:
        yield server


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    x = pa.array([[float(row)] for row in range(ROWS)], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": np.arange(ROWS), "x": x}), directory / "rows.parquet", row_group_size=1000)
    return directory


class Running:
    """A job in a thread of its own."""

    def __init__(self, job: BatchJob) -> None:
        self.job, self.error = job, None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.job.run()
        except HeadraceError as error:
            self.error: HeadraceError | None = error

    @property
    def limit(self) -> int:
        """Batches that may be under way."""
        begun = self.job._begun
        return begun.graph.gate.limit if isinstance(begun, Begun) and isinstance(begun.graph, Served) else 0

    def end(self) -> HeadraceError | None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.error


@contextmanager
def asking(server: Serving) -> Iterator[None]:
    """A client that asks one request after the other."""
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            server.client.infer("m", [one()])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_job_makes_room_comes_back_and_survives_its_server(models: Path, files: Path, pace: Path, tmp_path: Path) -> None:
    """It sends nothing while the budget burns, and goes on when that is calm; when the server dies it says how to go on."""
    set_pace(pace, CALM)
    with served(models) as server:
        told = Running(BatchJob("m", Server(server.grpc), files, tmp_path / "out", OPTIONS))
        until(lambda: told.limit >= 2, 60)
        with asking(server):
            set_pace(pace, SLOW)
            until(lambda: told.limit == 0, 60)
            set_pace(pace, CALM)
            until(lambda: told.limit >= 2, 90)
        until(lambda: told.job.progress.splits >= 1, 60)
        assert told.error is None
        server.process.kill()
        error = told.end()
    assert isinstance(error, JobFailed)
    assert re.search(r"model 'm' cannot run now: the server does not answer .*splits are finished.*--resume", error.message)
    before = {part.name: part.stat().st_mtime_ns for part in (tmp_path / "out").glob("part-*")}
    assert before
    set_pace(pace, QUICK)
    with served(models) as server:
        progress = BatchJob("m", Server(server.grpc), files, tmp_path / "out", OPTIONS, resume=True).run()
    assert (progress.rows, progress.rejected, progress.splits) == (ROWS, 1, progress.total_splits)
    table = read(tmp_path / "out")
    expected = [row for row in range(ROWS) if row != GUILTY]
    assert column(table, "id").tolist() == expected
    assert table.column("y").to_pylist() == [[2.0 * row] for row in expected]
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before
    found = verify_output(tmp_path / "out")
    assert (found.problems, found.rows, found.sampled_rows) == ([], ROWS - 1, 0)


def test_it_stops_at_once_though_nothing_may_be_sent(server: Serving, files: Path, pace: Path, tmp_path: Path) -> None:
    """And does not go on as a job that runs its graph itself."""
    set_pace(pace, SLOW)
    told = Running(BatchJob("m", Server(server.grpc), files, tmp_path / "out", OPTIONS))
    with asking(server):
        until(lambda: told.limit > 0, 60)
        until(lambda: told.limit == 0, 60)
        told.job.stop()
        assert isinstance(told.end(), JobStopped)
    with pytest.raises(JobChanged, match="its rows were run by a server, and are not to be now"):
        BatchJob("m", tmp_path, files, tmp_path / "out", OPTIONS, resume=True).run()


def test_the_class_of_jobs_and_what_is_told_of_the_budget(server: Serving, pace: Path) -> None:
    """Only to those who may want it: a model without classes has no place for jobs."""
    from headrace.backends.triton.client import Client
    from headrace.backends.triton.settings import Settings
    from headrace.clock import MonotonicClock
    from headrace.jobs.served import _metadata
    from headrace.protocol.slack import Slack

    clock = MonotonicClock()
    client, plain = (Client(Settings(server.grpc, name), clock) for name in ("m", "plain"))
    try:
        assert Slack.of(_metadata(plain).properties) == Slack()
        set_pace(pace, SLOW)
        with asking(server):
            until(lambda: (Slack.of(_metadata(client).properties).burn or 0) > 1, 30)
        assert Slack.of(_metadata(client).properties).level == 2
        # 100 ms are much more than a part of 50 ms: a row at a time.
        until(lambda: Slack.of(_metadata(client).properties).rows == 1, 30)
    finally:
        client.close()
        plain.close()


@pytest.mark.parametrize(
    ("graph", "options", "told"),
    [
        ("m", ["--share", "nowhere"], "--share is 'nowhere'; it must be where the server listens for gRPC"),
        ("m", ["--share", "127.0.0.1:1"], "no server at 127.0.0.1:1 has 'm' ready"),
        ("nobody", ["--share", "{grpc}"], "no server at .* has 'nobody' ready .*unknown model"),
        ("plain", ["--share", "{grpc}"], r"'plain' at .* has no class for jobs.*priority_levels: 2 default_priority_level: 1"),
        ("m", [], "give --repository, the folder of models, or --share"),
        ("m", ["--share", "{grpc}", "--repository", "models"], "give --repository, the folder of models, or --share"),
    ],
)
def test_servers_that_cannot_be_shared(
    server: Serving, files: Path, tmp_path: Path, graph: str, options: list[str], told: str
) -> None:
    # In a process of its own: it becomes nice.
    given = ["batch", graph, "--input", str(files), "--output", str(tmp_path / "out")]
    done = headrace(*given, *(word.format(grpc=server.grpc) for word in options))
    assert done.returncode == 2
    assert re.search(told, done.stderr), done.stderr
