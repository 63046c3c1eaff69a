"""`headrace bench load` as the load: a process of its own, whose report is read."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

from benchmarks.harness import Report
from benchmarks.servers import ROOT, Server

WARM_UP = 0.5


def run(server: Server, model: str, clients: int, seconds: float) -> Report:
    """A closed loop of `clients` for so many seconds.

    Raises:
        RuntimeError: it failed, or a request was not answered well.
    """
    return report_of(server.address, model, seconds, f"--concurrency={clients}")


def report_of(address: str, model: str, seconds: float, *options: str) -> Report:
    """What one load says, with options of its own.

    Raises:
        RuntimeError: it failed, or a request was not answered well.
    """
    command = [sys.executable, "-m", "headrace", "bench", "load", f"--target={address}", f"--model={model}", "--json"]
    command += [f"--seconds={seconds}", f"--warm-up={WARM_UP}", *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    told = json.loads(done.stdout)
    if told["errors"]:
        raise RuntimeError(f"{model} at {address}: {told['errors']}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    latency = told["latency_ms"]
    cores = told["generator"]["cores"]
    return Report(told["rate_per_second"], latency["p50"] * 1000, latency["p99"] * 1000, cpu, cores)
