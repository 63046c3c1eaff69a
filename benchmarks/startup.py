"""`python -m benchmarks.startup`: how long until a server is ready, and how much memory it has then.

Headrace as an edge box would have it – an environment of its own with `headrace[cpu]` and the kernels, nothing else – and Triton,
each with the tiny model, several times by turns. Writes benchmarks/results/startup.json and prints what it found.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import servers
from benchmarks.harness import changes, git, ratios, write
from benchmarks.models import build_repository, build_triton_repository
from benchmarks.servers import BUILD, REPOSITORY, ROOT, Start

MODEL = "tiny"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description="Measure start-up and memory.")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    ours, theirs = _only(build_repository(REPOSITORY), "small"), _triton_repository()
    python = str(edge_environment())
    rivals: dict[str, Start] = {
        "native": lambda: servers.headrace(ours, "native", python=python),
        "portable": lambda: servers.headrace(ours, "portable", python=python),
        "triton-python": lambda: servers.triton_on(theirs),
    }
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    megabytes: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(given.rounds):
        for name, start in rivals.items():
            with start() as server:
                seconds[name].append(round(server.started_in, 3))
                megabytes[name].append(round(server.resident_bytes() / 1e6, 1))
    found = {
        name: {
            "ready_seconds": statistics.median(seconds[name]),
            "resident_mb": statistics.median(megabytes[name]),
            "of_triton": {
                "ready": ratios(seconds[name], seconds["triton-python"]),
                "resident": ratios(megabytes[name], megabytes["triton-python"]),
            },
        }
        for name in rivals
    }
    print(json.dumps(found, indent=1))
    write("startup", {"summary": found, "ready_seconds": seconds, "resident_mb": megabytes})


def edge_environment() -> Path:
    """An environment with `headrace[cpu]` and the release kernels, made anew when the commit is another; its interpreter."""
    home = BUILD / "edge"
    python, stamp = home / "bin" / "python", home / ".commit"
    commit = git("rev-parse", "HEAD") + changes()
    if stamp.is_file() and stamp.read_text() == commit:
        return python
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    wheels = BUILD / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    maturin = [str(Path(sys.executable).parent / "maturin"), "build", "--quiet", "--release", "--locked", "--out", str(wheels)]
    subprocess.run(maturin, cwd=ROOT / "kernels", check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), f"{ROOT}[cpu]", str(wheel)]
    subprocess.run(pip, check=True)
    stamp.write_text(commit)
    return python


def _only(repository: Path, name: str) -> Path:
    target = BUILD / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(repository / MODEL, target / MODEL)
    return target


def _triton_repository() -> Path:
    return _only(build_triton_repository(BUILD / "triton-repository", REPOSITORY), "small-triton")


if __name__ == "__main__":
    main()
