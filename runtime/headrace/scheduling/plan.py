"""The plan: which of the waiting requests to run now, and why. Pure: everything it needs is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

VIEW: np.dtype[Any] = np.dtype(
    [
        ("number", "<u8"),
        ("key", "<i8"),
        ("arrival", "<i8"),
        ("target", "<i8"),
        ("deadline", "<i8"),
        ("bucket", "<u8"),
        ("nbytes", "<u8"),
        ("rows", "<u4"),
        ("level", "<u4"),
    ]
)
"""What a plan sees of an entry, most urgent first. Instants in ns; `deadline` and `target` are `NEVER` where there is none;
`rows` is at least 1; entries of one `bucket` may share a batch."""

VIEW_FORMAT = "<QqqqqQQII"
NEVER = (1 << 63) - 1


class Reason(IntEnum):
    """Why a batch has the size it has. The values are those in the ledger."""

    IDLE = 0
    """An instance was idle and this is what waited."""
    FULL = 1
    """No further row fits."""
    PREFERRED = 2
    """A size the configuration prefers."""
    SLACK = 3
    """One more would have made the most urgent one late."""
    WINDOW = 4
    """The configured delay is over."""
    ALONE = 5
    """The model does not batch."""
    WAIT = 6
    """Nothing is taken yet."""


@dataclass(frozen=True, slots=True)
class SetPoints:
    """What steers the plan.

    `delay_ns` is how long the oldest entry may wait for company; `preferred` ascends; with `in_order` nobody is taken before
    somebody who stands in front.
    """

    max_rows: int = 1
    delay_ns: int = 0
    preferred: tuple[int, ...] = ()
    in_order: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Take these entries as one batch, answer those as expired; or, taking none, come back at `until` (None: when more come)."""

    take: tuple[int, ...]
    drop: tuple[int, ...]
    until: int | None
    reason: Reason


class Predictor(Protocol):
    """What is known of a model's execution times."""

    def execute_ns(self, bucket: int, rows: int) -> int | None:
        """How long a batch of this many rows will run, in ns; None while unknown."""
        ...


class Unlearned:
    """Knows nothing, so that nothing is held against it."""

    def execute_ns(self, bucket: int, rows: int) -> int | None:
        """Always unknown."""
        return None


def plan(view: NDArray[np.void], predictor: Predictor, set_points: SetPoints, now: int) -> Plan:
    """Decide what an idle instance does with what waits.

    The longest run of the most urgent entry's bucket, in order, that fits into `max_rows` and by prediction still meets the
    earliest target in it. Work-conserving: it waits only where the configuration asks for a delay, and never for longer than
    that delay counted from the oldest entry.

    Args:
        view: array of `VIEW`, most urgent first.
        predictor: execution times.
        set_points: limits from configuration and controller.
        now: the instant, in ns.
    """
    expired = view["deadline"] <= now
    drop = tuple(view["number"][expired].tolist())
    live = view[~expired] if drop else view
    if not len(live):
        return Plan((), drop, None, Reason.WAIT)
    is_mate = live["bucket"] == live["bucket"][0]
    mates = live[np.logical_and.accumulate(is_mate)] if set_points.in_order else live[is_mate]
    sums = np.cumsum(mates["rows"].astype(np.int64))
    fitting = max(1, int(np.searchsorted(sums, set_points.max_rows, side="right")))
    count, reason, until = _size(mates, sums, fitting, predictor, set_points, now)
    return Plan(tuple(mates["number"][:count].tolist()), drop, until, reason)


def _size(
    mates: NDArray[np.void], sums: NDArray[np.int64], fitting: int, predictor: Predictor, set_points: SetPoints, now: int
) -> tuple[int, Reason, int | None]:
    """How many of `mates` to take, why, and until when to wait if none."""
    if set_points.max_rows == 1:
        return 1, Reason.ALONE, None
    punctual = _punctual(mates[:fitting], sums, predictor, now)
    if punctual < fitting:
        return punctual, Reason.SLACK, None
    if fitting < len(mates) or int(sums[fitting - 1]) >= set_points.max_rows:
        return fitting, Reason.FULL, None
    ripe: int | None = None
    if set_points.delay_ns:
        # A wait must not make anyone late: where times are known, it ends when the most urgent one has to start.
        lasts = predictor.execute_ns(int(mates["bucket"][0]), int(sums[-1])) or 0
        ripe = min(int(mates["arrival"].min()) + set_points.delay_ns, int(mates["target"].min()) - lasts)
        if ripe <= now:
            return fitting, Reason.WINDOW, None
    preferred = [count for count in range(1, fitting + 1) if int(sums[count - 1]) in set_points.preferred]
    if preferred:
        return preferred[-1], Reason.PREFERRED, None
    return (fitting, Reason.IDLE, None) if ripe is None else (0, Reason.WAIT, ripe)


def _punctual(mates: NDArray[np.void], sums: NDArray[np.int64], predictor: Predictor, now: int) -> int:
    """How many of `mates` can run together without making the most urgent of them late; at least 1."""
    earliest = np.minimum.accumulate(mates["target"])
    bucket = int(mates["bucket"][0])
    for count in range(len(mates), 1, -1):
        lasts = predictor.execute_ns(bucket, int(sums[count - 1]))
        if lasts is None or now + lasts <= int(earliest[count - 1]):
            return count
    return 1
