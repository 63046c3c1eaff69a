"""`python -m benchmarks.transports`: the native and the portable transport against a bare grpc.aio front.

All of them serve the same model with one instance and one thread; NVIDIA's perf_analyzer asks, in a closed loop. A round takes
every server once for each number of clients, so that what the machine does meanwhile happens to all; compared are the ratios
within a round, and what is reported is their median and their spread. Writes benchmarks/results/transports-MODEL.json and prints
a table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import perf_analyzer, servers
from benchmarks.models import MODELS, build_repository
from headrace import kernels

CLIENTS = (1, 16, 64)
RESULTS = servers.ROOT / "benchmarks" / "results"
RIVAL = "grpc.aio"


@dataclass(frozen=True)
class Reading:
    """One server in one round: requests/s, median latency (us), server CPU (ms per 1000 requests), requests a batch."""

    rate: float
    p50: float
    cpu: float
    batch: float


def measure(start: Callable[[], servers.Server], model: str, clients: int, seconds: float) -> Reading:
    """Start a server, warm it up, ask it."""
    with start() as server:
        perf_analyzer.run(server.address, model, clients, 0.3)
        requests, batches = server.counts(model)
        cpu = server.cpu_seconds()
        report = perf_analyzer.run(server.address, model, clients, seconds)
        cpu = server.cpu_seconds() - cpu
        after, batches_after = server.counts(model)
    count = after - requests
    return Reading(report.rate, report.p50, 1e6 * cpu / count, count / (batches_after - batches))


def main() -> None:
    """Measure, print, write."""
    about = "Measure the transports against a bare grpc.aio front."
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transports", description=about)
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one of perf_analyzer's three windows")
    given = parser.parse_args()
    build = kernels.load().PROFILE
    if build != "release":
        sys.exit(f"the kernels are a {build} build: run make kernels, then measure")
    repository = build_repository(servers.ROOT / "build" / "benchmarks" / "repository")
    rivals: dict[str, Callable[[], servers.Server]] = {
        RIVAL: lambda: servers.reference(repository, given.model),
        "portable": lambda: servers.headrace(repository, "portable"),
        "native": lambda: servers.headrace(repository, "native"),
    }
    readings: dict[int, dict[str, list[Reading]]] = {clients: defaultdict(list) for clients in CLIENTS}
    order = [(clients, name) for _ in range(given.rounds) for clients in CLIENTS for name in rivals]
    for clients, name in track(order, description=f"{given.model}, {given.rounds} rounds", transient=True):
        readings[clients][name].append(measure(rivals[name], given.model, clients, given.seconds))
    summary = summarise(readings)
    show(given.model, summary)
    RESULTS.mkdir(exist_ok=True)
    written = RESULTS / f"transports-{given.model}.json"
    told = {clients: {name: [asdict(r) for r in each] for name, each in by.items()} for clients, by in readings.items()}
    written.write_text(json.dumps({"machine": machine(), "summary": summary, "readings": told}, indent=1) + "\n")
    print(f"written: {written.relative_to(servers.ROOT)}")


Summary = dict[str, dict[str, dict[str, list[float]]]]
"""By clients, by server: quantity → [median ratio to the rival, least, most]."""


def summarise(readings: dict[int, dict[str, list[Reading]]]) -> Summary:
    """Ratios to the bare front, within rounds."""
    found: Summary = {}
    for clients, by in readings.items():
        for name, mine in by.items():
            if name == RIVAL:
                continue
            for quantity in ("rate", "cpu", "p50"):
                ratios = [getattr(a, quantity) / getattr(b, quantity) for a, b in zip(mine, by[RIVAL], strict=True)]
                spread = [statistics.median(ratios), min(ratios), max(ratios)]
                found.setdefault(str(clients), {}).setdefault(name, {})[quantity] = [round(ratio, 3) for ratio in spread]
    return found


def show(model: str, summary: Summary) -> None:
    """The table: medians, and the spread over the rounds."""
    table = Table("clients", "server", "throughput", "server CPU per request", "p50", title=f"{model}, as a multiple of {RIVAL}")
    for clients, by in summary.items():
        for name, ratios in by.items():
            cells = [f"{ratios[q][0]:.2f} ({ratios[q][1]:.2f} – {ratios[q][2]:.2f})" for q in ("rate", "cpu", "p50")]
            table.add_row(clients, name, *cells)
    Console(width=110).print(table)


def machine() -> dict[str, object]:
    """What it was measured on and with."""
    described = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    cpu = next((value.strip() for key, _, value in described if key.strip() == "model name"), "")
    packages = ("headrace", "headrace-kernels", "onnxruntime", "numpy", "grpcio", "protobuf", "uvloop", "tritonclient")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "perf_analyzer": "of tritonclient 2.50.0, --async, closed loop",
        "commit": git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain") else ""),
    }


def git(*arguments: str) -> str:
    """What git says."""
    done = subprocess.run(["git", *arguments], cwd=servers.ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
