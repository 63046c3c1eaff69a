"""`headrace serve`: a server that runs until a signal comes."""

from __future__ import annotations

import logging
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.clock import SECOND
from headrace.config import ServerConfig
from headrace.server.server import Server

if TYPE_CHECKING:
    from headrace.cluster.member import Member

log = logging.getLogger("headrace.serve")


class Stopped(BaseException):
    """SIGTERM or SIGINT came before the server was up. No error: nothing may catch it on its way."""


class StopSignals:
    """SIGTERM and SIGINT as something to wait for.

    Until `listen`, a signal raises `Stopped` wherever the main thread is; afterwards signals only end `wait`. Main thread only.
    """

    def __init__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._raise)

    def _raise(self, number: int, frame: object) -> None:
        raise Stopped

    def listen(self) -> None:
        """From now on, keep signals for `wait`."""
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: None)

    def wait(self, seconds: float | None) -> bool:
        """Wait for the next signal; whether one came within `seconds` (None: forever)."""
        readable, _, _ = select.select([self._reader], [], [], seconds)
        return bool(readable) and bool(self._reader.recv(1))

    def wait_or(self, call: Callable[[], object]) -> bool:
        """Run `call` in a thread and wait for it; False when a signal came first."""

        def run() -> None:
            try:
                call()
            finally:
                self._writer.send(b"\0")

        threading.Thread(target=run, name="drain", daemon=True).start()
        return self._reader.recv(1) == b"\0"


def run_server(config: ServerConfig, model: Path | None = None) -> None:
    """Serve `config.repository`, or the one file `model`, until a signal comes; then drain.

    Raises:
        HeadraceError: the server cannot come up: no repository, a busy port, a transport that is not there.
    """
    server, member = _server(config, model)
    deadline = 0
    try:
        signals = StopSignals()
        server.start()
        if member is not None:
            member.enter()
        signals.listen()
        _announce(server)
        signals.wait(None)
        if member is not None:
            member.leave()
        deadline = _drain(server, signals)
    except Stopped:
        log.info("stopped before it was ready")
    finally:
        server.close(deadline)
        if member is not None:
            member.close()
    log.info("drained", extra=server.engine.statistics.summary())


def _server(config: ServerConfig, model: Path | None) -> tuple[Server, Member | None]:
    """The server, and what it is in its directory, if it has one."""
    if config.directory is None:
        return Server(config, model), None
    from headrace.cluster.directory import FileDirectory
    from headrace.cluster.member import Member
    from headrace.cluster.peers import replica_config

    directory = FileDirectory(config.directory)
    server = Server(replica_config(config), model)
    try:
        return server, Member(server, directory)
    except BaseException:
        server.close(0)
        raise


def _announce(server: Server) -> None:
    """The one line on stdout. It says that loading is over and requests are answered; models may be missing from it."""
    told = " ".join(f"{protocol}={address}" for protocol, address in server.addresses.items())
    up, known = server.models_up()
    print(f"ready {told} models={up}/{known} transport={server.transport}", flush=True)


def _drain(server: Server, signals: StopSignals) -> int:
    """Stop in order; another signal hastens each wait. Returns until when (ns) what is still open may take."""
    config = server.config
    log.info("stopping: not ready, new requests are taken for %g s more", config.drain_grace)
    server.engine.unready()
    signals.wait(config.drain_grace)
    server.stop_accepting()
    deadline = time.monotonic_ns() + round(config.drain_seconds * SECOND)
    if signals.wait_or(lambda: server.engine.drain(deadline)):
        return deadline
    log.warning("hastened: requests that are not done are dropped")
    return time.monotonic_ns()
