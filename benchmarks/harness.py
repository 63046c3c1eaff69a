"""What every comparison goes through: rivals side by side in interleaved rounds, ratios within a round, their median and spread.

What the machine does meanwhile happens to all of a round, so the ratios within it are worth something where absolute times are
not. A result names machine, versions and commit, and is written as JSON and as a picture.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.servers import ROOT, Server, Start
from headrace import kernels

RESULTS = ROOT / "benchmarks" / "results"
CLIENTS = (1, 16, 64)
"""Of a closed loop."""


class Report(NamedTuple):
    """What a load generator says: requests/s, latencies in us, its own CPU time in s, cores that its sending thread kept busy.

    `sent` is how many requests there were in all, where it says that.
    """

    rate: float
    p50: float
    p99: float
    cpu: float
    cores: float = 0.0
    sent: int = 0


@dataclass(frozen=True)
class Reading:
    """One rival in one round: requests/s, latencies (us), CPU of server and client (ms per 1000 requests), requests a batch.

    `client_cores` is how busy the client's sending thread was: near 1, the client is what was measured.
    """

    rate: float
    p50: float = 0.0
    p99: float = 0.0
    cpu: float = 0.0
    client_cpu: float = 0.0
    batch: float = 0.0
    client_cores: float = 0.0


class Case(NamedTuple):
    """What is asked: a model, by so many clients."""

    model: str
    clients: int

    def __str__(self) -> str:
        return f"{self.model} {self.clients}"


Load = Callable[[Server, str, int, float], Report]
"""(server, model, clients, seconds) → what it was like, in a closed loop."""
Readings = dict[Case, dict[str, list[Reading]]]
Summary = dict[str, dict[str, dict[str, list[float]]]]
"""By case, by rival: quantity → [median ratio to the yardstick, least, most]."""
QUANTITIES = ("rate", "cpu", "p50")


def measure(server: Server, case: Case, load: Load, seconds: float) -> Reading:
    """One load on a server that runs."""
    requests, batches = server.counts(case.model)
    cpu = server.cpu_seconds()
    report = load(server, case.model, case.clients, seconds)
    cpu = server.cpu_seconds() - cpu
    after, batches_after = server.counts(case.model)
    # All of them, the warm-up, too: that is what the CPU time was for.
    count = report.sent or max(1, after - requests)
    batch = count / max(1, batches_after - batches)
    return Reading(report.rate, report.p50, report.p99, 1e6 * cpu / count, 1e6 * report.cpu / count, batch, report.cores)


def in_turn(names: Iterable[str], number: int) -> list[str]:
    """The order of a round. Who goes first takes turns: what the machine does now and then shall not always meet the same one."""
    order = deque(names)
    order.rotate(-number)
    return [*order]


def compare(
    rivals: Mapping[str, Start], cases: Sequence[Case], load: Load, *, rounds: int, seconds: float, is_fresh: bool
) -> Readings:
    """Every rival in every case, round by round.

    Args:
        rivals: by name, how to start each.
        cases: what to ask.
        load: what asks.
        rounds: how often.
        seconds: of one load.
        is_fresh: start a server for each load, instead of letting all of them run, idle but for one.
    """
    readings: Readings = {case: {name: [] for name in rivals} for case in cases}
    order = [(case, name) for number in range(rounds) for case in cases for name in in_turn(rivals, number)]
    with ExitStack() as running:
        servers = {} if is_fresh else {name: running.enter_context(start()) for name, start in rivals.items()}
        for case, name in _tracked(order, rounds):
            if is_fresh:
                with rivals[name]() as server:
                    reading = measure(server, case, load, seconds)
            else:
                reading = measure(servers[name], case, load, seconds)
            readings[case][name].append(reading)
    return readings


def _tracked(order: Sequence[tuple[Case, str]], rounds: int) -> Iterable[tuple[Case, str]]:
    return track(order, description=f"{rounds} rounds", transient=True)


def charged(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command to its end; what it said, and its CPU time in s."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ratios(mine: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """Median, least and most of the ratios within rounds."""
    found = [a / b for a, b in zip(mine, theirs, strict=True)]
    return [round(value, 3) for value in (statistics.median(found), min(found), max(found))]


def differences(mine: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """Median, least and most of the differences within rounds."""
    found = [a - b for a, b in zip(mine, theirs, strict=True)]
    return [round(value, 3) for value in (statistics.median(found), min(found), max(found))]


def summarise(readings: Readings, yardstick: str) -> Summary:
    """Ratios to the yardstick, within rounds."""
    found: Summary = {}
    for case, by in readings.items():
        for name, mine in by.items():
            if name == yardstick:
                continue
            for quantity in QUANTITIES:
                each = ([getattr(reading, quantity) for reading in those] for those in (mine, by[yardstick]))
                found.setdefault(str(case), {}).setdefault(name, {})[quantity] = ratios(*each)
    return found


def show(title: str, summary: Summary) -> None:
    """The table: medians, and the spread over the rounds."""
    table = Table("case", "server", "throughput", "server CPU per request", "p50", title=title)
    for case, by in summary.items():
        for name, told in by.items():
            cells = [f"{told[q][0]:.2f} ({told[q][1]:.2f} – {told[q][2]:.2f})" for q in QUANTITIES]
            table.add_row(case, name, *cells)
    Console(width=120).print(table)


def write(name: str, result: Mapping[str, object]) -> Path:
    """A result with machine, versions and commit."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    print(f"written: {file.relative_to(ROOT)}")
    return file


