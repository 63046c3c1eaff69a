"""`python -m benchmarks.jobs`: a batch job beside onnxruntime in a loop over the same rows in memory.

The loop has the rows as an array, its best size of batches and a thread for each core; it reads nothing and writes nothing. The
job reads Parquet and writes Parquet, or Arrow and Arrow: of the tiny model, pyarrow takes about as long to decode the lists of a
row from Parquet as the model takes for the row. A job's time is that from the first read to the last record: that the model is
loaded and measured is not in it. And what it costs to stop a job half way and to go on with it. Writes
benchmarks/results/jobs.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import feather
from rich.console import Console
from rich.table import Table

from benchmarks.harness import ratios, write
from benchmarks.models import MODELS, Model, build_repository
from benchmarks.raw_loop import best_batch, session_of
from benchmarks.servers import BUILD, REPOSITORY
from headrace.errors import JobStopped
from headrace.jobs import BatchJob, Options
from headrace.machine import SWITCH_SECONDS
from headrace.tensor import DTYPES

NAMES = ("tiny", "mid", "magika")
FILES = 4
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


def job(model: Model, files: Path, form: Form, *, is_interrupted: bool = False) -> tuple[float, float]:
    """Rows a second of a job; and how long all of it took, in s, of which two runs if it was stopped half way."""
    output = BUILD / "jobs" / "out"
    shutil.rmtree(output, ignore_errors=True)
    options = Options(format=form)
    began = time.perf_counter()
    if is_interrupted:
        first = BatchJob(model.name, REPOSITORY, files, output, options)
        threading.Thread(target=_stop_half_way, args=(first,), daemon=True).start()
        try:
            first.run()
            sys.exit("the job was over before it could be stopped: give it more seconds")
        except JobStopped:
            pass
    done = BatchJob(model.name, REPOSITORY, files, output, options, resume=is_interrupted).run()
    return done.rate, time.perf_counter() - began


def _stop_half_way(running: BatchJob) -> None:
    while not (now := running.progress).total_rows or now.splits < now.total_splits // 2:
        time.sleep(0.001)
    running.stop()


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
        "model", "Parquet, rows/s", "Arrow, rows/s", "time, stopped half way", title="A job beside a loop over the same rows"
    )
    for name in given.models:
        model = MODELS[name]
        session = session_of(REPOSITORY, model)
        size, rate = best_batch(session, model)
        rows = rows_of(model, int(given.seconds * rate * (os.cpu_count() or 1)) // size * size)
        files = {form: write_rows(model, rows, BUILD / "jobs" / f"{name}-{form}", form) for form in FORMS}
        job(model, files["arrow"], "arrow")  # measures the model, once for all
        readings: dict[str, list[float]] = {"loop": [], "whole": [], "resumed": [], **{form: [] for form in FORMS}}
        for _ in range(given.rounds):
            readings["loop"].append(loop(session, model, rows, size))
            readings["arrow"].append(job(model, files["arrow"], "arrow")[0])
            rate, whole = job(model, files["parquet"], "parquet")
            readings["parquet"].append(rate)
            readings["whole"].append(whole)
            readings["resumed"].append(job(model, files["parquet"], "parquet", is_interrupted=True)[1])
        beside = {form: ratios(readings[form], readings["loop"]) for form in FORMS}
        resumed = ratios(readings["resumed"], readings["whole"])
        told = (*beside.values(), resumed)
        table.add_row(name, *(f"{median:.3f} ({least:.3f} – {most:.3f})" for median, least, most in told))
        found[name] = {"rows": len(rows), "loop_batch": size, "beside_loop": beside, "resumed": resumed, "readings": readings}
    Console().print(table)
    write("jobs", {"rounds": given.rounds, "models": found})


if __name__ == "__main__":
    main()
