"""The plan: which of the waiting requests to run now, and why. Pure: everything it needs is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple, Protocol, TypeAlias

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
    GRAPH = 8
    """No queue made it: a graph runs one of its nodes on what it has."""


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

    def most_rows(self, best: int | None, padded: int) -> int:
        """How many rows a batch may have: no more than the `best` batch, if that is known, and of this padded length."""
        most = min(self.max_rows, best or self.max_rows)
        if self.max_elements and padded:
            most = min(most, max(1, self.max_elements // padded))
        return most

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

    Whoever is dropped is expired, or cannot be done in time. `bucket` is that of the batch, and `predicted` how long it will
    run, in ns, 0 while that is unknown.
    """

    take: tuple[int, ...]
    drop: tuple[int, ...]
    until: int | None
    reason: Reason
    bucket: int = 0
    predicted: int = 0


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


_Mate: TypeAlias = tuple[int, int, int, int]
"""An entry that can still be in time: number, target, deadline, rows. Target and deadline are when its batch has to be done;
where the target is lost, it is the deadline, and where both are, `NEVER`."""


@dataclass(slots=True)
class _Run:
    """Entries that can go together, in order; of those who fit the rows and the earliest target up to each."""

    mates: list[_Mate]
    """All of the first one's bucket and level, whether they fit or not: nobody is dropped for a lower level's sake."""
    numbers: list[int]
    sums: list[int]
    earliest: list[int]
    bucket: int
    max_rows: int
    arrival: int
    """Of the oldest who fits."""
    is_full: bool
    """No further one fits."""
    others_due: int
    """The earliest target of those of other buckets."""
    others: int
    """How many wait and do not fit, or cannot go together with these."""


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
    run, lasts, drop = _scan(view, predictor, set_points, now)
    if run is None:
        return Plan((), drop, None, Reason.WAIT)
    if set_points.max_rows == 1:
        return Plan(tuple(run.numbers), drop, None, Reason.ALONE, run.bucket, lasts(run.sums[-1]))
    punctual = _punctual(run, lasts, now)
    if punctual < len(run.numbers):
        more = None if set_points.in_order else _more_in_time(run, punctual, lasts, now)
        if more is None:
            return Plan(tuple(run.numbers[:punctual]), drop, None, Reason.SLACK, run.bucket, lasts(run.sums[punctual - 1]))
        # Only who has a deadline wants no answer after it. An objective is ours, and its answer is still wanted.
        chosen, late = more
        gone = tuple([number for number, _, deadline, _ in run.mates if deadline < late])
        return Plan(tuple(chosen), drop + gone, None, Reason.SLACK, run.bucket, late - now)
    count, reason, until = _size(run, lasts, set_points, now, busy_until)
    return Plan(tuple(run.numbers[:count]), drop, until, reason, run.bucket, lasts(run.sums[count - 1]) if count else 0)


class _Lasts:
    """How long batches of one bucket last; 0 while unknown. Remembers what the predictor said."""

    def __init__(self, predictor: Predictor, bucket: int) -> None:
        self._predictor, self._bucket = predictor, bucket
        self.known: dict[int, int] = {}

    def __call__(self, rows: int) -> int:
        ns = self.known.get(rows)
        if ns is None:
            ns = self.known[rows] = self._predictor.execute_ns(self._bucket, rows) or 0
        return ns


