"""`python -m benchmarks.jobs`: a batch job beside onnxruntime in a loop over the same rows in memory.

The loop has the rows as an array, its best size of batches and a thread for each core; it reads nothing and writes nothing. As
nobody waits for a job, the perceptrons may have batches of thousands here. The job reads Parquet and writes Parquet, or Arrow
and Arrow. A job's time is that from the first read to the last record: that the model is loaded and measured is not in it. *At
most* is what whoever does the loop's work and has pyarrow read and write the same files could have, if both cost as much CPU
together as each does alone, on all cores: of the tiny model, pyarrow takes longer for a row of Parquet than the model does.

And what it costs to stop a job half way and to go on with it: what it takes to end and to begin again, and the rows that run
twice, which are at most those of a split. Writes benchmarks/results/jobs.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from collections import defaultdict
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import feather, ipc
from rich.console import Console
from rich.table import Table

from benchmarks.harness import ratios, write
from benchmarks.models import MODELS, Model, build_repository, build_variant
from benchmarks.raw_loop import best_batch, session_of
from benchmarks.servers import BUILD, REPOSITORY
from headrace.errors import JobStopped
from headrace.jobs import BatchJob, Options, Progress
from headrace.jobs.formats.base import PIECE_ROWS
from headrace.machine import SWITCH_SECONDS
from headrace.tensor import DTYPES

NAMES = ("tiny", "mid", "magika")
ROWS = {"tiny": 4096, "mid": 4096}
"""Of a batch, at most, where that is not what the servers are measured with."""
JOBS = BUILD / "jobs" / "repository"
FILES = 4
MOST_ROWS = 8 << 20
"""The loop gets through 8 million rows of the tiny model in less than two seconds, and they are 2 GB in each format."""
Form = Literal["parquet", "arrow"]
FORMS: tuple[Form, ...] = ("parquet", "arrow")


def rows_of(model: Model, rows: int) -> NDArray[Any]:
    """The rows that both get."""
    random = np.random.default_rng(0)
    _, datatype, size = model.input
    if datatype == "FP32":
        return random.standard_normal((rows, size), np.float32)
    return random.integers(0, 256, (rows, size)).astype(DTYPES[datatype])


def write_rows(model: Model, rows: NDArray[Any], directory: Path, form: Form) -> Path:
    """The rows as files, a fixed-size list each."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for number, part in enumerate(np.array_split(rows, FILES)):
        cells = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), part.shape[1])
        table = pa.table({model.input[0]: cells})
        if form == "parquet":
            pq.write_table(table, directory / f"{number}.parquet", use_dictionary=False, compression="none")
        else:
            feather.write_feather(table, str(directory / f"{number}.arrow"), compression="uncompressed", chunksize=1 << 16)
    return directory