def told(readings: Readings) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Readings for JSON."""
    return {
        str(case): {name: [{k: round(v, 2) for k, v in asdict(r).items()} for r in each] for name, each in by.items()}
        for case, by in readings.items()
    }


def draw(name: str, summary: Summary, yardstick: str, quantities: Mapping[str, str]) -> None:
    """Ratios as bars with their spread, one panel a quantity; `quantities`: which, and their titles."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(quantities), 0.42 * len(summary) * 2 + 1.4), layout="constrained")
    rivals = list(dict.fromkeys(rival for by in summary.values() for rival in by))
    for panel, (quantity, title) in enumerate(quantities.items(), 1):
        axes = figure.add_subplot(1, len(quantities), panel)
        for place, rival in enumerate(rivals):
            rows = [(n, by[rival][quantity]) for n, by in enumerate(summary.values()) if rival in by]
            at = [n + 0.8 * (place + 0.5) / len(rivals) - 0.4 for n, _ in rows]
            medians = [values[0] for _, values in rows]
            spread = [[v[0] - v[1] for _, v in rows], [v[2] - v[0] for _, v in rows]]
            axes.barh(at, medians, 0.8 / len(rivals), label=rival)
            axes.errorbar(medians, at, xerr=spread, fmt="none", ecolor="0.3", capsize=2, lw=1)
        axes.axvline(1, color="0.2", lw=1, ls="--")
        axes.set_yticks(range(len(summary)), list(summary))
        axes.invert_yaxis()
        axes.set(title=f"{title}, {yardstick} = 1")
        axes.legend(frameon=False, fontsize=8)
    figure.set_dpi(72)
    FigureCanvasSVG(figure).print_svg(str(RESULTS / f"{name}.svg"), metadata={"Date": None})


def check_release() -> None:
    """Leave where the kernels are not a release build: their speed means nothing."""
    build = kernels.load().PROFILE
    if build != "release":
        sys.exit(f"the kernels are a {build} build: run make kernels, then measure")


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
        "packages": {name: _version(name) for name in packages},
        "commit": git("rev-parse", "--short", "HEAD") + (" with changes" if changes() else ""),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def changes() -> str:
    """What is not committed, results left out."""
    return git("status", "--porcelain", "--", ".", ":!benchmarks/results")


def git(*arguments: str) -> str:
    """What git says."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
