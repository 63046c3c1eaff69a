"""`headrace balance`: the balancer of the replicas in a directory, until a signal comes."""

from __future__ import annotations

import logging
import os
import re
import signal
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from headrace.errors import CannotBalance

log = logging.getLogger("headrace.balance")


def balance(
    directory: Annotated[Path, typer.Option(metavar="DIR", help="Where the replicas are: that of headrace serve --directory.")],
    grpc: Annotated[str, typer.Option(metavar="HOST:PORT", help="Clients come here; port 0: any.")] = "127.0.0.1:8001",
    threads: Annotated[int, typer.Option(metavar="N", help="Of HAProxy.", min=1, max=64)] = 1,
    drain_seconds: Annotated[int, typer.Option(metavar="S", help="Stopping: give open streams this long.", min=1)] = 30,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option(metavar="LEVEL")] = "info",
    log_format: Annotated[Literal["auto", "text", "json"], typer.Option(metavar="auto|text|json")] = "auto",
) -> None:
    """Be the one address of several servers of this machine: spread requests over the replicas of a directory.

    Prints `ready grpc=HOST:PORT` when it listens. SIGTERM lets open streams finish; SIGHUP starts HAProxy anew, without a loss.

    \b
    Examples:
      headrace balance --directory replicas
      headrace balance --directory replicas --grpc 0.0.0.0:8001 --threads 2
    """
    from headrace.cluster.agent import Agent
    from headrace.cluster.directory import FileDirectory
    from headrace.cluster.haproxy import Tuning
    from headrace.server.logs import configure_logs

    configure_logs(log_level, log_format)
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # of this thread, and so of those it starts: they are waited for below
    agent = Agent(FileDirectory(directory), grpc, grpc, _run_of(grpc), Tuning(threads, drain_seconds))
    agent.start()
    try:
        print(f"ready grpc={agent.address}", flush=True)
        while signal.sigwait(signals) == signal.SIGHUP:
            try:
                agent.balancer.reload()
            except CannotBalance as error:  # the old one goes on
                log.error("HAProxy is not started anew: %s", error.message)
    finally:
        agent.stop()


def _run_of(address: str) -> Path:
    """Where what belongs to the balancer of an address is: in memory, for this user, and found again after a crash."""
    from headrace.ledger.home import roots

    root = next((root for root in roots() if root.is_dir()), Path(tempfile.gettempdir()))
    # Of those that take any port, each is its own.
    who = f"{address}.{os.getpid()}" if address.endswith(":0") else address
    return root / f"headrace-balancer.{re.sub(r'[^0-9A-Za-z.]', '_', who)}"
