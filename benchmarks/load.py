"""`headrace bench load` as the load: a process of its own, whose report is read."""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.harness import Report, charged
from benchmarks.servers import Server

WARM_UP = 0.5


def run(server: Server, model: str, clients: int, seconds: float) -> Report:
    """A closed loop of `clients` for so many seconds.

    Raises:
        RuntimeError: it failed, or a request was not answered well.
    """
    return report_of(server.address, model, seconds, f"--concurrency={clients}")


def report_of(address: str, model: str, seconds: float, *options: str, warm_up: float = WARM_UP) -> Report:
    """What one load says, with options of its own. It counts all that was sent where nothing is sent to warm up.

    Raises:
        RuntimeError: it failed, or a request was not answered well.
    """
    told, cpu = charged_for(address, model, f"--seconds={seconds}", f"--warm-up={warm_up}", *options)
    if told["errors"]:
        raise RuntimeError(f"{model} at {address}: {told['errors']}")
    if not told["answered"]:
        raise RuntimeError(f"{model} at {address}: nothing was answered")
    latency, cores, sent = told["latency_ms"], told["generator"]["cores"], 0 if warm_up else told["requests"]
    return Report(told["rate_per_second"], latency["p50"] * 1000, latency["p99"] * 1000, cpu, cores, sent)


def asked(address: str, model: str, *options: str) -> dict[str, Any]:
    """All that one load says, errors of the server included.

    Raises:
        RuntimeError: it failed.
    """
    return charged_for(address, model, *options)[0]


def charged_for(address: str, model: str, *options: str) -> tuple[dict[str, Any], float]:
    """The same, and the CPU time that it took to ask, in s."""
    command = [sys.executable, "-m", "headrace", "bench", "load", f"--target={address}", f"--model={model}", "--json", *options]
    done, cpu = charged(command)
    # 1, and all there is to say: nothing was answered.
    if done.returncode and not (done.returncode == 1 and done.stdout.startswith("{")):
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout), cpu
