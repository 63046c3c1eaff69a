"""What the instances of a version learn of its execution times: the plan asks for it, and the queue is told what it needs."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headrace.clock import MILLISECOND, SECOND
from headrace.scheduling.admission import Estimate, Limits, Line
from headrace.scheduling.base import Queue
from headrace.scheduling.plan import Plan, Predictor, SetPoints, Unlearned
from headrace.scheduling.predictor import MOST_BUCKETS, WINDOW, Learned, quantile_of
from headrace.scheduling.sojourn import Sojourn

_STANDS_NS = 10 * SECOND
"""A queue in which even the shortest wait is longer stands: nobody asks online for what comes so late."""
_LOOK_NS = 50 * MILLISECOND
_LOOK_BEHIND = 8
"""After how many that came back to look how long it took."""
_TOLD_APART = 16
"""A line is told to the queue when it has changed by one part in so many."""


class Forecast:
    """One for each version that runs; any of its instances may tell.

    Args:
        queue: of the version.
        points: of its plans.
        instances: how many run batches.
        refuses: whether the queue is a door, at which requests are refused. Between the segments of a graph there is none.
    """

    def __init__(self, queue: Queue, points: SetPoints, instances: int, *, refuses: bool = True) -> None:
        self._queue, self._instances, self._refuses = queue, instances, refuses
        self.points = self._points = points
        """What steers the plans, as of now."""
        self._behind: deque[int] = deque(maxlen=WINDOW)
        self._back = 0
        """How many have come back from behind, those that the window has forgotten among them."""
        batching = queue.spec.batching
        self._learned = Learned() if batching.predicts and not queue.spec.decoupled else None
        most = Limits().requests
        self._sojourn = Sojourn(_STANDS_NS, most)
        self._undated, self._look_at, self._taken = most, 0, 0
        self._told: dict[int, Line] = {}
        self._ends: dict[int, int] = {}
        """Where buckets of lengths end: what their batches are padded to at most."""

    @property
    def predictor(self) -> Predictor:
        """What plans go by."""
        return self._learned or Unlearned()

    def ran(self, bucket: int, rows: int, ns: int) -> None:
        """A batch ran for `ns`, and nothing went wrong."""
        if self._learned is None:
            return
        if self._learned.observe(bucket, rows, ns):
            line = self._learned.line(bucket, self._max_rows(bucket))
            if line is not None and not _is_like(line, self._told.get(bucket)):
                self._told = {**self._told, bucket: line}
                if len(self._told) > MOST_BUCKETS:
                    del self._told[next(iter(self._told))]
                self._tell()

    def behind(self, ns: int) -> None:
        """What an instance was done with came back from the segments behind after `ns`: so much later an answer goes."""
        self._behind.append(ns)
        self._back += 1
        if self._learned is None or self._back % _LOOK_BEHIND:
            return
        margin = self._points.margin_ns + quantile_of(self._behind, self._learned.quantile)
        if abs(margin - self.points.margin_ns) * _TOLD_APART > self.points.margin_ns:
            self.points = replace(self._points, margin_ns=margin)
            self._tell()

    def settle(self) -> None:
        """What ran until now was run in order to measure: the best batches follow from it."""
        if self._learned is not None:
            self._learned.settle()
            self._told = {bucket: line for bucket in self._told if (line := self._learned.line(bucket, self._max_rows(bucket)))}
            self._tell()

    def saw(self, view: NDArray[np.void], decided: Plan, now: int) -> None:
        """An instance has come for what waits, and takes this."""
        self._taken += len(decided.take)
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

    def _max_rows(self, bucket: int) -> int:
        return self._points.most_rows(self.predictor.best_rows(bucket), self._ends.get(bucket, 0))

    def _tell(self) -> None:
        if not self._refuses:
            return
        estimate = Estimate(self._told, self._instances, self.points.margin_ns) if self._told else None
        self._queue.set_limits(Limits(undated=self._undated, estimate=estimate))


def _is_like(line: Line, told: Line | None) -> bool:
    if told is None or line.max_rows != told.max_rows:
        return False
    new, old = line.lasts(line.max_rows), told.lasts(told.max_rows)
    return abs(line.base_ns - told.base_ns) * _TOLD_APART <= told.base_ns and abs(new - old) * _TOLD_APART <= old
