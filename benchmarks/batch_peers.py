"""`python -m benchmarks.batch_peers`: a batch job by Headrace, here and on Ray, beside Ray Data, Daft and PySpark.

From Parquet to Parquet, the same rows, a thread of onnxruntime a batch, as many batches at once as there are cores, the size of
batches at which a loop is fastest. The others run onnxruntime in a class or a function, as their documentation shows
(`batch_rivals.py`). What counts is the time of the job, with the model loaded and the output written, when Ray, Spark or whatever
it is are up and have done a small one; how long that takes is told apart. Daft and PySpark are installed into an environment of
their own. Writes benchmarks/results/batch-peers.json, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.batch_rivals import APART, RIVALS, Job
from benchmarks.harness import in_turn, ratios, write
from benchmarks.jobs import rows_of, write_rows
from benchmarks.models import MODELS, Model, build_repository
from benchmarks.raw_loop import best_batch, session_of
from benchmarks.servers import BUILD, REPOSITORY, ROOT

HOME = BUILD / "batch-peers"
OURS = ("headrace", "headrace on ray")
PACKAGES = ("daft", "pyspark", "pandas", "numpy", "pyarrow", "onnxruntime")
MODEL_NAMES = ("mid", "magika")
SMALL_ROWS = 2048


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch_peers", description="Measure batch jobs beside others'.")
    parser.add_argument("--models", nargs="+", choices=MODEL_NAMES, default=MODEL_NAMES)
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=tuple(RIVALS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a loop over the rows of a job, about")
    given = parser.parse_args()
    if "spark" in given.rivals and shutil.which("java") is None:
        sys.exit("PySpark needs Java: apt-get install default-jre-headless, or leave it out (--rivals)")
    build_repository(REPOSITORY)
    pythons = {name: apart() if name in APART else sys.executable for name in given.rivals}
    found: dict[str, Any] = {}
    for name in given.models:
        job, rows = job_of(MODELS[name], given.seconds)
        readings: dict[str, list[dict[str, float]]] = {rival: [] for rival in given.rivals}
        for number in range(given.rounds):
            for rival in in_turn(given.rivals, number):
                reading = measure(pythons[rival], rival, job)
                if reading["rows"] != rows:
                    sys.exit(f"{rival} wrote {reading['rows']} rows of {rows}")
                readings[rival].append(reading)
                print(f"{name}, round {number + 1}: {rival}: {rows / reading['took']:.0f} rows/s", flush=True)
        found[name] = {"rows": rows, "batch": job.batch, "readings": readings, "summary": summarise(readings)}
        show(name, found[name])
    write("batch-peers", {"rounds": given.rounds, "models": found})


def apart() -> str:
    """The interpreter that has Daft and PySpark; installed if it is not there."""
    home = HOME / "environment"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (home / "complete").touch()
    return str(python)


def job_of(model: Model, seconds: float) -> tuple[Job, int]:
    """The job, and how many rows it has."""
    batch, rate = best_batch(session_of(REPOSITORY, model), model)
    cores = os.cpu_count() or 1
    rows = int(seconds * rate * cores) // batch * batch
    home = HOME / model.name
    small = write_rows(model, rows_of(model, SMALL_ROWS), home / "small", "parquet")
    whole = write_rows(model, rows_of(model, rows), home / "rows", "parquet")
    file = REPOSITORY / model.name / "1" / "model.onnx"
    told = (model.name, str(REPOSITORY), str(file), model.input[0], model.output[0], model.output[2], batch, cores)
    return Job(*told, str(small), str(whole), str(home / "out")), rows


def measure(python: str, rival: str, job: Job) -> dict[str, float]:
    """One run in a process of its own."""
    for output in (job.output, f"{job.output}-small"):
        shutil.rmtree(output, ignore_errors=True)
    command = [python, "-m", "benchmarks.batch_rivals", rival, json.dumps(asdict(job))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "runtime"), str(ROOT)))}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{rival} failed:\n{ended.stderr[-4000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def summarise(readings: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """By rival, how many times as fast ours are: median, least, most; and how long it takes to be ready, in s."""
    took = {rival: [reading["took"] for reading in each] for rival, each in readings.items()}
    return {
        rival: {
            **{f"{ours}, times as fast": ratios(took[rival], took[ours]) for ours in OURS if ours in took},
            "ready_seconds": round(statistics.median(reading["ready"] for reading in readings[rival]), 2),
        }
        for rival in readings
    }


def show(name: str, found: dict[str, Any]) -> None:
    """As a table."""
    table = Table("", *(f"{ours}, times as fast" for ours in OURS), "ready", title=f"{name}, {found['rows']} rows")
    for rival, told in found["summary"].items():
        cells = (told.get(f"{ours}, times as fast") for ours in OURS)
        texts = ("" if each is None else f"{each[0]:.2f} ({each[1]:.2f} – {each[2]:.2f})" for each in cells)
        table.add_row(rival, *texts, f"{told['ready_seconds']:.1f} s")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
