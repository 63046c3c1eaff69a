"""`python -m benchmarks.budgets`: what the loop saves of a latency budget when the load doubles for ten seconds.

Clients ask in an open loop, Poisson, at 0.7 of the capacity, for ten seconds at twice that, then at 0.7 again; each gives up
after S and tells the server so. Bad is what is not answered within S, of which 1 in 100 may be. Rivals, with the same
arrivals:

    loop     objective, variant declared, the slow loop steers
    static   the loop off, with the best of all prediction quantiles and margins that are tried: that with the fewest bad requests
    variant  the loop off, and everything runs on the cheaper variant, all the time: no set-point, but the other end

The capacity is what a closed loop gets at its best number of clients. Generator and server share the machine's cores. Writes
benchmarks/results/budgets.json, and prints a table.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tritonclient.grpc as triton
from rich.console import Console
from rich.table import Table

from benchmarks import load
from benchmarks.harness import check_release, in_turn, ratios, write
from benchmarks.models import MODELS, build_repository, build_variant, perceptron
from benchmarks.servers import BUILD, REPOSITORY, Server
from headrace.clock import MILLISECOND, SECOND
from headrace.load.generator import LoadPlan, run
from headrace.machine import SWITCH_SECONDS
from headrace.scheduling.admission import SHARE_OF
from headrace.scheduling.steering import Steering

LOOP, STATIC, VARIANT = "loop", "static", "variant"
CLIENTS = (16, 32, 64, 128)
BASE, TIMES = 0.7, 2
BEFORE, BURST, AFTER = 10, 10, 25
"""Seconds."""
QUANTILES, MARGINS = (0.5, 0.75, 0.95), (0.0, 0.1)
"""Of the sweep; margins are parts of S, added to the usual one."""
ALLOWED = 0.01
FULL_BATCHES, LEAST_MS = 5, 20.0
"""S is so many full batches long, and at least that."""
SMALL = (512, 512, 256)
"""Widths of the cheaper variant of `mid`, a perceptron of (512, 2048, 2048, 256)."""
OBJECTIVE = """
apiVersion: openslo/v1
kind: SLO
metadata: {{name: mid}}
spec:
  service: benchmarks
  indicator:
    metadata: {{name: mid}}
    spec: {{thresholdMetric: {{metricSource: {{type: headrace, spec: {{model: mid, unit: ms}}}}}}}}
  timeWindow: [{{duration: 1h, isRolling: true}}]
  budgetingMethod: Occurrences
  objectives: [{{op: lte, value: {ms:g}, target: {target}}}]
