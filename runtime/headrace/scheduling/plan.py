"""The plan: which of the waiting requests to run now, and why. Pure: everything it needs is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple, Protocol

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
_ENTRY = Struct(VIEW_FORMAT)
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


class Plan(NamedTuple):
    """Take these entries as one batch, answer those with an error; or, taking none, come back at `until` (None: when more come).

    Whoever is dropped is expired, or cannot be done in time. `bucket` is that of the batch.
    """

    take: tuple[int, ...]
    drop: tuple[int, ...]
    until: int | None
    reason: Reason
    bucket: int = 0


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


@dataclass(slots=True)
class _Run:
    """Entries that can go together. With each, the rows and the earliest target up to it."""

    numbers: list[int]
    sums: list[int]
    earliest: list[int]
    bucket: int
    arrival: int
    is_full: bool
    """No further one fits."""


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
    run, drop = _run(view, predictor, set_points, now)
    if not run.numbers:
        return Plan((), drop, None, Reason.WAIT)
    count, reason, until = _size(run, predictor, set_points, now)
    return Plan(tuple(run.numbers[:count]), drop, until, reason, run.bucket)


def _run(view: NDArray[np.void], predictor: Predictor, set_points: SetPoints, now: int) -> tuple[_Run, tuple[int, ...]]:
    """The longest run that fits, and everybody who is to be dropped.

    That is whoever is expired; and, for the sake of the others, whoever would be late even if he ran alone and at once (early
    drop: Nexus, SOSP 2019). The last one there is runs in any case: there is nothing to save, and something to learn.
    """
    numbers: list[int] = []
    sums: list[int] = []
    earliest: list[int] = []
    drop: list[int] = []
    max_rows, in_order = set_points.max_rows, set_points.in_order
    left, alone = len(view), dict[tuple[int, int], int]()
    total, soonest, oldest, mate, is_full, is_over = 0, NEVER, NEVER, -1, False, False
    # Unpacked, not computed with numpy: most views have a few entries, and a single call of numpy costs more than those.
    for number, _, arrival, target, deadline, bucket, _, rows, _ in _ENTRY.iter_unpack(view.tobytes()):
        if deadline <= now or (deadline != NEVER and left > 1 and _is_hopeless(alone, predictor, bucket, rows, deadline - now)):
            drop.append(number)
            left -= 1
        elif is_over:
            continue
        elif bucket != mate and numbers:
            is_over = in_order
        elif total + rows > max_rows and numbers:
            is_over = is_full = True
        else:
            mate = bucket
            total += rows
            if target < soonest:
                soonest = target
            if arrival < oldest:
                oldest = arrival
            numbers.append(number)
            sums.append(total)
            earliest.append(soonest)
            is_over = is_full = total >= max_rows
    return _Run(numbers, sums, earliest, mate, oldest, is_full), tuple(drop)


def _is_hopeless(alone: dict[tuple[int, int], int], predictor: Predictor, bucket: int, rows: int, time: int) -> bool:
    """Whether a batch of these rows alone lasts longer than `time`; `alone` remembers what the predictor said."""
    lasts = alone.get((bucket, rows))
    if lasts is None:
        lasts = alone[bucket, rows] = predictor.execute_ns(bucket, rows) or 0
    return lasts > time


def _size(run: _Run, predictor: Predictor, set_points: SetPoints, now: int) -> tuple[int, Reason, int | None]:
    """How many of the run to take, why, and until when to wait if none."""
    if set_points.max_rows == 1:
        return 1, Reason.ALONE, None
    fitting = len(run.numbers)
    punctual = _punctual(run, predictor, now)
    if punctual < fitting:
        return punctual, Reason.SLACK, None
    if run.is_full:
        return fitting, Reason.FULL, None
    ripe: int | None = None
    if set_points.delay_ns:
        # A wait must not make anyone late: where times are known, it ends when the most urgent one has to start.
        lasts = predictor.execute_ns(run.bucket, run.sums[-1]) or 0
        ripe = min(run.arrival + set_points.delay_ns, run.earliest[-1] - lasts)
        if ripe <= now:
            return fitting, Reason.WINDOW, None
    if set_points.preferred:
        preferred = [count for count, rows in enumerate(run.sums, 1) if rows in set_points.preferred]
        if preferred:
            return preferred[-1], Reason.PREFERRED, None
    return (fitting, Reason.IDLE, None) if ripe is None else (0, Reason.WAIT, ripe)


def _punctual(run: _Run, predictor: Predictor, now: int) -> int:
    """How many of the run can go together without making the most urgent of them late; at least 1.

    More rows last no less, and more entries are due no later: so halving the interval finds the border.
    """
    low, high = 1, len(run.numbers)
    while low < high:
        # The whole run first: mostly, it fits.
        count = high if low == 1 and high == len(run.numbers) else (low + high + 1) // 2
        lasts = predictor.execute_ns(run.bucket, run.sums[count - 1])
        if lasts is None or now + lasts <= run.earliest[count - 1]:
            low = count
        else:
            high = count - 1
    return low
