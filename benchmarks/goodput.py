"""`python -m benchmarks.goodput`: what is answered in time when more is asked than can be done.

Clients ask in an open loop, Poisson, and each gives up after S and tells the server so; good is what comes before. Rivals, all
with the same files, one instance and one thread: Headrace as it is; the *plain plan*, which takes as many as fit in the order of
arrival and foretells nothing (`admission` = `open`); the plain plan with a queue timeout of S, and of S less two full batches;
the plain plan and a real Triton whose clients do not tell and judge by their own clock; and that Triton with the best of a few
queue timeouts. (Triton 2.51 with a queue timeout crashes when clients give up, so they do not.) The capacity is what the plain
plan does in a closed loop at its best number of clients. Generator and servers share the machine's cores. Writes
benchmarks/results/goodput-MODEL.json and .svg, or goodput-MODEL-LOADS.json of a few loads, and prints a table.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import load, servers
from benchmarks.harness import RESULTS, check_release, in_turn, ratios, write
from benchmarks.models import MODELS, Model, build_repository, build_variant
from benchmarks.servers import BUILD, Server, Start
from tools import triton_server

OURS, PLAIN, SILENT, UNTUNED, TUNED = "headrace", "plain", "plain, not told", "plain, timeout S", "plain, timeout S-2l"
TRITON, TUNED_TRITON = "triton-python", "triton-python, tuned"
NOT_TOLD = (SILENT, TRITON, TUNED_TRITON)
"""A load may leave much behind in their queues: they are started anew for each."""
CLIENTS = (16, 32, 64, 128)
LOADS = (0.5, 1.0, 1.5, 2.0)
OVERLOAD = 1.5
"""Where Triton's timeout is tuned, and where the promises are."""
FULL_BATCHES = 5
"""S is so many full batches long."""
LEAST_MS = 20.0
TIMEOUTS = (0.25, 0.5, 0.75)
"""Of S: those that are tried on Triton."""
OPEN = 'parameters { key: "admission" value { string_value: "open" } }\n'


@dataclass(frozen=True)
class Case:
    """What is asked of all rivals: a model, when an answer is good, and how long a full batch takes, in ms."""

    model: Model
    clients: int
    good_ms: float
    batch_ms: float


@dataclass(frozen=True)
class Reading:
    """One rival under one load. `goodput` and `rate` are parts of the capacity, `p99` (of what was answered) is one of S.

    `cpu` is the server's, in ms per 1000 requests that were sent to it, `batch` requests a batch, `client_cores` how busy the
    generator's sending thread was, and `lag` how late it sent 1 in 100, in ms.
    """

    goodput: float
    rate: float
    p99: float
    cpu: float
    batch: float
    errors: Mapping[str, int]
    client_cores: float
    lag: float


