"""`python -m benchmarks.cluster`: Headrace's balancer and replicas beside Ray Serve's own ways in, and beside one process alone.

All serve the same model, the tiny perceptron, each replica with one instance of one thread; `headrace bench load` asks, in a
closed loop. `ray batch` is Ray's gRPC proxy and `@serve.batch`, as documented, on a Ray as it comes; `ray best` its HAProxy,
tuned for throughput, with a work-conserving batcher. Each server is started anew for every round: how long that takes, and what
memory it has then, is told, too, and both of `headrace up`, which starts Ray as slim as it goes. Writes
benchmarks/results/cluster.json and .svg, and prints tables.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import load, servers
from benchmarks.harness import (
    CLIENTS,
    Case,
    Reading,
    Readings,
    check_release,
    draw,
    in_turn,
    ratios,
    show,
    summarise,
    told,
    write,
)
from benchmarks.models import build_repository
from headrace.cluster.processes import processes_of
from tools.ports import free_port

MODEL = "tiny"
YARDSTICK = "ray best"
SINGLE, BALANCED = "one process", "balanced"
BALANCER = "haproxy"
_ANY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
_BEST = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
"""What Ray's documentation says is fastest."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description="Measure a cluster beside Ray Serve's own.")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one load")
    parser.add_argument("--any-build", action="store_true", help="also with kernels whose speed means nothing: to try it")
    given = parser.parse_args()
    if not given.any_build:
        check_release()
    repository = build_repository(servers.REPOSITORY)
    rivals = _rivals(repository, given.replicas)
    readings: Readings = {Case(MODEL, clients): {name: [] for name in rivals} for clients in CLIENTS}
    alone: dict[Case, list[float]] = {case: [] for case in readings}
    """CPU of the balancer, as in `Reading.cpu`."""
    started: dict[str, list[tuple[float, float]]] = {name: [] for name in (*rivals, "headrace up")}
    for n in range(given.rounds):
        for name in in_turn(rivals, n):
            with rivals[name]() as server:
                started[name].append((server.started_in, server.resident_bytes() / 1e6))
                for case in readings:
                    reading, balancer = _measure(server, case, given.seconds)
                    readings[case][name].append(reading)
                    if name == BALANCED:
                        alone[case].append(balancer)
                server.end()
            print(f"round {n + 1}: {name}: {', '.join(f'{by[name][-1].rate:.0f}/s' for by in readings.values())}", flush=True)
        started["headrace up"].append(_up(repository, given.replicas))
    summary = summarise(readings, YARDSTICK)
    show(f"{MODEL}, {given.replicas} replicas, as a multiple of {YARDSTICK}", summary)
    single = {case: [each.cpu for each in by[SINGLE]] for case, by in readings.items()}
    cpu = {str(case): ratios([each.cpu for each in by[BALANCED]], single[case]) for case, by in readings.items()}
    of_it = {str(case): ratios(each, single[case]) for case, each in alone.items()}
    print(f"CPU of balancer and replicas per request, as a multiple of one process: {cpu}; of that the balancer: {of_it}")
    footprint = {
        name: {"ready_seconds": statistics.median(s for s, _ in each), "resident_mb": statistics.median(m for _, m in each)}
        for name, each in started.items()
    }
    print(footprint)
    asked_by = "headrace bench load, closed loop"
    result = {"load": asked_by, "yardstick": YARDSTICK, "summary": summary}
    result |= {"cpu_of_one_process": cpu, "of_that_the_balancer": of_it, "footprint": footprint}
    write("cluster", {**result, "readings": told(readings)})
    draw("cluster", summary, YARDSTICK, {"rate": "throughput", "cpu": "server CPU per request", "p50": "p50"})


def _measure(server: servers.Server, case: Case, seconds: float) -> tuple[Reading, float]:
    """One load, and of its CPU a request the balancer's part.

    Of several replicas nobody counts what all of them answered, so requests are reckoned from their rate.
    """
    before, balancer = server.cpu_seconds(), server.cpu_seconds(BALANCER)
    report = load.run(server, case.model, case.clients, seconds)
    each = 1e6 / (report.rate * (seconds + load.WARM_UP))
    cpu, balancer = (server.cpu_seconds() - before) * each, (server.cpu_seconds(BALANCER) - balancer) * each
    return Reading(report.rate, report.p50, report.p99, cpu, report.cpu * each, client_cores=report.cores), balancer


def _up(repository: Path, replicas: int) -> tuple[float, float]:
    """How long (s) `headrace up` takes until it serves, and the memory (MB) of all that it has started then."""
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, "HEADRACE_RUNTIME_DIR": directory}
        grpc = f"127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "headrace"]
        began = time.perf_counter()
        up = [*command, "up", "--cluster", f"--repository={repository}", f"--replicas={replicas}", f"--grpc={grpc}"]
        subprocess.run(up, env=environment, stdout=subprocess.DEVNULL, check=True)
        took = time.perf_counter() - began
        (record,) = Path(directory).glob("headrace-cluster-*.json")
        its = processes_of(Path(json.loads(record.read_bytes())["directory"]))
        memory = servers.resident_bytes(process.pid for process in its) / 1e6
        subprocess.run([*command, "down"], env=environment, stdout=subprocess.DEVNULL, check=True)
    return took, memory


def _rivals(repository: Path, replicas: int) -> Mapping[str, servers.Start]:
    def on_ray(mode: str, **environment: str) -> servers.Server:
        command = [sys.executable, "-m", "benchmarks.ray_serve", mode, MODEL, str(repository), str(replicas)]
        return servers.Server(f"ray-{mode}", command, environment={**os.environ, **_ANY, **environment})

    def balanced() -> servers.Server:
        return servers.Server("balanced", [sys.executable, "-m", "benchmarks.replicas", str(repository), str(replicas)])

    return {
        YARDSTICK: lambda: on_ray("conserving", **_BEST),
        "ray batch": lambda: on_ray("batch"),
        "headrace on ray": lambda: on_ray("headrace"),
        BALANCED: balanced,
        SINGLE: lambda: servers.headrace(repository, "native"),
    }


if __name__ == "__main__":
    main()