def _scan(  # noqa: C901  # once for every entry that waits: one pass, without a call
    view: NDArray[np.void], predictor: Predictor, set_points: SetPoints, now: int
) -> tuple[_Run | None, _Lasts, tuple[int, ...]]:
    """The longest run that fits, None if nobody is left; how long its batches last; and those who are to be dropped.

    That is whoever is expired; and, for the sake of the others, whoever would be late even if he ran alone and at once (early
    drop: Nexus, SOSP 2019). The last one there is runs in any case: there is nothing to save, and something to learn. A target
    that cannot be met even so binds nobody; the deadline does.
    """
    margin, in_order = set_points.margin_ns, set_points.in_order
    buckets: dict[int, _Lasts] = {}
    drop: list[int] = []
    mates: list[_Mate] = []
    numbers: list[int] = []
    sums: list[int] = []
    earliest: list[int] = []
    left = len(view)
    first, first_level, max_rows = -1, 0, 0
    total, soonest, oldest, is_over, is_full, others, others_due = 0, NEVER, NEVER, False, False, 0, NEVER
    # Unpacked, not computed with numpy: most views have a few entries, and a single call of numpy costs more than those.
    for number, _, arrival, target, deadline, bucket, _, rows, level, padded in _ENTRY.iter_unpack(view.tobytes()):
        lasts = buckets.get(bucket)
        if lasts is None:
            lasts = buckets[bucket] = _Lasts(predictor, bucket)
        ns = lasts.known.get(rows)
        done = now + (lasts(rows) if ns is None else ns)
        if deadline <= now or (deadline - margin < done and left > 1 and done > now):
            drop.append(number)
            left -= 1
            continue
        # From here on it is the batch that has to be done in time.
        target -= margin
        deadline -= margin
        if target < done:
            target = deadline if deadline >= done else NEVER
        if first < 0:
            first, first_level = bucket, level
            max_rows = set_points.most_rows(predictor.best_rows(bucket), padded)
        if bucket != first:
            others += 1
            if target < others_due:
                others_due = target
            is_over = is_over or in_order
            continue
        if level == first_level:
            mates.append((number, target, deadline, rows))
        if is_over or (total and total + rows > max_rows):
            others += 1
            is_full = is_full or not is_over
            is_over = True
            continue
        total += rows
        if target < soonest:
            soonest = target
        if arrival < oldest:
            oldest = arrival
        numbers.append(number)
        sums.append(total)
        earliest.append(soonest)
        if total >= max_rows:
            is_over = is_full = True
    if first < 0:
        return None, _Lasts(predictor, 0), tuple(drop)
    run = _Run(mates, numbers, sums, earliest, first, max_rows, oldest, is_full, others_due, others)
    return run, buckets[first], tuple(drop)


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


def _more_in_time(run: _Run, punctual: int, lasts: _Lasts, now: int) -> tuple[list[int], int] | None:
    """A larger batch that gets more done in its time, without who would be late for it, and when it is done; None: no need.

    A tight target allows a small batch only, and a small batch costs more a row. That is no loss while whoever stays behind
    is in time afterwards. Where not, and a larger batch of others gets more done in its time, the urgent ones are in the way (the
    early drop of Nexus, SOSP 2019, where somebody is saved by it).
    """
    rows = run.sums[punctual - 1]
    if _all_in_time(run, punctual, lasts, now + lasts(rows)):
        return None
    best, done, lasted = None, rows, lasts(rows)  # rows in time, and what they take
    size = min(run.max_rows, sum([rows for _, _, _, rows in run.mates]))
    while size > rows:
        late = now + lasts(size)
        chosen: list[int] = []
        total = good = 0
        for number, target, deadline, mate_rows in run.mates:
            if deadline >= late:
                if total + mate_rows > size:
                    break
                chosen.append(number)
                total += mate_rows
                good += mate_rows if target >= late else 0
        # With much fewer than were counted on, nobody need have been late: a smaller size will say so.
        if 2 * total > size and good * lasted > done * lasts(total):
            best, done, lasted = (chosen, late), good, lasts(total)
        size //= 2
    return best


def _all_in_time(run: _Run, begin: int, lasts: _Lasts, at: int) -> bool:
    """Whether nobody from `begin` on is late if they run in full batches from the instant `at`, and others after the first."""
    total, soonest, is_first = 0, NEVER, True
    for _, target, _, rows in run.mates[begin:]:
        if total and total + rows > run.max_rows:
            at += lasts(total)
            if at > soonest or (is_first and at > run.others_due):
                return False
            total, soonest, is_first = 0, NEVER, False
        total += rows
        soonest = min(soonest, target)
    at += lasts(total)
    return at <= soonest and not (is_first and at > run.others_due)


def _size(run: _Run, lasts: _Lasts, set_points: SetPoints, now: int, busy_until: int) -> tuple[int, Reason, int | None]:
    """How many of the run to take, why, and until when to wait if none. All of it would be in time."""
    fitting = len(run.numbers)
    if run.is_full:
        return fitting, Reason.FULL, None
    ripe: int | None = None
    # Who cannot share the batch closes it, as in Triton: he must not wait for company of others.
    if set_points.delay_ns and not run.others:
        # A wait must not make anyone late: where times are known, it ends when the most urgent one has to start.
        ripe = min(run.arrival + set_points.delay_ns, run.earliest[-1] - lasts(run.sums[-1]))
        if ripe <= now:
            return fitting, Reason.DELAY, None
    if set_points.preferred:
        preferred = [count for count, rows in enumerate(run.sums, 1) if rows in set_points.preferred]
        if preferred:
            return preferred[-1], Reason.PREFERRED, None
        if run.sums[-1] > set_points.preferred[-1]:
            return fitting, Reason.PREFERRED, None
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
