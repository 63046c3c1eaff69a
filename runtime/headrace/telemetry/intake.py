"""What the side process does with the spans of others: hold what may be of use, join it with requests, tell what that says."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from headrace.budgets.outside import ABSENT, JOINED, PARTS, outside_of
from headrace.budgets.report import objective_of, read_report
from headrace.clock import SECOND
from headrace.errors import Code, InvalidObjective
from headrace.ledger.collect import REQUEST_KIND, Collector
from headrace.ledger.histograms import DURATION_EDGES, Histogram
from headrace.ledger.home import Neighbour
from headrace.ledger.identity import Identity
from headrace.ledger.records import Records, at, concatenated
from headrace.ledger.report import OutsideReport, key_of, read_outside, write_report
from headrace.telemetry.joining import PATIENCE_NS, Fate, Joiner, Run
from headrace.telemetry.otlp import Span, answer, read_message, refusal

MOST_SPANS = 1 << 15
"""That may wait for the request they belong to."""
_MOST_JOINED = 1 << 14
_LATEST_NS = 3600 * SECOND
"""What an objective is told of: so many requests, of so long."""
_REPORT_NS = SECOND


class Intake:
    """Of one server.

    `take` and `refusal` are called by one thread, that of who listens; the rest by another one.

    Attributes:
        addresses: where it is listened, by protocol, to be told.

    Args:
        server: the server.
        show: is told what a Triton did, and when that is (ns); None where there are no traces to show it in.
    """

    def __init__(self, server: Neighbour, show: Callable[[Run, int], None] | None = None) -> None:
        self.addresses: Mapping[str, str] = {}
        self._server, self._tally, self._show = server, server.tally, show
        self._collector, self._joiner = Collector(server), Joiner(Identity(server.id))
        self._told, self._told_at = read_outside(server.path), 0
        self._histograms = self._told.histograms()
        self._joined: Records = np.zeros(0, JOINED)
        self._lock = threading.Lock()
        self._waiting: list[Span] = []
        self._held = 0

    def take(self, body: bytes, *, is_json: bool) -> bytes:
        """Take the spans of a message, as far as there is room; the answer to it.

        Raises:
            InvalidRequest: it is none.
        """
        told = read_message(body, is_json=is_json)
        with self._lock:
            room = max(0, MOST_SPANS - self._held - len(self._waiting))
            self._waiting += told.spans[:room]
        left_out = max(0, len(told.spans) - room)
        self._tally.spans_unused += told.unused
        self._tally.spans_malformed += told.malformed
        self._tally.spans_without_room += left_out
        why = f"{told.malformed} were no spans: ids are not 0, and an end is not before its beginning" if told.malformed else ""
        if left_out:
            full = f"there was no room for {left_out}: {MOST_SPANS} wait, for {PATIENCE_NS // SECOND} s each"
            why = f"{why}; {full}" if why else full
        return answer(told.malformed + left_out, why, is_json=is_json)

    def refusal(self, reason: str, code: Code, why: str, *, is_json: bool) -> bytes:
        """Count a message that is refused; what it is answered with over HTTP.

        Args:
            reason: `too_large`, `garbage`, `busy` or `slow`.
            code: in gRPC's words.
            why: for people.
            is_json: what the client speaks.
        """
        counter = f"messages_{reason}"
        setattr(self._tally, counter, getattr(self._tally, counter) + 1)
        return refusal(code, why, is_json=is_json)

    def tick(self, now: int) -> None:
        """Take what there is; `now` is in ns."""
        self._join(now)
        if now - self._told_at >= _REPORT_NS:
            self._report(now)

    def finish(self, now: int) -> None:
        """Join what is there: nothing more will come."""
        self._join(now, is_end=True)
        self._report(now)

    def _join(self, now: int, *, is_end: bool = False) -> None:
        # Spans first: the record of a request is in its ring before its client can tell of it.
        with self._lock:
            spans, self._waiting = self._waiting, []
            self._held += len(spans)
        for chunks, _ in self._collector.rounds():
            for chunk in chunks:
                if chunk.kind == REQUEST_KIND:
                    self._joiner.add_requests(chunk.records, now)
        self._joiner.add_spans(spans, now)
        joined = self._joiner.take(now, is_end=is_end)
        self._held = self._joiner.held
        fates = self._joiner.fates
        self._tally.spans_joined += fates[Fate.JOINED]
        self._tally.spans_unmatched += fates[Fate.UNMATCHED]
        self._tally.spans_ambiguous += fates[Fate.AMBIGUOUS]
        self._tally.spans_implausible += fates[Fate.IMPLAUSIBLE]
        fates.clear()
        runs, self._joiner.runs = self._joiner.runs, []
        if self._show is not None:
            for run in runs:
                self._show(run, now)
        if len(joined):
            self._count(joined)
            self._joined = concatenated(self._joined, joined)[-_MOST_JOINED:]

    def _count(self, joined: Records) -> None:
        names = self._server.learn()
        for number in np.unique(joined["record"]["model"]).tolist():
            mine = at(joined, joined["record"]["model"] == number)
            for part in PARTS:
                told = mine[part][mine[part] != ABSENT]
                if len(told) and number in names:
                    histogram = self._histograms.setdefault(key_of(part, *names[number][:2]), Histogram(DURATION_EDGES))
                    histogram.add(told)

    def _report(self, now: int) -> None:
        self._told_at = now
        self._joined = at(self._joined, self._joined["record"]["sent"] > now - _LATEST_NS)
        durations = {key: (each.counts.tolist(), each.total) for key, each in self._histograms.items()}
        report = OutsideReport(self.addresses, durations, self._objectives())
        if report != self._told:
            self._told = report
            with contextlib.suppress(OSError):  # the directory of a server that has ended, or no room: it is told the next time
                write_report(self._server.path, report)

    def _objectives(self) -> dict[str, Mapping[str, Any]]:
        objectives: Sequence[Mapping[str, Any]] = ()
        if len(self._joined):
            with contextlib.suppress(InvalidObjective, OSError, ValueError):
                objectives = read_report(self._server.path)["objectives"]
        told = {each["name"]: outside_of(*objective_of(each), self._joined, self._server.names) for each in objectives}
        return {name: outside for name, outside in told.items() if outside}
