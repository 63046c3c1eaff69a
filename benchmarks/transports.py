"""`python -m benchmarks.transports`: the native and the portable transport against a bare grpc.aio front.

All of them serve the same model with one instance and one thread; NVIDIA's perf_analyzer asks, in a closed loop. Writes
benchmarks/results/transports-MODEL.json and .svg, and prints a table.
"""

from __future__ import annotations

import argparse

from benchmarks import perf_analyzer, servers
from benchmarks.harness import CLIENTS, Case, check_release, compare, draw, show, summarise, told, write
from benchmarks.models import PERCEPTRONS, build_repository

YARDSTICK = "grpc.aio"


def main() -> None:
    """Measure, print, write."""
    about = "Measure the transports against a bare grpc.aio front."
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transports", description=about)
    parser.add_argument("--model", choices=PERCEPTRONS, default="tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one of perf_analyzer's three windows")
    given = parser.parse_args()
    check_release()
    repository = build_repository(servers.REPOSITORY)
    rivals: dict[str, servers.Start] = {
        YARDSTICK: lambda: servers.reference(repository, given.model),
        "portable": lambda: servers.headrace(repository, "portable"),
        "native": lambda: servers.headrace(repository, "native"),
    }
    cases = [Case(given.model, clients) for clients in CLIENTS]
    readings = compare(rivals, cases, perf_analyzer.run, rounds=given.rounds, seconds=given.seconds, is_fresh=True)
    summary, name = summarise(readings, YARDSTICK), f"transports-{given.model}"
    show(f"{given.model}, as a multiple of {YARDSTICK}", summary)
    asked_by = "perf_analyzer of tritonclient 2.50.0, --async, closed loop"
    write(name, {"load": asked_by, "yardstick": YARDSTICK, "summary": summary, "readings": told(readings)})
    draw(name, summary, YARDSTICK, {"rate": "throughput", "cpu": "server CPU per request"})


if __name__ == "__main__":
    main()
