"""How long a batch will run, learned from those that ran: for each bucket and row count a running quantile, monotone over rows.

The quantile of one row count would be that of few runs, and one of them that was interrupted would count for a long time. So it
is made of two: the median of each row count, and the quantile of what recent batches of all row counts took in proportion to it.
A machine that slows down shows in the second at once.

A model is thought to be no quicker with more rows. Where measurements say otherwise – noise, or few of them – neighbours are
pooled (the pool-adjacent-violators algorithm: Ayer et al., "An empirical distribution function for sampling with incomplete
information", 1955), weighted by how much was seen. Between known row counts it is linear.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Mapping
from typing import TypeVar

from headrace.clock import MICROSECOND, MILLISECOND
from headrace.scheduling.admission import Line
from headrace.scheduling.steering import QUANTILE

_Number = TypeVar("_Number", int, float)

WINDOW = 50
"""Executions that are remembered: of one row count, and of all for what they took in proportion."""
LEAST = 3
"""Executions of a bucket before anything is foretold for it."""
_REFRESH, _REFRESH_NS = 8, 25 * MILLISECOND
"""After so many executions, which took so long together, what is foretold is made anew. Short ones come so often that it would
cost them more than it tells them."""
MOST_BUCKETS = 256
"""Buckets that are remembered."""
_AS_GOOD = 0.95
"""Of the best throughput: what is as good as that, up to noise."""
_AROUND_NS = 500 * MICROSECOND
"""What a batch costs around its run, about: its plan, its way in and out, and the wake."""


class Learned:
    """See `plan.Predictor`. One for each loaded version; any thread may ask and tell.

    Args:
        quantile: which of the remembered times counts, 0 to 1. With a higher one fewer are late, and batches are smaller where
            deadlines are tight.
    """

    def __init__(self, quantile: float = QUANTILE) -> None:
        self.quantile = quantile
        self._buckets: dict[int, _Bucket] = {}
        self._best: dict[int, int | None] = {}
        self._lock = threading.Lock()

    def observe(self, bucket: int, rows: int, ns: int) -> bool:
        """A batch of so many rows ran for `ns`. Says whether something is foretold otherwise now."""
        with self._lock:
            known = self._buckets.get(bucket)
            if known is None:
                if len(self._buckets) >= MOST_BUCKETS:
                    # Shapes that were not seen for longest go: insertion order is that of the last refresh.
                    del self._buckets[next(iter(self._buckets))]
                known = self._buckets[bucket] = _Bucket()
            if known.observe(rows, ns, self.quantile):
                self._buckets[bucket] = self._buckets.pop(bucket)
                return True
            return False

    def aim(self, quantile: float) -> None:
        """Another quantile counts, from now on."""
        with self._lock:
            self.quantile = quantile
            for known in self._buckets.values():
                known.aim(quantile)

    def execute_ns(self, bucket: int, rows: int) -> int | None:
        """How long a batch of so many rows will run, in ns; None while too little is known of its bucket."""
        known = self._buckets.get(bucket)
        return known.at(rows) if known is not None and known.count >= LEAST else None

    def line(self, bucket: int, max_rows: int) -> Line | None:
        """The same as a straight line through the first known row count and that of a full batch; None while unknown."""
        known = self._buckets.get(bucket)
        return known.line(max_rows) if known is not None and known.count >= LEAST else None

    def settle(self) -> None:
        """What is known now was measured on purpose: the best batches follow from it, and stay."""
        with self._lock:
            self._best = {bucket: each.best_rows() for bucket, each in self._buckets.items()}

    def best_rows(self, bucket: int) -> int | None:
        """The rows of the best batch; None where none is better than the largest, or nothing was measured on purpose.

        That is the smallest whose throughput is as good as any: whoever is in it is answered soonest.
        """
        return self._best.get(bucket)


class _Bucket:
    """The times of one bucket: what is usual for a row count, and by how much recent batches of any size were longer.

    `rows` of the table ascend; its times, medians, do not fall.
    """

    def __init__(self) -> None:
        self.count = 0
        self._new_ns = 0
        """How long those took together that the table does not know."""
        self._seen: dict[int, deque[int]] = {}
        self._medians: dict[int, int] = {}
        self._changed: set[int] = set()
        self._recent: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        # Replaced as a whole, so that whoever reads needs no lock: row counts, and times.
        self._table: tuple[list[int], list[float]] = ([], [])
        self._factor = 1.0
        """What to multiply the times by: how much longer recent batches took than is usual."""

    def observe(self, rows: int, ns: int, quantile: float) -> bool:
        """Remember; whether the table was made anew."""
        self.count += 1
        self._new_ns += ns
        self._recent.append((rows, ns))
        times = self._seen.get(rows)
        is_new = times is None
        if times is None:
            times = self._seen[rows] = deque(maxlen=WINDOW)
        times.append(ns)
        self._changed.add(rows)
        is_due = is_new or self.count <= _REFRESH or (self.count % _REFRESH == 0 and self._new_ns >= _REFRESH_NS)
        if is_due:
            self._new_ns = 0
            for each in self._changed:
                self._medians[each] = quantile_of(self._seen[each], 0.5)
            self._changed.clear()
            known = sorted(self._medians)
            self._table = (known, _pooled([(self._medians[each], len(self._seen[each])) for each in known]))
            self.aim(quantile)
        return is_due

    def aim(self, quantile: float) -> None:
        self._factor = quantile_of([ns / max(1, self._usual(rows)) for rows, ns in self._recent], quantile)

    def at(self, rows: int) -> int:
        return int(self._usual(rows) * self._factor)

    def line(self, max_rows: int) -> Line:
        known, _ = self._table
        # What is longer than a full batch does not come up, and may be another story.
        first, last = known[0], min(known[-1], max_rows)
        least = self.at(first)
        if last <= first:
            return Line(least, 0, max_rows)
        row = (self.at(last) - least) / (last - first)
        return Line(max(0, int(least - row * first)), int(row), max_rows)

    def best_rows(self) -> int | None:
        usual = {rows: quantile_of(times, 0.5) for rows, times in self._seen.items() if len(times) >= LEAST}
        best = best_of(usual) if usual else None
        return None if best is None or best == max(usual) else best

    def _usual(self, rows: int) -> float:
        known, times = self._table
        if not known:
            return 0
        place = bisect_left(known, rows)
        if place < len(known) and (known[place] == rows or place == 0):
            # Fewer rows than were ever seen take no longer.
            return times[place]
        if place < len(known):
            low, high = known[place - 1], known[place]
            return times[place - 1] + (rows - low) / (high - low) * (times[place] - times[place - 1])
        if len(known) == 1:
            return times[0] * rows / max(1, known[0])  # a request may have no rows at all
        return times[-1] + (rows - known[-1]) * (times[-1] - times[0]) / (known[-1] - known[0])


def best_of(usual: Mapping[int, int]) -> int:
    """The row count of the best batch: the smallest with which as much is done as with any, what is around it counted in.

    Args:
        usual: how long a run lasts, in ns, by rows; at least one.
    """
    rates = {rows: rows / (usual[rows] + _AROUND_NS) for rows in sorted(usual)}
    enough = _AS_GOOD * max(rates.values())
    return next(rows for rows, rate in rates.items() if rate >= enough)


def quantile_of(of: Collection[_Number], which: float) -> _Number:
    """The nearest of them, rounded down: never the largest of several, so that one that is out of the way does not count."""
    return sorted(of)[int(which * (len(of) - 1))]


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
