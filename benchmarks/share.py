"""`python -m benchmarks.share`: what others notice of a job that shares their server, and how much is done in all.

Clients ask in an open loop, Poisson, at 0.6 of the capacity, by turns without a job and beside one. The ratio of their p99 is
what they notice; what both do together is told as a share of the capacity, which is what a closed loop gets at its best number of
clients. Then the clients ask for 1.5 times the capacity for a while, so that their budget burns: how much less the job does two
seconds after the server says so, and how long after the burn it does 0.9 of what it did before. `mid` gains much from larger
batches, `magika` nothing. Job, generator and server share the machine's cores. Writes benchmarks/results/share.json, and prints
tables.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tritonclient.grpc as triton
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import load
from benchmarks.budgets import CLIENTS, FULL_BATCHES, LEAST_MS, OBJECTIVE
from benchmarks.harness import check_release, ratios, write
from benchmarks.jobs import rows_of
from benchmarks.models import MODELS, Model, build_repository, build_variant
from benchmarks.servers import BUILD, REPOSITORY, Server
from headrace.clock import MILLISECOND, SECOND
from headrace.load.generator import LoadPlan, run
from headrace.protocol.headrace_pb2 import ModelMetadataResponse
from headrace.protocol.slack import Slack

NAMES = ("mid", "magika")
ONLINE, TOO_MUCH = 0.6, 1.5
BEFORE, BURST, AFTER = 8, 8, 20
"""Seconds of the burn."""
WITHIN, BACK = 2.0, 0.9
ALLOWED = 0.01
FILE_ROWS = 4096
CLASSES = "priority_levels: 2 default_priority_level: 1"
JOB = """
import os, sys, threading, time
from headrace.jobs import BatchJob, Server
from headrace.machine import SWITCH_SECONDS
os.nice(10)
sys.setswitchinterval(SWITCH_SECONDS)
job = BatchJob(sys.argv[1], Server(sys.argv[2]), sys.argv[3], sys.argv[4])
threading.Thread(target=job.run, daemon=True).start()
while True:
    print(time.monotonic_ns(), job.progress.rows, flush=True)
    time.sleep(0.05)
"""
"""A job as the command line runs it, that says how far it is twenty times a second."""


@dataclass(frozen=True)
class Shared:
    """A server, the model that is asked for, how many requests a second it answers at most, and in how many ms each is to be."""

    server: Server
    model: str
    capacity: float
    good_ms: float


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.share", description="Measure a job that shares a server.")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of a load without a job, and beside one")
    parser.add_argument("--any-build", action="store_true", help="to try it: with kernels that are not a release build")
    given = parser.parse_args()
    if not given.any_build:
        check_release()
    found = {name: measure(MODELS[name], given.rounds, given.seconds) for name in given.models}
    write("share", {"online": ONLINE, "models": found})


def measure(model: Model, rounds: int, seconds: float) -> dict[str, Any]:
    """A job beside requests for one model."""
    root = build_variant(BUILD / f"share-{model.name}", build_repository(REPOSITORY), model, "onnxruntime", CLASSES)
    with server_of(root) as server:
        capacity = max(load.run(server, model.name, clients, 3.0).rate for clients in CLIENTS)
    good_ms = max(LEAST_MS, round(FULL_BATCHES * 1000 * model.max_rows / capacity))
    (root / "slo").mkdir(exist_ok=True)
    objective = OBJECTIVE.format(ms=good_ms, target=1 - ALLOWED).replace("model: mid,", f"model: {model.name}, classes: [1],")
    (root / "slo" / "objective.yaml").write_text(objective)
    files = write_files(model, int(capacity * (seconds + BEFORE + BURST + AFTER)))
    readings: dict[str, list[float]] = {"p99 alone": [], "p99 beside": [], "total": [], "fall": [], "recovery_s": []}
    with server_of(root) as server:
        shared = Shared(server, model.name, capacity, good_ms)
        load.run(server, model.name, CLIENTS[0], 3.0)  # it learns how long batches run
        for number in range(rounds):
            p99, _ = asked(shared, seconds, number)
            readings["p99 alone"].append(p99)
            with job(shared, files) as rows:
                p99, total = beside(shared, rows, seconds, number)
                fall, recovery = burnt(shared, rows, number)
            readings["p99 beside"].append(p99)
            readings["total"].append(total / capacity)
            readings["fall"].append(fall)
            readings["recovery_s"].append(recovery)
    summary = {
        "p99, beside over alone": ratios(readings["p99 beside"], readings["p99 alone"]),
        "done in all, of the capacity": ratios(readings["total"], [1.0] * rounds),
        f"rate lost {WITHIN:g} s into a burn": ratios(readings["fall"], [1.0] * rounds),
        f"seconds until {BACK:g} of it are back": ratios(readings["recovery_s"], [1.0] * rounds),
    }
    title = f"{model.name}: a job beside {ONLINE:g} of {capacity:.0f} requests/s, S = {good_ms:g} ms"
    table = Table("", "median", "least", "most", title=title)
    for name, values in summary.items():
        table.add_row(name, *(f"{value:.3f}" for value in values))
    Console().print(table)
    return {"capacity": capacity, "S_ms": good_ms, "summary": summary, "readings": readings}


def server_of(root: Path) -> Server:
    """The server that is shared."""
    command = [sys.executable, "-m", "headrace", "serve", f"--repository={root}", "--transport=native"]
    return Server("share", [*command, "--grpc=127.0.0.1:0", "--http=none", "--metrics=none"])


def write_files(model: Model, rows: int) -> Path:
    """At least so many rows: one file by many names."""
    directory = BUILD / "share-rows"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    cells = pa.FixedSizeListArray.from_arrays(pa.array(rows_of(model, FILE_ROWS).reshape(-1)), model.input[2])
    first = directory / "00000.parquet"
    pq.write_table(pa.table({model.input[0]: cells}), first, use_dictionary=False, compression="none")
    for number in range(1, -(-rows // FILE_ROWS)):
        os.link(first, directory / f"{number:05}.parquet")
    return directory


class Rows:
    """What a job has said of its progress: instants (ns), and rows up to each."""

    def __init__(self) -> None:
        self._told: list[tuple[int, int]] = []

    def listen(self, process: subprocess.Popen[str]) -> None:
        """Until it ends."""
        assert process.stdout is not None
        for line in process.stdout:
            at, rows = line.split()
            self._told.append((int(at), int(rows)))

    @property
    def have_begun(self) -> bool:
        """Whether any have run."""
        return bool(self._told) and self._told[-1][1] > 0

    def rate(self, begin: int, end: int) -> float:
        """Rows a second between two instants."""
        at, rows = (np.array(column, np.float64) for column in zip(*self._told, strict=True))
        return float(np.interp(end, at, rows) - np.interp(begin, at, rows)) / (end - begin) * SECOND


@contextmanager
def job(shared: Shared, files: Path) -> Iterator[Rows]:
    """A job that has begun, and is killed in the end."""
    rows = Rows()
    with tempfile.TemporaryDirectory(dir=BUILD) as output:
        command = [sys.executable, "-c", JOB, shared.model, shared.server.address, str(files), output]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            listening = threading.Thread(target=rows.listen, args=(process,))
            listening.start()
            try:
                while not rows.have_begun:
                    if process.poll() is not None:
                        sys.exit("the job has ended")
                    time.sleep(0.05)
                time.sleep(2)  # until it has found its measure
                yield rows
            finally:
                process.kill()
                listening.join()


def asked(shared: Shared, seconds: float, seed: int) -> tuple[float, float]:
    """The clients' p99 (ns), and requests answered in a second."""
    rate = ONLINE * shared.capacity
    plan = LoadPlan(shared.server.address, shared.model, arrivals="poisson", rate=rate, warm_up=1.0, seconds=seconds, seed=seed)
    samples = run(plan, lambda look: None).samples
    answered = samples[samples["code"] == 0]
    return float(np.quantile(answered["done"] - answered["due"], 0.99)), len(answered) / seconds


