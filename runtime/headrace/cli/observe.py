"""`headrace observe`: the side process of a server. It reads the server's rings and writes segments, until either ends."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from pathlib import Path

from headrace.clock import SECOND
from headrace.errors import InvalidLedger
from headrace.ledger.home import Neighbour, neighbour, the_neighbour
from headrace.ledger.side import step_back

log = logging.getLogger("headrace.observe")

_TICK_SECONDS = 0.1
EXTRA = "writing and querying a ledger needs pyarrow and duckdb: pip install 'headrace[ledger]'"


def check_extra(*modules: str) -> None:
    """Raises `InvalidLedger` where what the extra `ledger` installs is missing."""
    from importlib.util import find_spec

    if not all(find_spec(module) for module in modules):
        raise InvalidLedger(EXTRA)


def server_of(of: str | None) -> Neighbour:
    """The server that `--of` means: a process number, a directory, or, left out, the only one there is.

    Raises:
        InvalidLedger: there is none.
    """
    if of is None:
        return the_neighbour(None)
    return the_neighbour(int(of)) if of.isdecimal() else neighbour(Path(of))


def run_observer(
    of: str | None,
    ledger: Path,
    *,
    segment_bytes: int,
    segment_seconds: float,
    keep_bytes: int | None,
    keep_seconds: float | None,
) -> None:
    """Follow a server until it ends, or until SIGTERM; then write what is left.

    Raises:
        InvalidLedger: there is no such server, the directory cannot be used, or pyarrow is not installed.
    """
    check_extra("pyarrow")
    import pyarrow as pa

    from headrace.ledger.segments import Limits
    from headrace.ledger.spill import Spill

    server = server_of(of)
    tally = server.tally
    if not tally.claim():
        raise InvalidLedger(f"server {server.pid} has a side process already, {tally.pid}: two would write everything twice")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop.set())
    # The cores are the server's.
    step_back()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    spill = Spill(server, ledger, Limits(keep_bytes, keep_seconds), segment_bytes, int(segment_seconds * SECOND))
    log.debug("the side process of %d writes to %s", server.pid, ledger)
    while is_alive := server.is_alive:
        spill.tick(time.monotonic_ns())
        if stop.wait(_TICK_SECONDS):
            break
    spill.finish(time.monotonic_ns())
    tally.pid = 0
    if not is_alive:
        log.warning("server %d has ended without a word; what it had written is in %s", server.pid, ledger)
        shutil.rmtree(server.path, ignore_errors=True)
