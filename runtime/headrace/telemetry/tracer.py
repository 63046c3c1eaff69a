"""What the side process does about traces: read what was settled, decide what is kept, make spans of it and send them."""

from __future__ import annotations

import contextlib
import logging

from opentelemetry.sdk.trace.export import SpanExporter

from headrace.clock import SECOND
from headrace.ledger.collect import Chunk, Collector
from headrace.ledger.home import Neighbour
from headrace.ledger.identity import Identity
from headrace.ledger.report import Report, read_report, write_report
from headrace.ledger.side import give_way
from headrace.telemetry.asked import Asked
from headrace.telemetry.cohorts import Cohorts
from headrace.telemetry.environment import Wish
from headrace.telemetry.export import Sender, exporter_of, resource_of
from headrace.telemetry.joining import Run
from headrace.telemetry.sampling import Cap, Policy
from headrace.telemetry.spans import SpanMaker

log = logging.getLogger(__name__)

_REPORT_NS = SECOND
_FLUSH_SECONDS = 5.0


class Tracer:
    """Follows one server.

    Args:
        server: the server.
        wish: how traces are to be made.
        spans_per_second: how many may be sent; what is above it is dropped and counted.
        exporter: what sends them, where that is not what the environment says.
    """

    def __init__(self, server: Neighbour, wish: Wish, spans_per_second: int, exporter: SpanExporter | None = None) -> None:
        self._server, self._tally = server, server.tally
        told = read_report(server.path)
        self._collector = Collector(server, positions=told.positions)
        self._positions = dict(told.positions)
        identity = Identity(server.id)
        policy = Policy() if wish.baseline is None else Policy(baseline=wish.baseline)
        self._asked = Asked(server.path, server.names, told.left)
        self._cap = Cap(spans_per_second)
        self._cohorts = Cohorts(identity, policy, self._asked, self._cap)
        self._maker = SpanMaker(identity, server.names, resource_of(server.pid, server.id))
        self._sender = Sender(exporter or exporter_of(wish), wish, self._tally)
        self._told, self._told_at, self._wall_ahead = told, 0, 0

    def tick(self, now: int) -> None:
        """Take what there is; `now` is in ns."""
        self._asked.look()
        for chunks, overrun in self._collector.rounds():
            give_way()
            self._know(chunks, overrun)
            give_way()
            self._keep(chunks, now)
        give_way()
        if now - self._told_at >= _REPORT_NS:
            self._report(now)

    def add_run(self, run: Run, now: int) -> None:
        """Send what a Triton did, into a trace that is kept because its caller records it; `now` is in ns."""
        if self._cap.allows(1, now):
            self._sender.add([self._maker.span_of_run(run)])

    def finish(self, now: int) -> None:
        """Decide on everything, and send it, for some seconds: the server has ended, or we are to."""
        self.tick(now)
        self._keep([], now, is_end=True)
        self._sender.close(_FLUSH_SECONDS)
        self._report(now)

    def _know(self, chunks: list[Chunk], overrun: int) -> None:
        if overrun:
            self._tally.untraced += overrun
            log.warning("%d records were written over before it was decided whether to trace them", overrun)
        if chunks:
            self._server.learn()
        for chunk in chunks:
            self._positions[chunk.ring] = chunk.end
            self._wall_ahead = chunk.wall_ahead

    def _keep(self, chunks: list[Chunk], now: int, *, is_end: bool = False) -> None:
        for cohort in self._cohorts.take(chunks, now, is_end=is_end):
            self._sender.add(self._maker.spans_of(cohort, self._wall_ahead))
            give_way()
        self._tally.spans_capped += self._cap.dropped
        self._cap.dropped = 0

    def _report(self, now: int) -> None:
        self._told_at = now
        report = Report(self._sender.examples, self._asked.left, dict(self._positions))
        if report != self._told:
            self._told = report
            with contextlib.suppress(OSError):  # the directory of a server that has ended, or no room: it is told the next time
                write_report(self._server.path, report)