def beside(shared: Shared, rows: Rows, seconds: float, seed: int) -> tuple[float, float]:
    """The clients' p99 (ns) beside the job, and what is done in a second in all."""
    begin = time.monotonic_ns()
    p99, rate = asked(shared, seconds, seed)
    return p99, rate + rows.rate(begin + SECOND, time.monotonic_ns())


def burnt(shared: Shared, rows: Rows, seed: int) -> tuple[float, float]:
    """By how much the job does less while the budget burns; how long (s) until it does what it did, after that.

    That is infinite if it never does.
    """
    at, begin, random = list[NDArray[np.float64]](), 0.0, np.random.default_rng(seed)
    for seconds, rate in ((BEFORE, ONLINE), (BURST, TOO_MUCH), (AFTER, ONLINE)):
        at.append(begin + np.sort(random.uniform(0, seconds, random.poisson(rate * shared.capacity * seconds))))
        begin += seconds
    good = int(shared.good_ms * MILLISECOND)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file, burns(shared) as seen:
        file.write("\n".join(f"{instant:.6f}" for instant in np.concatenate(at)))
        file.flush()
        told: dict[str, Any] = {"arrivals": file.name, "objective": good, "deadline": good, "warm_up": 0, "seconds": begin}
        since = time.monotonic_ns()
        run(LoadPlan(shared.server.address, shared.model, **told), lambda look: None)
        until = time.monotonic_ns()
    burning = [instant for instant, burn in seen if burn >= 1 and instant > since + BEFORE * SECOND]
    if not burning:
        sys.exit("no budget has burnt: there is nothing to measure")
    usual = rows.rate(since + SECOND, since + BEFORE * SECOND)
    if not usual:
        sys.exit("the job had no room before the burst: there is nothing to measure")
    first, last = burning[0] + int(WITHIN * SECOND), since + (BEFORE + BURST) * SECOND
    fall = 1 - rows.rate(first, last) / usual
    looks = range(burning[-1], until - SECOND, SECOND // 10)
    back = next((look for look in looks if rows.rate(look, look + SECOND) >= BACK * usual), None)
    return fall, float("inf") if back is None else (back - burning[-1]) / SECOND


@contextmanager
def burns(shared: Shared) -> Iterator[list[tuple[int, float]]]:
    """What the server says of the burn, ten times a second: instants (ns) and rates."""
    seen, is_over = list[tuple[int, float]](), threading.Event()

    def look() -> None:
        with triton.InferenceServerClient(shared.server.address) as client:
            while not is_over.wait(0.1):
                told: Any = client.get_model_metadata(shared.model)
                slack = Slack.of(ModelMetadataResponse.FromString(told.SerializeToString()).properties)
                seen.append((time.monotonic_ns(), slack.burn or 0.0))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


if __name__ == "__main__":
    main()