def loop(session: ort.InferenceSession, model: Model, rows: NDArray[Any], size: int) -> float:
    """Rows a second of as many threads as there are cores, each with the next batch."""
    places = count()

    def work() -> None:
        while (at := next(places) * size) < len(rows):
            session.run(None, {model.input[0]: rows[at : at + size]})

    threads = [threading.Thread(target=work) for _ in range(os.cpu_count() or 1)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(rows) / (time.perf_counter() - began)


def files_alone(model: Model, files: Path, form: Form) -> float:
    """CPU time of reading the rows, and of writing as many of what the model gives, with pyarrow and nothing else, in s."""
    output = BUILD / "jobs" / "copy"
    output.mkdir(exist_ok=True)
    width = model.output[2]
    made = np.random.default_rng(1).standard_normal((1 << 16, width), np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(made.reshape(-1)), width)
    part = pa.record_batch([column], schema=pa.schema([pa.field(model.output[0], column.type, nullable=False)]))
    began = time.process_time()
    for file in sorted(files.iterdir()):
        # As a job writes: what is in lists has no dictionary and no statistics.
        if form == "parquet":
            to: Any = pq.ParquetWriter(
                output / file.name, part.schema, compression="zstd", use_dictionary=False, write_statistics=False
            )
            read = pq.ParquetFile(file).iter_batches(PIECE_ROWS, use_threads=False)
        else:
            to = ipc.new_file(str(output / file.name), part.schema)
            reader = ipc.open_file(str(file))
            read = map(reader.get_batch, range(reader.num_record_batches))
        with to:
            for batch in read:
                to.write_batch(part.slice(0, batch.num_rows))
    return time.process_time() - began


def job(model: Model, files: Path, form: Form) -> Progress:
    """A job."""
    output = BUILD / "jobs" / "out"
    shutil.rmtree(output, ignore_errors=True)
    return BatchJob(model.name, JOBS, files, output, Options(format=form)).run()


def stopped(model: Model, files: Path, form: Form) -> tuple[float, float, float]:
    """Of a job that is stopped half way and resumed, in s.

    Returns:
        What lies between the stop and its end and between the beginning of the second run and its first read; what it takes to
        run rows again; and how long it would work in one go.
    """
    output = BUILD / "jobs" / "out"
    shutil.rmtree(output, ignore_errors=True)
    first = BatchJob(model.name, JOBS, files, output, Options(format=form))
    stops: list[float] = []

    def stop_half_way() -> None:
        while not (now := first.progress).total_rows or 2 * now.rows < now.total_rows:
            time.sleep(0.001)
        stops.append(time.perf_counter())
        first.stop()

    threading.Thread(target=stop_half_way, daemon=True).start()
    try:
        first.run()
        sys.exit("the job was over before it could be stopped: give it more seconds")
    except JobStopped:
        pass
    second = BatchJob(model.name, JOBS, files, output, Options(format=form), resume=True).run()
    idle = time.perf_counter() - stops[0] - second.seconds
    return idle, (first.progress.rows - second.before) / second.rate, second.total_rows / second.rate


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description="Measure batch jobs.")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one loop, about")
    given = parser.parse_args()
    sys.setswitchinterval(SWITCH_SECONDS)  # as `headrace batch` does
    build_repository(REPOSITORY)
    found: dict[str, Any] = {}
    table = Table(
        *("model", "Parquet, rows/s", "at most", "Arrow, rows/s", "at most", "stopped: idle", "stopped: rows again"),
        title="A job beside a loop over the same rows",
    )
    for name in given.models:
        model = replace(MODELS[name], max_rows=ROWS.get(name, MODELS[name].max_rows))
        build_variant(JOBS, REPOSITORY, model, "onnxruntime")
        session = session_of(JOBS, model)
        size, rate = best_batch(session, model, model.max_rows)
        rows = rows_of(model, min(MOST_ROWS, int(given.seconds * rate * (os.cpu_count() or 1))) // size * size)
        files = {form: write_rows(model, rows, BUILD / "jobs" / f"{name}-{form}", form) for form in FORMS}
        job(model, files["arrow"], "arrow")  # measures the model, once for all
        readings: defaultdict[str, list[float]] = defaultdict(list)
        for _ in range(given.rounds):
            began = time.process_time()
            readings["loop"].append(loop(session, model, rows, size))
            readings["loop_cpu"].append(time.process_time() - began)
            for form in FORMS:
                readings[form].append(job(model, files[form], form).rate)
                readings[f"{form}_cpu"].append(readings["loop_cpu"][-1] + files_alone(model, files[form], form))
            for key, seconds in zip(("idle", "again", "whole"), stopped(model, files["parquet"], "parquet"), strict=True):
                readings[key].append(seconds)
        told = {
            "parquet": ratios(readings["parquet"], readings["loop"]),
            "parquet_at_most": ratios(readings["loop_cpu"], readings["parquet_cpu"]),
            "arrow": ratios(readings["arrow"], readings["loop"]),
            "arrow_at_most": ratios(readings["loop_cpu"], readings["arrow_cpu"]),
            "stopped_idle": ratios(readings["idle"], readings["whole"]),
            "stopped_again": ratios(readings["again"], readings["whole"]),
        }
        table.add_row(name, *(f"{median:.3f} ({least:.3f} – {most:.3f})" for median, least, most in told.values()))
        found[name] = {"rows": len(rows), "loop_batch": size, **told, "readings": readings}
    Console().print(table)
    write("jobs", {"rounds": given.rounds, "models": found})


if __name__ == "__main__":
    main()
