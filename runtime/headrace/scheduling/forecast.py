"""What the instances of a version learn of its execution times: the plan asks for it, and the queue is told what it needs."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headrace.clock import MILLISECOND, SECOND
from headrace.scheduling.admission import SHARE_OF, Estimate, Limits, Line, in_share
from headrace.scheduling.base import Queue
from headrace.scheduling.plan import Plan, Predictor, SetPoints, Unlearned
from headrace.scheduling.predictor import MOST_BUCKETS, WINDOW, Learned, quantile_of
from headrace.scheduling.sojourn import Sojourn
from headrace.scheduling.steering import Steering

_STANDS_NS = 10 * SECOND
"""A queue in which even the shortest wait is longer stands: nobody asks online for what comes so late."""
_LOOK_NS = 50 * MILLISECOND
_LOOK_BEHIND = 8
"""After how many that came back to look how long it took."""
_HOLDS = 0.5
"""Patience from which on an instance leaves what waits to one that is busy."""
_TOLD_APART = 16
"""A line is told to the queue when it has changed by one part in so many."""


class Forecast:
    """One for each version that runs; any of its instances may tell.

    Args:
        queue: of the version.
        points: of its plans.
        instances: how many run batches.
        refuses: whether the queue is a door, at which requests are refused. Between the segments of a graph there is none.
        variant: what is known of the cheaper variant, if there is one. Its own version learns and tells there, too.
    """

    def __init__(
        self, queue: Queue, points: SetPoints, instances: int, *, refuses: bool = True, variant: Learned | None = None
    ) -> None:
        self._queue, self._instances, self._refuses, self._variant = queue, instances, refuses, variant
        self.points = self._points = self._configured = points
        """What steers the plans, as of now."""
        self.steering = Steering()
        self._batches = 0
        self._behind: deque[int] = deque(maxlen=WINDOW)
        self._back = 0
        """How many have come back from behind, those that the window has forgotten among them."""
        batching = queue.spec.batching
        self.learned = Learned() if batching.predicts and not queue.spec.decoupled else None
        most = Limits().requests
        self._sojourn = Sojourn(_STANDS_NS, most)
        self._undated, self._look_at, self._taken = most, 0, 0
        self._told: dict[int, Line] = {}
        self._ends: dict[int, int] = {}
        """Where buckets of lengths end: what their batches are padded to at most."""

    @property
    def predictor(self) -> Predictor:
        """What the next plan goes by."""
        return (self._variant if self.is_for_variant else self.learned) or Unlearned()

    @property
    def is_for_variant(self) -> bool:
        """Whether the next batch is to run on the variant. A turn must be open: nobody else takes one meanwhile."""
        return in_share(self._batches + 1, self.steering.variant)

    def steer(self, steering: Steering) -> None:
        """Go by this from the next plan on, and the door from the next push on."""
        if steering == self.steering:
            return
        self.steering = steering
        added = self.points.margin_ns - self._points.margin_ns
        self._points = replace(
            self._configured,
            margin_ns=self._configured.margin_ns + steering.margin_ns,
            delay_ns=int(self._configured.delay_ns * steering.patience),
            holds=self._configured.holds and steering.patience >= _HOLDS,
        )
        self.points = replace(self._points, margin_ns=self._points.margin_ns + added)
        if self.learned is not None:
            self.learned.aim(steering.quantile)
        self._tell_all()

    def ran(self, bucket: int, rows: int, ns: int, *, on_variant: bool = False) -> None:
        """A batch ran for `ns`, on the variant or not, and nothing went wrong."""
        learned = self._variant if on_variant else self.learned
        if self.learned is None or learned is None:
            return
        if learned.observe(bucket, rows, ns):
            line = self._line(bucket)
            if line is not None and not _is_like(line, self._told.get(bucket)):
                self._told = {**self._told, bucket: line}
                if len(self._told) > MOST_BUCKETS:
                    del self._told[next(iter(self._told))]
                self._tell()

    def behind(self, ns: int) -> None:
        """What an instance was done with came back from the segments behind after `ns`: so much later an answer goes."""
        self._behind.append(ns)
        self._back += 1
        if self.learned is None or self._back % _LOOK_BEHIND:
            return
        margin = self._points.margin_ns + quantile_of(self._behind, self.learned.quantile)
        if abs(margin - self.points.margin_ns) * _TOLD_APART > self.points.margin_ns:
            self.points = replace(self._points, margin_ns=margin)
            self._tell()

    def rows_within(self, ns: int) -> int | None:
        """How many rows run within that time, whatever their shape: 1 at least, the best batch at most. None while unknown."""
        lines = tuple(self._told.values())
        return min((max(1, min(line.max_rows, (ns - line.base_ns) // max(1, line.row_ns))) for line in lines), default=None)

    def settle(self) -> None:
        """What ran until now was run in order to measure: the best batches follow from it."""
        if self.learned is not None:
            self.learned.settle()
            self._tell_all()

    def saw(self, view: NDArray[np.void], decided: Plan, now: int) -> None:
        """An instance has come for what waits, and takes this."""
        self._taken += len(decided.take)
        self._batches += bool(decided.take)
        if self._points.max_elements and decided.take and decided.bucket not in self._ends:
            if len(self._ends) >= MOST_BUCKETS:
                self._ends.clear()
            self._ends[decided.bucket] = int(view["padded"][view["bucket"] == decided.bucket][0])
        if now >= self._look_at and len(view):
            self._look_at = now + _LOOK_NS
            taken, self._taken = self._taken, 0
            limit = self._sojourn.saw(now - int(view["arrival"][0]), taken, now)
            if limit != self._undated:
                self._undated = limit
                self._tell()

    def _line(self, bucket: int) -> Line | None:
        """How long batches last by and by: as many of them on the variant as there are to be."""
        own, other = (self._line_of(learned, bucket) for learned in (self.learned, self._variant))
        share = self.steering.variant
        if own is None or other is None or not share:
            return other if share == SHARE_OF and other is not None else own
        return Line(*(((SHARE_OF - share) * mine + share * its) // SHARE_OF for mine, its in zip(own, other, strict=True)))

    def _line_of(self, learned: Learned | None, bucket: int) -> Line | None:
        if learned is None:
            return None
        return learned.line(bucket, self._points.most_rows(learned.best_rows(bucket), self._ends.get(bucket, 0)))

    def _tell_all(self) -> None:
        self._told = {bucket: line for bucket in self._told if (line := self._line(bucket)) is not None}
        self._tell()

    def _tell(self) -> None:
        if not self._refuses:
            return
        estimate = Estimate(self._told, self._instances, self.points.margin_ns) if self._told else None
        self._queue.set_limits(Limits(undated=self._undated, estimate=estimate, shed=self.steering.shed))


def _is_like(line: Line, told: Line | None) -> bool:
    if told is None or line.max_rows != told.max_rows:
        return False
    new, old = line.lasts(line.max_rows), told.lasts(told.max_rows)
    return abs(line.base_ns - told.base_ns) * _TOLD_APART <= told.base_ns and abs(new - old) * _TOLD_APART <= old
