"""`python -m benchmarks.batch_rivals RIVAL JOB`: one job, told in JSON, by one of those whom `benchmarks.batch_peers` compares.

It prints how long it took until a small job had been done and everything was up, and how long the job took then. Of Headrace it
imports something only where that is the rival: Daft and PySpark run in an environment of their own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

SLICED_ROWS = 1024
"""Rows that a framework hands over at once where batches are cut out of them by hand."""
Run = Callable[[str, str], object]
"""Does the job: from this directory of Parquet files into that one."""


@dataclass(frozen=True)
class Job:
    """A model with one input and one output, each row a list of fixed length, and what runs at once: batches of `batch` rows.

    `small` and `rows` are directories of Parquet files, `output` one that is made.
    """

    model: str
    repository: str
    file: str
    input: str
    output_name: str
    width: int
    batch: int
    cores: int
    small: str
    rows: str
    output: str


class Plain:
    """onnxruntime by hand: lists in, lists out."""

    def __init__(self, job: Job) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(job.file, options, ["CPUExecutionProvider"])
        self._job = job

    def run(self, cells: pa.Array) -> pa.Array:
        """The outputs of some rows, in batches of the job's size."""
        job = self._job
        values: NDArray[Any] = cells.flatten().to_numpy(zero_copy_only=False)
        rows = values.reshape(len(cells), -1)
        starts = range(0, len(rows), job.batch)
        parts: list[Any] = [self._session.run(None, {job.input: rows[at : at + job.batch]})[0] for at in starts]
        outputs = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return pa.FixedSizeListArray.from_arrays(pa.array(outputs.reshape(-1)), job.width)


@contextmanager
def headrace(job: Job) -> Iterator[Run]:
    """The local runner."""
    from headrace.jobs import BatchJob
    from headrace.machine import SWITCH_SECONDS

    sys.setswitchinterval(SWITCH_SECONDS)  # as `headrace batch` does
    yield lambda rows, output: BatchJob(job.model, job.repository, rows, output).run()


@contextmanager
def headrace_on_ray(job: Job) -> Iterator[Run]:
    """An actor a core."""
    from headrace.cluster.batch import RayJob
    from headrace.cluster.connection import Actors, connected

    actors = Actors(job.cores)
    with connected(actors):
        yield lambda rows, output: RayJob(actors, job.model, job.repository, rows, output).run()


@contextmanager
def _ray_data(job: Job, rows_at_once: int) -> Iterator[Run]:
    import ray.data

    class Model:
        def __init__(self) -> None:
            self._plain = Plain(job)

        def __call__(self, table: pa.Table) -> pa.Table:
            return pa.table({job.output_name: self._plain.run(table[job.input].combine_chunks())})

    # As many logical CPUs again as actors take, so that reading never waits for one.
    ray.init("local", num_cpus=2 * job.cores, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def run(rows: str, output: str) -> None:
        read = ray.data.read_parquet(rows)
        pool = ray.data.ActorPoolStrategy(size=job.cores)
        mapped = read.map_batches(Model, batch_format="pyarrow", batch_size=rows_at_once, compute=pool, num_cpus=1)
        mapped.write_parquet(output)

    yield run
    ray.shutdown()


def ray_data(job: Job) -> AbstractContextManager[Run]:
    """`map_batches` with a class, in batches of the best size."""
    return _ray_data(job, job.batch)


def ray_data_sliced(job: Job) -> AbstractContextManager[Run]:
    """The same with larger batches, out of which the class cuts those of the best size."""
    return _ray_data(job, max(job.batch, SLICED_ROWS))


@contextmanager
def by_daft(job: Job) -> Iterator[Run]:
    """A class with a batch method, as many of it as there are cores."""
    daft: Any = import_module("daft")
    kind = daft.DataType.fixed_size_list(daft.DataType.float32(), job.width)

    @daft.cls(max_concurrency=job.cores)
    class Model:
        def __init__(self) -> None:
            self._plain = Plain(job)

        @daft.method.batch(return_dtype=kind, batch_size=max(job.batch, SLICED_ROWS))
        def outputs(self, rows: Any) -> pa.Array:
            return self._plain.run(rows.to_arrow())

    def run(rows: str, output: str) -> None:
        read = daft.read_parquet(f"{rows}/*.parquet")
        read.select(Model().outputs(read[job.input]).alias(job.output_name)).write_parquet(output)

    yield run


@contextmanager
def by_spark(job: Job) -> Iterator[Run]:
    """`mapInArrow`; a worker of Python for each core, which keeps its session."""
    spark: Any = import_module("pyspark.sql").SparkSession
    builder = spark.builder.master(f"local[{job.cores}]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", max(job.batch, SLICED_ROWS))
    session = builder.config("spark.log.level", "ERROR").getOrCreate()

    def outputs(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from benchmarks import batch_rivals  # the worker's own, which it keeps

        plain = batch_rivals.kept(job)
        for batch in batches:
            cells = plain.run(batch.column(0))
            yield pa.RecordBatch.from_arrays([cells.cast(pa.list_(pa.float32()))], [job.output_name])

    def run(rows: str, output: str) -> None:
        read = session.read.parquet(rows)
        read.mapInArrow(outputs, f"{job.output_name} array<float>").write.parquet(output)

    yield run
    session.stop()


@cache
def kept(job: Job) -> Plain:
    """The model of this process."""
    return Plain(job)


RIVALS: Mapping[str, Callable[[Job], AbstractContextManager[Run]]] = {
    "headrace": headrace,
    "headrace on ray": headrace_on_ray,
    "ray data": ray_data,
    "ray data, sliced": ray_data_sliced,
    "daft": by_daft,
    "spark": by_spark,
}
APART = ("daft", "spark")
"""Those that run in an environment of their own."""


def main() -> None:
    """Print {"ready": …, "took": …}, in s."""
    name, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.perf_counter()
    with RIVALS[name](job) as run:
        run(job.small, f"{job.output}-small")
        ready = time.perf_counter() - began
        began = time.perf_counter()
        run(job.rows, job.output)
        took = time.perf_counter() - began
    rows = sum(pq.read_metadata(file).num_rows for file in Path(job.output).rglob("*.parquet"))
    print(json.dumps({"ready": ready, "took": took, "rows": rows}))


if __name__ == "__main__":
    main()