"""


@dataclass(frozen=True)
class Reading:
    """One run. `bad` requests of all; answered in time in a second of the burst, answered in a second outside of it."""

    requests: int
    bad: int
    burst_goodput: float
    outside_rate: float
    variant_batches: float
    """The share of all batches."""


def main() -> None:
    """Measure, print, write; or, as a child, serve."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budgets", description="Measure what the slow loop saves.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one load that looks for the capacity")
    parser.add_argument("--any-build", action="store_true", help="to try it: with kernels that are not a release build")
    parser.add_argument("--serve", nargs=4, metavar=("ROOT", "QUANTILE", "MARGIN_MS", "VARIANT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        root, quantile, margin_ms, variant = given.serve
        serve(Path(root), Steering(float(quantile), int(float(margin_ms) * MILLISECOND), variant=int(variant)))
        return
    if not given.any_build:
        check_release()
    root = repository()
    with static(root, Steering()) as server:
        rates = {clients: load.run(server, "mid", clients, given.seconds).rate for clients in CLIENTS}
    capacity, batch_ms = max(rates.values()), 1000 * MODELS["mid"].max_rows / max(rates.values())
    good_ms = max(LEAST_MS, round(FULL_BATCHES * batch_ms))
    (root / "slo").mkdir(exist_ok=True)
    (root / "slo" / "mid.yaml").write_text(OBJECTIVE.format(ms=good_ms, target=1 - ALLOWED))
    found = {"capacity": capacity, "S_ms": good_ms, "allowed": ALLOWED, "base": BASE, "times": TIMES}
    tried = {
        f"quantile {q:g}, margin {m * good_ms:g} ms": Steering(q, int(m * good_ms * MILLISECOND))
        for q in QUANTILES
        for m in MARGINS
    }
    swept = {name: measure(static(root, steering), capacity, good_ms, 0) for name, steering in tried.items()}
    best = min(swept, key=lambda name: swept[name].bad)
    print(f"S = {good_ms:g} ms; the best of {len(swept)} static ones: {best}")
    rivals = {
        LOOP: lambda: ours(root),
        STATIC: lambda: static(root, tried[best]),
        VARIANT: lambda: static(root, Steering(variant=SHARE_OF)),
    }
    readings: dict[str, list[Reading]] = {name: [] for name in rivals}
    for number in range(1, given.rounds + 1):
        for name in in_turn(rivals, number):
            readings[name].append(measure(rivals[name](), capacity, good_ms, number))
    summary = summarise(readings)
    told = {name: [asdict(reading) for reading in each] for name, each in readings.items()}
    write(
        "budgets", found | {"swept": {n: asdict(r) for n, r in swept.items()}, "best": best, "summary": summary, "readings": told}
    )
    show(readings, summary)


def repository() -> Path:
    """`mid` with its variant, whose file is made."""
    ours, root = build_repository(REPOSITORY), BUILD / "budgets"
    build_variant(root, ours, MODELS["mid"], "onnxruntime", "", 'parameters { key: "variant" value { string_value: "small" } }\n')
    file = root / "small" / "1" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(perceptron(SMALL), file)
    config = (root / "mid" / "config.pbtxt").read_text()
    (root / "small" / "config.pbtxt").write_text(config[: config.index('parameters { key: "variant"')])
    return root


def ours(root: Path) -> Server:
    """Headrace as it is, which finds the objective in `slo/`."""
    command = [sys.executable, "-m", "headrace", "serve", f"--repository={root}", "--transport=native"]
    return Server("budgets-loop", [*command, "--grpc=127.0.0.1:0", "--http=none", "--metrics=none"])


def static(root: Path, steering: Steering) -> Server:
    """The same without the loop, steered once and for all."""
    words = [str(root), str(steering.quantile), str(steering.margin_ns / MILLISECOND), str(steering.variant)]
    return Server("budgets-static", [sys.executable, "-m", "benchmarks.budgets", "--serve", *words])


def serve(root: Path, steering: Steering) -> None:
    """Be such a server, until a signal comes."""
    from headrace.engine.engine import Engine
    from headrace.engine.profiles import Profiles
    from headrace.transport.control import Control
    from headrace.transport.ways import open_transport

    sys.setswitchinterval(SWITCH_SECONDS)  # as `headrace serve` does
    grpc = open_transport("native", "127.0.0.1:0")
    with Engine(root, queues=grpc.queues, profiles=Profiles()) as engine:
        grpc.start(engine.routes, Control(engine, "headrace", False))
        for running in engine.catalog.running():
            if running.opened.variant is not None:
                running.forecast.steer(steering)
        print(f"ready grpc={grpc.address}", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


def measure(server: Server, capacity: float, good_ms: float, seed: int) -> Reading:
    """The whole story on a server of its own."""
    random, at, begin = np.random.default_rng(seed), list[Any](), 0.0
    for seconds, rate in ((BEFORE, BASE), (BURST, BASE * TIMES), (AFTER, BASE)):
        at.append(begin + np.sort(random.uniform(0, seconds, random.poisson(rate * capacity * seconds))))
        begin += seconds
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file, server:
        file.write("\n".join(f"{instant:.6f}" for instant in np.concatenate(at)))
        file.flush()
        good = int(good_ms * MILLISECOND)
        plan = LoadPlan(
            server.address, "mid", arrivals=file.name, objective=good, deadline=good, warm_up=0, seconds=begin, seed=seed
        )
        samples = run(plan, lambda look: None).samples
        batches = batches_of(server)
    due = samples["due"] - samples["due"].min()
    answered = samples["code"] == 0
    in_time = answered & (samples["done"] - samples["due"] <= good)
    inside = (due >= BEFORE * SECOND) & (due < (BEFORE + BURST) * SECOND)
    return Reading(
        requests=len(samples),
        bad=int((~in_time).sum()),
        burst_goodput=round(float((in_time & inside).sum()) / BURST, 1),
        outside_rate=round(float((answered & ~inside).sum()) / (BEFORE + AFTER), 1),
        variant_batches=round(batches.get("mid~small", 0) / batches["mid"], 4),
    )


def batches_of(server: Server) -> dict[str, int]:
    """How many have run, by who is accounted for them."""
    with triton.InferenceServerClient(server.address) as client:
        told = client.get_inference_statistics("mid")
    assert told is not None
    return {each.name: each.execution_count for each in told.model_stats}


def summarise(readings: Mapping[str, list[Reading]]) -> dict[str, list[float]]:
    """The loop's over the best static one's, within rounds: median, least, most."""
    pairs = (readings[LOOP], readings[STATIC])

    def compared(value: str, least: float = 1e-9) -> list[float]:
        return ratios(*([max(least, getattr(reading, value)) for reading in each] for each in pairs))

    return {
        "budget consumed": compared("bad", 1),
        "goodput in the burst": compared("burst_goodput"),
        "throughput outside": compared("outside_rate"),
    }


def show(readings: Mapping[str, list[Reading]], summary: Mapping[str, list[float]]) -> None:
    """Medians of what was measured, and the ratios."""
    table = Table("", "bad", "of its budget", "goodput in the burst", "answered outside", "batches on the variant")
    for name, each in readings.items():
        middle = sorted(each, key=lambda reading: reading.bad)[len(each) // 2]
        spent = middle.bad / middle.requests / ALLOWED
        row = f"{middle.bad}", f"{spent:.2f}x", f"{middle.burst_goodput:.0f}/s", f"{middle.outside_rate:.0f}/s"
        table.add_row(name, *row, f"{middle.variant_batches:.1%}")
    Console(width=120).print(table)
    for name, values in summary.items():
        print(f"{name}, times static: {values[0]:.2f} ({values[1]:.2f} – {values[2]:.2f})")


if __name__ == "__main__":
    main()
