"""`headrace balance`: the balancer of the replicas in a directory, until a signal comes."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from pathlib import Path

from headrace.cluster.agent import Agent
from headrace.cluster.directory import FileDirectory
from headrace.cluster.haproxy import Tuning
from headrace.ledger.home import roots


def run_balancer(directory: Path, address: str, *, threads: int, drain_seconds: int) -> None:
    """Balance until SIGTERM or SIGINT; SIGHUP starts HAProxy anew beside the old one.

    Raises:
        HeadraceError: there is no HAProxy, the address is taken, or the directory cannot be used.
    """
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # of this thread, and so of those it starts: they are waited for below
    agent = Agent(FileDirectory(directory), address, address, _run_of(address), Tuning(threads, drain_seconds))
    agent.start()
    try:
        print(f"ready grpc={agent.address}", flush=True)
        while signal.sigwait(signals) == signal.SIGHUP:
            agent.balancer.reload()
    finally:
        agent.stop()


def _run_of(address: str) -> Path:
    """Where what belongs to the balancer of an address is: in memory, for this user, and found again after a crash."""
    root = next((root for root in roots() if root.is_dir()), Path(tempfile.gettempdir()))
    # Of those that take any port, each is its own.
    who = f"{address}.{os.getpid()}" if address.endswith(":0") else address
    return root / f"headrace-balancer.{re.sub(r'[^0-9A-Za-z.]', '_', who)}"
