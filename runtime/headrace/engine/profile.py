"""What was measured of a version on this machine: how long batches of each size run, and which way of calling it does more.

It outlives the process: `engine/profiles.py` keeps it on disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.clock import SECOND
from headrace.scheduling.predictor import best_of

FORMAT = 1
"""Of the file. Another number is another program's: what it says is measured anew."""

_LONGEST_NS = 3600 * SECOND


@dataclass(frozen=True, slots=True)
class Point:
    """Executions of one size: `times` in ns. `length` is what the inputs were padded to, 0 without padding."""

    bucket: int
    length: int
    rows: int
    times: tuple[int, ...]

    @property
    def median(self) -> int:
        """The middle one of the times, in ns."""
        ordered = sorted(self.times)
        return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2

    @property
    def p95(self) -> int:
        """What 95 of 100 do not exceed, in ns; of few, the longest."""
        return sorted(self.times)[math.ceil(0.95 * len(self.times)) - 1]

    @property
    def rate(self) -> float:
        """Rows per second, one batch after the other."""
        return self.rows * SECOND / max(1, self.median)

    @property
    def best_rate(self) -> float:
        """Rows per second of the quickest run: whatever else a machine does only ever makes runs longer."""
        return self.rows * SECOND / max(1, min(self.times))


def expected_ns(known: Sequence[Point], rows: int) -> float:
    """How long `rows` will take if it goes on as it did: at least in proportion, and as steeply as the last two."""
    if not known:
        return 0
    last, steepness = known[-1], 1.0
    if len(known) > 1:
        before = known[-2]
        growth = max(1, last.median) / max(1, before.median)
        steepness = max(1.0, math.log(growth) / math.log(last.rows / before.rows))
    return last.median * (rows / last.rows) ** steepness


@dataclass(frozen=True, slots=True)
class Calls:
    """`count` calls at a time on one thread each, against one call on `count` threads.

    Both rates are rows per second; each call has `rows`.
    """

    count: int
    rows: int
    threads_per_call: float
    parallel: float

    @property
    def gain(self) -> float:
        """How many times the rows per second parallel calls do."""
        return self.parallel / self.threads_per_call

    @property
    def better(self) -> str:
        """Which of the two does more."""
        return "parallel" if self.gain > 1 else "threads_per_call"


@dataclass(frozen=True, slots=True)
class Profile:
    """The points ascend in length, and in rows. `calls` is None where there was nothing to compare."""

    points: tuple[Point, ...]
    calls: Calls | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that were looked at."""
        return tuple(dict.fromkeys(point.length for point in self.points))

    def at(self, length: int) -> list[Point]:
        """The points of one length."""
        return [point for point in self.points if point.length == length]

    def best(self, length: int) -> Point:
        """The smallest where as many rows were done per second as anywhere. Not always the largest: some models slow down."""
        points = {point.rows: point for point in self.at(length)}
        return points[best_of({rows: point.median for rows, point in points.items()})]

    def fastest(self, length: int) -> Point:
        """Where most rows are done per second, for whoever waits for no batch in particular."""
        return max(self.at(length), key=lambda point: point.best_rate)

    def record(self) -> dict[str, Any]:
        """The same for programs; with what people would compute from it."""
        return {
            "format": FORMAT,
            "points": [
                {"bucket": point.bucket, "length": point.length, "rows": point.rows, "times_ns": list(point.times)}
                for point in self.points
            ],
            "best_rows": {str(length): self.best(length).rows for length in self.lengths},
            "calls": None
            if self.calls is None
            else {
                "count": self.calls.count,
                "rows": self.calls.rows,
                "threads_per_call": self.calls.threads_per_call,
                "parallel": self.calls.parallel,
                "better": self.calls.better,
            },
        }

    @staticmethod
    def parse(text: str | bytes) -> Profile:
        """Read what `json.dumps` made of a record.

        Raises:
            ValueError: it is something else.
        """
        try:
            record = json.loads(text)
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']!r} is not {FORMAT}")
            points = tuple(
                Point(
                    _whole(point["bucket"], 0, 1 << 64),
                    _whole(point["length"], 0),
                    _whole(point["rows"], 1),
                    tuple(_whole(ns, 0, _LONGEST_NS) for ns in point["times_ns"]),
                )
                for point in record["points"]
            )
            calls = record["calls"]
            compared = None
            if calls is not None:
                rates = _positive(calls["threads_per_call"]), _positive(calls["parallel"])
                compared = Calls(_whole(calls["count"], 1), _whole(calls["rows"], 1), *rates)
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        if not points or not all(point.times for point in points):
            raise ValueError("nothing was measured")
        return Profile(points, compared)


def _whole(value: object, least: int, most: int = 1 << 31) -> int:
    if not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{value!r} is no whole number from {least} to {most}")
    return value


def _positive(value: object) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no rate")
    return float(value)
