"""`headrace observe`: the side process of a server. It writes segments, sends traces and takes spans, until either ends."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.clock import SECOND
from headrace.errors import CannotListen, InvalidLedger, sentence
from headrace.ledger.home import Neighbour, neighbour, the_neighbour
from headrace.ledger.side import hurry, step_back
from headrace.server.extras import can_trace, check_extra
from headrace.telemetry import environment

if TYPE_CHECKING:
    from headrace.ledger.spill import Spill
    from headrace.telemetry.intake import Intake
    from headrace.telemetry.tracer import Tracer
    from headrace.transport.otlp import OtlpReceiver

log = logging.getLogger("headrace.observe")

_TICK_SECONDS = 0.2


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
    ledger: Path | None,
    *,
    segment_bytes: int,
    segment_seconds: float,
    keep_bytes: int | None,
    keep_seconds: float | None,
    spans_per_second: int,
    otlp: str | None,
) -> None:
    """Follow a server until it ends, or until SIGTERM; then write and send what is left.

    Raises:
        InvalidLedger: there is no such server, nothing to do for it, or what is to be done cannot be done here.
        CannotListen: nothing else is to be done than to listen at an address, and that cannot be had.
    """
    wish = environment.wish_of(os.environ)
    if ledger is None and wish is None and otlp is None:
        where = "say in OTEL_EXPORTER_OTLP_ENDPOINT where traces go, or by --otlp where spans come"
        raise InvalidLedger(f"nothing to do: give --ledger DIR, or {where}")
    server = server_of(of)
    before = step_back()
    tally = server.tally
    if not tally.claim():
        raise InvalidLedger(f"server {server.pid} has a side process already, {tally.pid}: two would write everything twice")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop.set())
    followers: list[Spill | Tracer | Intake] = []
    if ledger is not None:
        followers.append(_spill(server, ledger, segment_bytes, segment_seconds, keep_bytes, keep_seconds))
    tracer = None if wish is None else _tracer(server, wish, spans_per_second, is_all=ledger is None and otlp is None)
    if tracer is not None:
        followers.append(tracer)
    receiver: OtlpReceiver | None = None
    if otlp is not None and (found := _receiver(server, otlp, tracer, is_all=not followers)):
        receiver, intake = found
        followers.append(intake)
    # What is there now stays: the collector need not walk through it again and again.
    gc.collect()
    gc.freeze()
    is_alive = _follow(server, followers, stop)
    if not is_alive or os.getppid() == server.pid:  # whoever started us waits; another server may still be at work
        hurry(before)
    _finish(followers, receiver)
    tally.pid = 0
    if not is_alive:
        traces = "; its traces were sent" if tracer is not None else ""
        what = f"; what it had written is in {ledger}" if ledger is not None else traces
        log.warning("server %d has ended without a word%s", server.pid, what)
        shutil.rmtree(server.path, ignore_errors=True)


def _follow(server: Neighbour, followers: Sequence[Spill | Tracer | Intake], stop: threading.Event) -> bool:
    """Until the server ends, or is to be left; says whether it still runs."""
    while is_alive := server.is_alive:
        for follower in followers:
            follower.tick(time.monotonic_ns())
        if stop.wait(_TICK_SECONDS):
            break
    return is_alive


def _finish(followers: Sequence[Spill | Tracer | Intake], receiver: OtlpReceiver | None) -> None:
    """Take nothing more from outside, and write and send what is left."""
    if receiver is not None:
        receiver.close()
    for follower in followers:
        follower.finish(time.monotonic_ns())


def _spill(
    server: Neighbour,
    ledger: Path,
    segment_bytes: int,
    segment_seconds: float,
    keep_bytes: int | None,
    keep_seconds: float | None,
) -> Spill:
    check_extra("pyarrow")
    import pyarrow as pa

    from headrace.ledger.segments import Limits
    from headrace.ledger.spill import Spill

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    log.debug("the side process of %d writes to %s", server.pid, ledger)
    return Spill(server, ledger, Limits(keep_bytes, keep_seconds), segment_bytes, int(segment_seconds * SECOND))


def _tracer(server: Neighbour, wish: environment.Wish, spans_per_second: int, *, is_all: bool) -> Tracer | None:
    """Traces that cannot be made are no reason not to keep the ledger, if there is one to keep."""
    try:
        if not can_trace():
            raise InvalidLedger(environment.EXTRA)
        from headrace.telemetry.tracer import Tracer

        log.debug("the side process of %d sends traces to %s", server.pid, wish.endpoint)
        return Tracer(server, wish, spans_per_second)
    except (InvalidLedger, ValueError, OSError) as error:  # what the SDK says of its variables, of certificates
        if is_all:
            raise InvalidLedger(f"no traces can be made: {sentence(error)}") from None
        log.error("no traces can be made: %s", sentence(error))
        return None


def _receiver(server: Neighbour, address: str, tracer: Tracer | None, *, is_all: bool) -> tuple[OtlpReceiver, Intake] | None:
    """As with traces: that nobody can be listened to is no reason to leave the rest."""
    try:
        if not can_trace():
            raise InvalidLedger(environment.EXTRA)
        from headrace.telemetry.intake import Intake
        from headrace.transport.otlp import OtlpReceiver

        intake = Intake(server, None if tracer is None else tracer.add_run)
        receiver = OtlpReceiver(address, intake)
        receiver.start()
        intake.addresses = receiver.addresses
        log.debug("the side process of %d takes spans at %s", server.pid, receiver.addresses)
        return receiver, intake
    except (InvalidLedger, CannotListen) as error:
        if is_all:
            raise
        log.error("no spans can be taken: %s", error.message)
        return None