Readings = dict[float, dict[str, list[Reading]]]
"""By load, by rival."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.goodput", description="Measure goodput under overload.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["mid", "magika"])
    parser.add_argument("--loads", nargs="+", type=float, default=LOADS, help="of the capacity")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one load")
    parser.add_argument("--without-triton", action="store_true")
    given = parser.parse_args()
    check_release()
    repository = build_repository(servers.REPOSITORY)
    peer = f"Triton {triton_server.TRITON} of {triton_server.PACKAGE}, Python backend running onnxruntime"
    for name in given.models:
        case, rivals, chosen = prepare(repository, MODELS[name], given.seconds, with_triton=not given.without_triton)
        readings, capacities = compare(rivals, case, given.loads, given.rounds, given.seconds)
        summary = summarise(readings)
        asked = {"S_ms": case.good_ms, "full_batch_ms": case.batch_ms, "clients_at_capacity": case.clients}
        told = {f"{at:g}": {rival: [asdict(r) for r in each] for rival, each in by.items()} for at, by in readings.items()}
        found: dict[str, Any] = {"load": "headrace bench load, Poisson, deadline S", "triton": peer, "model": name, **asked}
        found |= {"timeout_of_tuned_triton_of_S": chosen, "promises": promises(readings), "capacity": capacities}
        # A few loads, with more rounds than there is time for with all, have a result of their own.
        is_whole = set(given.loads) == set(LOADS)
        which = name if is_whole else "-".join((name, *(f"{at:g}x" for at in given.loads)))
        write(f"goodput-{which}", found | {"summary": summary, "readings": told})
        if is_whole:
            draw(name, summary)
        show(f"{name}: S = {case.good_ms:g} ms, a full batch takes {case.batch_ms:g} ms", summary)
        print({key: tuple(value) for key, value in found["promises"].items()})


def prepare(repository: Path, model: Model, seconds: float, *, with_triton: bool) -> tuple[Case, dict[str, Start], float | None]:
    """Find capacity, S and the best timeout of Triton; the rivals, and that timeout as a part of S."""
    home = BUILD / "goodput"

    def ours(name: str, parameters: str = "", timeout_ms: float = 0.0) -> Start:
        root = build_variant(home / name, repository, model, "onnxruntime", _timeout(timeout_ms), parameters)
        return lambda: servers.headrace(root, "native")

    def triton(name: str, timeout_ms: float = 0.0) -> Start:
        root = build_variant(home / name, repository, model, "python", _timeout(timeout_ms))
        return lambda: servers.triton_on(root)

    plain = ours("plain", OPEN)
    with plain() as server:
        rates = {clients: load.run(server, model.name, clients, seconds).rate for clients in CLIENTS}
    clients = max(rates, key=lambda clients: rates[clients])
    batch_ms = round(1000 * model.max_rows / rates[clients], 2)
    case = Case(model, clients, max(LEAST_MS, round(FULL_BATCHES * batch_ms)), batch_ms)
    rivals = {
        OURS: ours("default"),
        PLAIN: plain,
        SILENT: plain,
        UNTUNED: ours("timeout", OPEN, case.good_ms),
        TUNED: ours("tuned", OPEN, case.good_ms - 2 * batch_ms),
    }
    if not with_triton:
        return case, rivals, None
    tried = {share: triton(f"triton-{share:g}", share * case.good_ms) for share in TIMEOUTS}
    goodputs: dict[float, float] = {}
    for share, start in tried.items():
        with start() as server:
            goodputs[share] = measure(server, case, rates[clients], OVERLOAD, seconds, seed=0, tells=False).goodput
    chosen = max(goodputs, key=lambda share: goodputs[share])
    return case, {**rivals, TRITON: triton("triton"), TUNED_TRITON: tried[chosen]}, chosen


def _timeout(ms: float) -> str:
    return f" default_queue_policy {{ timeout_action: REJECT default_timeout_microseconds: {ms * 1000:.0f} }} " if ms else ""


def compare(
    rivals: Mapping[str, Start], case: Case, loads: Sequence[float], rounds: int, seconds: float
) -> tuple[Readings, list[float]]:
    """Every rival under every load, round by round; and the capacity in each round, which its loads are parts of.

    All are started anew for every round: in the memory that a process happens to get, `mid` may be a tenth slower than in
    another's.
    """
    readings: Readings = {at: {name: [] for name in rivals} for at in loads}
    capacities: list[float] = []
    for number in range(rounds):
        with ExitStack() as running:
            up = {name: running.enter_context(start()) for name, start in rivals.items() if name not in NOT_TOLD}
            capacities.append(load.run(up[PLAIN], case.model.name, case.clients, seconds).rate)
            order = [(at, name) for at in loads for name in in_turn(rivals, number)]
            for at, name in track(order, description=f"{case.model.name}, round {number + 1}", transient=True):
                with nullcontext(up[name]) if name in up else rivals[name]() as server:
                    reading = measure(server, case, capacities[-1], at, seconds, seed=number, tells=name not in NOT_TOLD)
                readings[at][name].append(reading)
    return readings, capacities


def measure(server: Server, case: Case, capacity: float, at: float, seconds: float, *, seed: int, tells: bool) -> Reading:
    """One load on a server that runs; those of a round have the same arrivals."""
    model, good = case.model.name, f"{case.good_ms:g}ms"
    options = [
        f"--rate={at * capacity}",
        f"--objective={good}",
        f"--seconds={seconds}",
        f"--warm-up={load.WARM_UP}",
        f"--seed={seed}",
    ]
    requests, batches = server.counts(model)
    cpu = server.cpu_seconds()
    told = load.asked(server.address, model, *options, *([f"--deadline={good}"] if tells else []))
    cpu = server.cpu_seconds() - cpu
    after, batches_after = server.counts(model)
    sent = told["offered_per_second"] * (told["seconds"] + told["warm_up"])
    return Reading(
        goodput=round(told["goodput_per_second"] / capacity, 4),
        rate=round(told["rate_per_second"] / capacity, 4),
        p99=round((told["latency_ms"]["p99"] or 0.0) / case.good_ms, 4),
        cpu=round(1e6 * cpu / max(1.0, sent), 2),
        batch=round((after - requests) / max(1, batches_after - batches), 2),
        errors=told["errors"],
        client_cores=told["generator"]["cores"],
        lag=told["generator"]["lag_ms"]["p99"],
    )


def summarise(readings: Readings) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By load, by rival: goodput of the capacity, p99 of S and CPU of the plain plan's; median, least, most."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for at, by in readings.items():
        for name, each in by.items():
            found.setdefault(f"{at:g}", {})[name] = {
                "goodput": _spread([r.goodput for r in each]),
                "p99": _spread([r.p99 for r in each]),
                "cpu": ratios((r.cpu for r in each), (r.cpu for r in by[PLAIN])),
            }
    return found


def promises(readings: Readings) -> dict[str, list[float]]:
    """What was promised, within rounds: median, least, most. Whose goodput is none has a thousandth of the capacity here."""
    found: dict[str, list[float]] = {}
    if (by := readings.get(OVERLOAD)) is not None:
        mine = [r.goodput for r in by[OURS]]
        found["of capacity"] = _spread(mine)
        for name, each in by.items():
            if name != OURS:
                found[f"times {name}"] = ratios(mine, (max(r.goodput, 1e-3) for r in each))
    if (by := readings.get(LOADS[0])) is not None:
        found["p99 at 0.5x, times plain"] = ratios((r.p99 for r in by[OURS]), (r.p99 for r in by[PLAIN]))
    return found


def _spread(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]


def show(title: str, summary: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> None:
    """The table: medians, and the spread over the rounds."""
    table = Table("load", "server", "goodput, of capacity", "p99, of S", "CPU, of the plain plan's", title=title)
    for at, by in summary.items():
        for name, told in by.items():
            table.add_row(f"{at}x", name, *(f"{v[0]:.2f} ({v[1]:.2f} – {v[2]:.2f})" for v in told.values()))
    Console(width=120).print(table)


def draw(model: str, summary: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> None:
    """Goodput over load."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4), layout="constrained")
    axes = figure.add_subplot()
    at = [float(load) for load in summary]
    axes.plot(at, [min(1.0, load) for load in at], color="0.7", lw=1, ls="--", label="the most there can be")
    for name in next(iter(summary.values())):
        values = [by[name]["goodput"] for by in summary.values()]
        spread = [[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]]
        axes.errorbar(at, [v[0] for v in values], yerr=spread, label=name, capsize=2, lw=2 if name == OURS else 1)
    axes.set(title=model, xlabel="offered, of capacity", ylabel="answered in time, of capacity", ylim=(0, 1.1))
    axes.legend(frameon=False, fontsize=8)
    figure.set_dpi(72)
    FigureCanvasSVG(figure).print_svg(str(RESULTS / f"goodput-{model}.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
