"""How long a batch will run, learned from those that ran: for each bucket and row count a running quantile, monotone over rows.

A model is thought to be no quicker with more rows. Where measurements say otherwise – noise, or few of them – neighbours are
pooled (the pool-adjacent-violators algorithm: Ayer et al., "An empirical distribution function for sampling with incomplete
information", 1955), weighted by how much was seen. Between known row counts it is linear.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import deque
from typing import NamedTuple

WINDOW = 50
"""Executions of one row count that are remembered."""
LEAST = 3
"""Executions of a bucket before anything is foretold for it."""
_REFRESH = 8
_MOST_BUCKETS = 256


class Line(NamedTuple):
    """A batch of r rows lasts `base_ns + r * row_ns`."""

    base_ns: int
    row_ns: int


class Learned:
    """See `plan.Predictor`. One for each loaded version; any thread may ask and tell.

    Args:
        quantile: which of the remembered times counts, 0 to 1.
    """

    def __init__(self, quantile: float = 0.95) -> None:
        self.quantile = quantile
        self._buckets: dict[int, _Bucket] = {}
        self._lock = threading.Lock()

    def observe(self, bucket: int, rows: int, ns: int) -> None:
        """A batch of so many rows ran for `ns`."""
        with self._lock:
            known = self._buckets.get(bucket)
            if known is None:
                if len(self._buckets) >= _MOST_BUCKETS:
                    # Shapes that were not seen for longest go: insertion order is that of the last refresh.
                    del self._buckets[next(iter(self._buckets))]
                known = self._buckets[bucket] = _Bucket()
            if known.observe(rows, ns, self.quantile):
                self._buckets[bucket] = self._buckets.pop(bucket)

    def execute_ns(self, bucket: int, rows: int) -> int | None:
        """How long a batch of so many rows will run, in ns; None while too little is known of its bucket."""
        known = self._buckets.get(bucket)
        return known.at(rows) if known is not None and known.count >= LEAST else None

    def line(self, bucket: int) -> Line | None:
        """The same as a straight line through the first and the last known row count."""
        known = self._buckets.get(bucket)
        return known.line() if known is not None and known.count >= LEAST else None


class _Bucket:
    """The times of one bucket. `rows` ascend; `times` belong to them, and do not fall."""

    def __init__(self) -> None:
        self.count = 0
        self._seen: dict[int, deque[int]] = {}
        # Replaced as a whole, so that whoever reads needs no lock.
        self._table: tuple[list[int], list[float]] = ([], [])

    def observe(self, rows: int, ns: int, quantile: float) -> bool:
        """Remember; whether the table was made anew."""
        self.count += 1
        times = self._seen.get(rows)
        is_new = times is None
        if times is None:
            times = self._seen[rows] = deque(maxlen=WINDOW)
        times.append(ns)
        is_due = is_new or self.count <= _REFRESH or self.count % _REFRESH == 0
        if is_due:
            known = sorted(self._seen)
            points = [(_quantile(self._seen[n], quantile), len(self._seen[n])) for n in known]
            self._table = (known, _pooled(points))
        return is_due

    def at(self, rows: int) -> int:
        known, times = self._table
        place = bisect_left(known, rows)
        if place < len(known) and (known[place] == rows or place == 0):
            # Fewer rows than were ever seen take no longer.
            return int(times[place])
        if place == len(known):
            line = self.line()
            beyond = times[-1] + (rows - known[-1]) * line.row_ns if len(known) > 1 else times[-1] * rows / known[-1]
            return int(beyond)
        low, high = known[place - 1], known[place]
        share = (rows - low) / (high - low)
        return int(times[place - 1] + share * (times[place] - times[place - 1]))

    def line(self) -> Line:
        known, times = self._table
        if len(known) == 1:
            return Line(int(times[0]), 0)
        row = (times[-1] - times[0]) / (known[-1] - known[0])
        return Line(max(0, int(times[0] - row * known[0])), int(row))


def _quantile(times: deque[int], quantile: float) -> int:
    """The nearest of them, rounded up: with few, the largest."""
    return sorted(times)[max(0, math.ceil(quantile * len(times)) - 1)]


def _pooled(points: list[tuple[int, int]]) -> list[float]:
    """Values with weights, made so that they do not fall."""
    pools: list[tuple[float, int, int]] = []
    for value, weight in points:
        pool = (float(value), weight, 1)
        while pools and pools[-1][0] > pool[0]:
            last = pools.pop()
            total = last[1] + pool[1]
            pool = ((last[0] * last[1] + pool[0] * pool[1]) / total, total, last[2] + pool[2])
        pools.append(pool)
    return [value for value, _, count in pools for _ in range(count)]
