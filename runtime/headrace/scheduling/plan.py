"""The plan: which of the waiting requests to run now, and why. Pure: everything it needs is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.clock import MICROSECOND
from headrace.model import ModelSpec

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
        ("padded", "<u4"),
        ("filler", "V4"),
    ]
)
"""What a plan sees of an entry, most urgent first. Instants in ns; `deadline` and `target` are `NEVER` where there is none;
`rows` is at least 1; entries of one `bucket` may share a batch; `padded` is the length they are padded to, 0 without padding."""

VIEW_FORMAT = "<QqqqqQQIII4x"
_ENTRY = Struct(VIEW_FORMAT)
NEVER = (1 << 63) - 1
MARGIN_NS = 500 * MICROSECOND
"""What the way back of an answer may take: from the instance to the client."""


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
    DELAY = 4
    """The configured delay is over."""
    ALONE = 5
    """The model does not batch."""
    WAIT = 6
    """Nothing is taken yet."""
    BUCKET = 7
    """Those who also wait cannot share a batch with these."""


TAKEN = tuple(reason for reason in Reason if reason is not Reason.WAIT)
"""The reasons of batches."""


@dataclass(frozen=True, slots=True)
class SetPoints:
    """What steers the plan.

    `delay_ns` is how long the oldest entry may wait for company; `preferred` ascends; with `in_order` nobody is taken before
    somebody who stands in front. An answer needs up to `margin_ns` for its way back. With `holds`, an instance leaves what waits
    to one that is busy, where nobody will be late for it and the work becomes less. Rows times padded length are at most
    `max_elements`; 0 is no limit.
    """

    max_rows: int = 1
    delay_ns: int = 0
    preferred: tuple[int, ...] = ()
    in_order: bool = False
    margin_ns: int = 0
    holds: bool = False
    max_elements: int = 0

    @staticmethod
    def of(model: ModelSpec, instances: int) -> SetPoints:
        """What the configuration of a model says."""
        batching = model.batching
        if not batching.enabled:
            return SetPoints()
        return SetPoints(
            model.max_batch_size,
            batching.delay_ns,
            batching.preferred,
            batching.preserve_ordering,
            margin_ns=MARGIN_NS if batching.predicts else 0,
            holds=batching.has_objective and instances > 1,
            max_elements=model.padding.max_elements if model.padding is not None else 0,
        )


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

    def best_rows(self, bucket: int) -> int | None:
        """The rows of the best batch, where more are no gain; None where that is not known."""
        ...


class Unlearned:
    """Knows nothing, so that nothing is held against it."""

    def execute_ns(self, bucket: int, rows: int) -> int | None:
        """Always unknown."""
        return None

    def best_rows(self, bucket: int) -> int | None:
        """Always unknown."""
        return None


@dataclass(slots=True)
class _Run:
    """Entries that can go together: of each the times it is due at, and the rows and the earliest target up to it."""

    numbers: list[int]
    sums: list[int]
    earliest: list[int]
    targets: list[int]
    """`NEVER` where it cannot be met any more."""
    deadlines: list[int]
    bucket: int
    arrival: int
    is_full: bool
    """No further one fits."""
    others_due: int
    """The earliest target of those who wait and are not in it."""
    others: int
    """How many of those there are."""


def plan(view: NDArray[np.void], predictor: Predictor, set_points: SetPoints, now: int, busy_until: int = 0) -> Plan:
    """Decide what an idle instance does with what waits.

    The longest run of the most urgent entry's bucket, in order, that is no larger than the best batch and by prediction still
    meets the earliest target in it. Work-conserving: it waits only where the configuration asks for a delay, and never for
    longer than that delay counted from the oldest entry; or, with `holds`, for an instance that is busy.

    Args:
        view: array of `VIEW`, most urgent first.
        predictor: execution times.
        set_points: limits from configuration and controller.
        now: the instant, in ns.
        busy_until: when the first of the instances that run is predicted to be idle, in ns; 0 if none runs.
    """
    live, drop = _live(view, predictor, set_points.margin_ns, now)
    if not live:
        return Plan((), drop, None, Reason.WAIT)
    run = _run(live, predictor, set_points)
    if set_points.max_rows == 1:
        return Plan(tuple(run.numbers), drop, None, Reason.ALONE, run.bucket)
    lasts = _Lasts(predictor, run.bucket, set_points.margin_ns)
    punctual = _punctual(run, lasts, now)
    if punctual < len(run.numbers):
        late = _worth_dropping(run, punctual, lasts, now)
        if late:
            # Only who has a deadline wants no answer after it. An objective is ours, and its answer is still wanted.
            take = tuple([number for number, due in zip(run.numbers, run.deadlines, strict=True) if due >= late])
            gone = tuple([number for number, due in zip(run.numbers, run.deadlines, strict=True) if due < late])
            return Plan(take, drop + gone, None, Reason.SLACK, run.bucket)
        return Plan(tuple(run.numbers[:punctual]), drop, None, Reason.SLACK, run.bucket)
    count, reason, until = _size(run, lasts, set_points, now, busy_until)
    return Plan(tuple(run.numbers[:count]), drop, until, reason, run.bucket)


class _Lasts:
    """How long batches of one bucket last, the way back included; 0 while unknown. Remembers what the predictor said."""

    def __init__(self, predictor: Predictor, bucket: int, margin_ns: int) -> None:
        self._predictor, self._bucket, self._margin_ns = predictor, bucket, margin_ns
        self._known: dict[int, int] = {}

    def __call__(self, rows: int) -> int:
        ns = self._known.get(rows)
        if ns is None:
            foretold = self._predictor.execute_ns(self._bucket, rows)
            ns = self._known[rows] = 0 if foretold is None else foretold + self._margin_ns
        return ns


def _live(
    view: NDArray[np.void], predictor: Predictor, margin_ns: int, now: int
) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """The entries that can still be in time, and those who are to be dropped.

    That is whoever is expired; and, for the sake of the others, whoever would be late even if he ran alone and at once (early
    drop: Nexus, SOSP 2019). The last one there is runs in any case: there is nothing to save, and something to learn. A target
    that cannot be met even so binds nobody; the deadline does.
    """
    live: list[tuple[int, ...]] = []
    drop: list[int] = []
    left, buckets = len(view), dict[int, _Lasts]()
    # Unpacked, not computed with numpy: most views have a few entries, and a single call of numpy costs more than those.
    for number, _, arrival, target, deadline, bucket, _, rows, _, padded in _ENTRY.iter_unpack(view.tobytes()):
        lasts = buckets.get(bucket)
        if lasts is None:
            lasts = buckets[bucket] = _Lasts(predictor, bucket, margin_ns)
        done = now + lasts(rows)
        if deadline <= now or (deadline < done and left > 1):
            drop.append(number)
            left -= 1
            continue
        if target < done:
            target = deadline if deadline >= done else NEVER
        live.append((number, arrival, target, deadline, bucket, rows, padded))
    return live, tuple(drop)


def _run(live: list[tuple[int, ...]], predictor: Predictor, set_points: SetPoints) -> _Run:
    """The longest run that fits; there is somebody."""
    _, _, _, _, mate, _, padded = live[0]
    max_rows = min(set_points.max_rows, predictor.best_rows(mate) or set_points.max_rows)
    if set_points.max_elements and padded:
        max_rows = min(max_rows, max(1, set_points.max_elements // padded))
    run = _Run([], [], [], [], [], mate, NEVER, False, NEVER, 0)
    total, soonest, is_over = 0, NEVER, False
    for number, arrival, target, deadline, bucket, rows, _ in live:
        is_mate = bucket == mate
        if not is_over and is_mate and (total + rows <= max_rows or not total):
            total += rows
            soonest = min(soonest, target)
            run.arrival = min(run.arrival, arrival)
            run.numbers.append(number)
            run.sums.append(total)
            run.earliest.append(soonest)
            run.targets.append(target)
            run.deadlines.append(deadline)
            is_over = run.is_full = total >= max_rows
            continue
        if is_mate and not is_over:
            is_over = run.is_full = True
        is_over = is_over or set_points.in_order
        run.others += 1
        run.others_due = min(run.others_due, target)
    return run


def _punctual(run: _Run, lasts: _Lasts, now: int) -> int:
    """How many of the run can go together without making the most urgent of them late; at least 1.

    More rows last no less, and more entries are due no later: so halving the interval finds the border.
    """
    low, high = 1, len(run.numbers)
    while low < high:
        # The whole run first: mostly, it fits.
        count = high if low == 1 and high == len(run.numbers) else (low + high + 1) // 2
        if now + lasts(run.sums[count - 1]) <= run.earliest[count - 1]:
            low = count
        else:
            high = count - 1
    return low


def _worth_dropping(run: _Run, punctual: int, lasts: _Lasts, now: int) -> int:
    """When the whole run would be done, if it is better to run it without those who would be late then; else 0.

    A tight target allows a small batch only, and a small batch costs more a row. That is no loss while whoever stays behind
    is in time afterwards. Where not, and the larger batch gets more done in its time, the urgent ones are in the way (the early
    drop of Nexus, SOSP 2019, where somebody is saved by it).
    """
    rows, all_rows = run.sums[punctual - 1], run.sums[-1]
    behind = min(*run.targets[punctual:], run.others_due)
    if now + lasts(rows) + lasts(all_rows - rows) <= behind:
        return 0
    late = now + lasts(all_rows)
    saved = before = 0
    for target, total in zip(run.targets, run.sums, strict=True):
        if target >= late:
            saved += total - before
        before = total
    return late if saved * lasts(rows) > rows * lasts(all_rows) else 0


def _size(run: _Run, lasts: _Lasts, set_points: SetPoints, now: int, busy_until: int) -> tuple[int, Reason, int | None]:
    """How many of the run to take, why, and until when to wait if none. All of it would be in time."""
    fitting = len(run.numbers)
    if run.is_full:
        return fitting, Reason.FULL, None
    ripe: int | None = None
    if set_points.delay_ns:
        # A wait must not make anyone late: where times are known, it ends when the most urgent one has to start.
        ripe = min(run.arrival + set_points.delay_ns, run.earliest[-1] - lasts(run.sums[-1]))
        if ripe <= now:
            return fitting, Reason.DELAY, None
    if set_points.preferred:
        preferred = [count for count, rows in enumerate(run.sums, 1) if rows in set_points.preferred]
        if preferred:
            return preferred[-1], Reason.PREFERRED, None
    if ripe is None and set_points.holds and _may_hold(run, lasts, now, busy_until):
        ripe = busy_until
    if ripe is not None:
        return 0, Reason.WAIT, ripe
    return fitting, Reason.BUCKET if run.others else Reason.IDLE, None


_WORTH_HOLDING = 0.15
"""What two batches that become one have to save, of their time."""


def _may_hold(run: _Run, lasts: _Lasts, now: int, busy_until: int) -> bool:
    """Whether a busy instance can run this later, with as much again, with nobody late and less work in all.

    Whoever waits is only those who would start an instance that could stay idle: so no more instances are at work than
    targets ask for (Symphony, arXiv 2308.07470).
    """
    rows = run.sums[-1]
    alone, together = lasts(rows), lasts(2 * rows)
    if not now < busy_until or not alone:
        return False
    # Twice the time that it takes: who comes later must not find it too late.
    is_safe = busy_until + 2 * together <= run.earliest[-1]
    return is_safe and together <= 2 * alone * (1 - _WORTH_HOLDING)
