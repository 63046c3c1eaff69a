"""`python -m benchmarks.peers`: Headrace beside a real Triton, and beside onnxruntime in a bare loop.

Triton is the binary of the package nvidia-pytriton, whose only backend is Python: its model runs onnxruntime. It is not Triton
with its C++ ONNX Runtime backend, which does more with less. All serve the same files with one instance and one thread, and
`headrace bench load` asks, in a closed loop. Writes benchmarks/results/peers.json and .svg, and prints tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import load, servers
from benchmarks.harness import CLIENTS, Case, check_release, compare, draw, ratios, show, summarise, told, write
from benchmarks.models import MODELS, Model, build_repository
from tools import triton_server

YARDSTICK = "triton-python"
LIMIT = "magika"
"""The model that computes most: there, the bare loop is the limit."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Measure Headrace beside Triton.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one load")
    given = parser.parse_args()
    check_release()
    repository = build_repository(servers.REPOSITORY)
    rivals: dict[str, servers.Start] = {
        YARDSTICK: lambda: servers.triton_python(repository),
        "portable": lambda: servers.headrace(repository, "portable"),
        "native": lambda: servers.headrace(repository, "native"),
    }
    cases = [Case(model, clients) for model in given.models for clients in CLIENTS]
    readings = compare(rivals, cases, load.run, rounds=given.rounds, seconds=given.seconds, is_fresh=False)
    limits = against_loop(repository, MODELS[LIMIT], given.rounds, given.seconds) if LIMIT in given.models else {}
    summary = summarise(readings, YARDSTICK)
    show(f"as a multiple of Triton {triton_server.TRITON} with its Python backend", summary)
    for name, spread in limits.items():
        print(f"{LIMIT}, {name}: {spread[0]:.3f} ({spread[1]:.3f} – {spread[2]:.3f}) of onnxruntime in a bare loop")
    asked_by = "headrace bench load, closed loop"
    peer = f"Triton {triton_server.TRITON} of {triton_server.PACKAGE}, Python backend running onnxruntime"
    result = {"load": asked_by, "yardstick": peer, "summary": summary, "of_the_bare_loop": limits, "readings": told(readings)}
    write("peers", result)
    draw("peers", summary, YARDSTICK, {"rate": "throughput", "cpu": "server CPU per request", "p50": "p50"})


def against_loop(repository: Path, model: Model, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Throughput of Headrace at 64 clients as a part of what onnxruntime alone does at its best batch, within rounds."""
    case = Case(model.name, max(CLIENTS))
    rates: dict[str, list[float]] = {"loop": [], "native": [], "portable": []}
    for _ in range(rounds):
        rates["loop"].append(raw_rate(model.name, model.max_rows, 2 * seconds))
        for transport in ("native", "portable"):
            start = {transport: lambda transport=transport: servers.headrace(repository, transport)}
            found = compare(start, [case], load.run, rounds=1, seconds=2 * seconds, is_fresh=True)
            rates[transport].append(found[case][transport][0].rate)
    return {name: ratios(rates[name], rates["loop"]) for name in ("native", "portable")}


def raw_rate(model: str, rows: int, seconds: float) -> float:
    """Rows a second of onnxruntime in a loop, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.raw_loop", f"--model={model}", f"--rows={rows}", f"--seconds={seconds}"]
    done = subprocess.run(command, cwd=servers.ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["rate"]


if __name__ == "__main__":
    main()
