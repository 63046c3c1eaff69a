"""`python -m benchmarks.python_models`: one `model.py` for Triton's Python backend, run by Triton and by Headrace.

The file is the same, byte for byte, and so is the configuration: one instance, whose process runs onnxruntime on one thread. So
what differs is the way of a request into that process and back. `headrace bench load` asks, in a closed loop. Writes
benchmarks/results/python_models.json and .svg, and prints a table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import load, servers
from benchmarks.harness import CLIENTS, Case, check_release, compare, draw, show, summarise, told, write
from benchmarks.models import MODELS, build_repository, build_variant
from tools import triton_server

PROMISED = {"rate": 1.3}
"""As a multiple of Triton's."""
YARDSTICK = "triton-python"
NAMES = ("tiny", "mid")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.python_models", description="Measure models in Python.")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one load")
    given = parser.parse_args()
    check_release()
    repository = build(servers.BUILD / "python-models", given.models)
    rivals: dict[str, servers.Start] = {
        YARDSTICK: lambda: servers.triton_on(repository),
        "portable": lambda: servers.headrace(repository, "portable"),
        "native": lambda: servers.headrace(repository, "native"),
    }
    cases = [Case(model, clients) for model in given.models for clients in CLIENTS]
    readings = compare(rivals, cases, load.run, rounds=given.rounds, seconds=given.seconds, is_fresh=False)
    summary = summarise(readings, YARDSTICK)
    show(f"as a multiple of Triton {triton_server.TRITON} running the same model.py", summary)
    peer = f"Triton {triton_server.TRITON} of {triton_server.PACKAGE}, the same model.py"
    asked_by = "headrace bench load, closed loop"
    write(
        "python_models",
        {"promised": PROMISED, "load": asked_by, "yardstick": peer, "summary": summary, "readings": told(readings)},
    )
    draw("python_models", summary, YARDSTICK, {"rate": "throughput", "cpu": "server CPU per request", "p50": "p50"})


def build(root: Path, names: list[str]) -> Path:
    """A repository with these models as `model.py`, for both."""
    ours = build_repository(servers.REPOSITORY)
    for name in names:
        build_variant(root, ours, MODELS[name], "python")
    return root


if __name__ == "__main__":
    main()
