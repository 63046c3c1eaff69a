"""At the door: when a request is due, where it stands in the order, and whether the queue may take it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from headrace.clock import SECOND
from headrace.errors import CannotMeetDeadline, HeadraceError, QueueFull
from headrace.model import Batching, QueuePolicy
from headrace.request import Request
from headrace.scheduling.plan import NEVER

LEVEL_OFFSET = 3600 * SECOND
"""What one priority level is worth in the order of the queue: strict in practice, and nobody waits for ever."""

BEHIND_EVERYONE = 1 << 62
"""By how much an entry falls back whose queue policy says DELAY."""

SHARE_OF = 1024
"""Of how many a share is told."""

_LAST_LEVEL = (1 << 32) - 1
_LAST_KEY = NEVER - BEHIND_EVERYONE


class Line(NamedTuple):
    """A batch of r rows of one bucket lasts `base_ns + r * row_ns`, and has at most `max_rows`."""

    base_ns: int
    row_ns: int
    max_rows: int

    def lasts(self, rows: int) -> int:
        """How long a batch of so many rows runs, in ns."""
        return self.base_ns + rows * self.row_ns

    def work(self, rows: int) -> int:
        """How long it takes to run so many rows in as few batches as possible, in ns."""
        return -(-rows // self.max_rows) * self.base_ns + rows * self.row_ns


@dataclass(frozen=True, slots=True)
class Estimate:
    """What push needs to foretell when a request will be done.

    `lines` are by bucket; a bucket without one counts for nothing. `margin_ns` is what the way back takes at most.
    """

    lines: Mapping[int, Line]
    instances: int = 1
    margin_ns: int = 0

    def lasts(self, bucket: int, rows: int) -> int:
        """How long a batch of so many rows runs, in ns; 0 if it is not known."""
        line = self.lines.get(bucket)
        return 0 if line is None else line.lasts(rows)


class Work:
    """What rows take to run, added up: in full batches of one bucket each, shared evenly by the instances.

    Whole numbers only: kernels/ computes the same from the same golden vectors.

    Args:
        estimate: what a batch takes.
        begins: the instant at which the first instance is idle, in ns.
    """

    def __init__(self, estimate: Estimate, begins: int) -> None:
        self._estimate, self._begins = estimate, begins
        self._by_bucket: dict[int, tuple[int, int]] = {}
        """Rows, and how long they take."""
        self._ns = 0

    def add(self, bucket: int, rows: int, by: int = NEVER) -> None:
        """These rows of one request as well, unless they would be done after `by`."""
        line = self._estimate.lines.get(bucket)
        if line is None:
            return
        count, before = self._by_bucket.get(bucket, (0, 0))
        after = line.work(count + rows)
        total = self._ns - before + after
        if self._done(total, line.lasts(rows)) <= by:
            self._by_bucket[bucket] = count + rows, after
            self._ns = total

    def done_at(self, lasts: int = 0) -> int:
        """The instant at which all of it is done, in ns; `lasts` is what a batch takes that cannot be shared."""
        return self._done(self._ns, lasts)

    def _done(self, total: int, lasts: int) -> int:
        return self._begins + max(lasts, total // self._estimate.instances)


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a queue. A request that finds it empty is always taken, however large: it would never fit otherwise.

    `undated` is how many requests may wait before one without a deadline is refused. Of each class in `shed`, so many of
    `SHARE_OF` requests are refused.
    """

    requests: int = 1 << 14
    rows: int = 1 << 20
    nbytes: int = 4 << 30
    undated: int = 1 << 14
    estimate: Estimate | None = None
    shed: Mapping[int, int] = field(default_factory=dict[int, int])


class Depth(NamedTuple):
    """What waits: requests, their rows and bytes."""

    requests: int = 0
    rows: int = 0
    nbytes: int = 0


class Due(NamedTuple):
    """The times of an entry, absolute, in ns; `NEVER` where there is none.

    `deadline` is hard: past it nobody wants the answer. `target` is soft: the order and the plan go by it. Who is predicted to
    be done after `latest`, one of the two, is refused. `queue_until` is how long Triton's queue policy lets it wait. `key` is
    its place in the order.
    """

    deadline: int
    target: int
    latest: int
    queue_until: int
    key: int
    level: int


def policy_of(batching: Batching, level: int) -> QueuePolicy:
    """The queue policy of a priority level."""
    return batching.level_policies.get(level, batching.policy)


def level_of(request: Request, batching: Batching) -> int:
    """The class of a request; 0 where the model has none."""
    if not batching.priority_levels:
        return 0
    level = request.priority if 1 <= request.priority <= batching.priority_levels else batching.default_priority
    return min(level, _LAST_LEVEL)


def job_level(batching: Batching) -> int:
    """The class of batch jobs: the lowest, where requests are of a higher one unless they say so; 0 if there is none."""
    return batching.priority_levels if batching.default_priority < batching.priority_levels else 0


def due(request: Request, batching: Batching, now: int) -> Due:
    """When a request that arrives now is due, and where it stands in the order.

    The hard deadline is the earlier of the client's and the V2 `timeout`, unless the model's queue policy takes that
    parameter for its own, as Triton does: then it can only shorten the policy's timeout. Where order is to be preserved, it is
    that of arrival.
    """
    level = level_of(request, batching)
    policy = policy_of(batching, level)
    deadline = NEVER if request.deadline is None else min(request.deadline, NEVER)
    wait_ns = policy.timeout_ns
    if policy.timeout_ns and policy.allow_override:
        if 0 < request.timeout_ns < wait_ns:
            wait_ns = request.timeout_ns
    elif request.timeout_ns:
        deadline = min(deadline, request.received + request.timeout_ns)
    target = min(deadline, request.received + batching.objective_ns)
    key = now if batching.preserve_ordering else target + level * LEVEL_OFFSET
    queue_until = min(now + wait_ns, NEVER) if wait_ns else NEVER
    # Where Triton's queue policy says how long to wait, its words hold, and no prediction of ours.
    latest = NEVER if wait_ns else target if batching.sheds_target else deadline
    return Due(deadline, target, latest, queue_until, min(key, _LAST_KEY), level)


def in_share(nth: int, share: int) -> bool:
    """Whether the `nth`, counted from 1, falls into a share of so many of `SHARE_OF`, evenly spread."""
    return nth * share // SHARE_OF > (nth - 1) * share // SHARE_OF


class Newcomer(Protocol):
    """A request at the door."""

    @property
    def due(self) -> Due:
        """When it is due."""
        ...

    @property
    def size(self) -> Depth:
        """What it adds to what waits: 1 request, its rows and bytes."""
        ...

    @property
    def bucket(self) -> int:
        """Whom it may share a batch with."""
        ...


class Ahead(NamedTuple):
    """What stands before a request: rows by bucket, and the instant at which an instance is idle, in ns.

    `waiting` is everything that is queued, known without looking; `first` are those of it who go before the request, in order
    and with their deadlines, looked at only if everything were too much.
    """

    waiting: Iterable[tuple[int, int]] = ()
    first: Iterable[tuple[int, int, int]] = ()
    free_at: int = 0


def refusal(request_id: str, new: Newcomer, waiting: Depth, ahead: Ahead, limits: Limits, now: int) -> HeadraceError | None:
    """Why the queue must not take this request, or None.

    Nobody is refused because of a prediction while nobody waits and an instance is idle: there is nothing to save then, and
    what is never run is never learned.

    Args:
        request_id: for the message.
        new: the request.
        waiting: what is queued already.
        ahead: what goes before it.
        limits: the bounds.
        now: the instant, in ns.
    """
    times, size = new.due, new.size
    if waiting.requests and (
        waiting.requests + size.requests > limits.requests
        or waiting.rows + size.rows > limits.rows
        or waiting.nbytes + size.nbytes > limits.nbytes
        or (times.deadline == NEVER and waiting.requests + size.requests > limits.undated)
    ):
        return QueueFull(request_id)
    if limits.estimate is not None and times.latest != NEVER and (waiting.requests or now < ahead.free_at):
        late = lateness(limits.estimate, new, ahead, now)
        if late > 0:
            return CannotMeetDeadline(late)
    return None


def lateness(estimate: Estimate, new: Newcomer, ahead: Ahead, now: int) -> int:
    """By how much a request will be done after `latest`, in ns; at most 0 if it will be in time.

    Who goes before it and will be late himself is not counted, for he will be dropped: behind a run that takes far too long
    there would be room for nobody otherwise. Where it is late, not everybody before it was counted: the first who made it so
    are enough.
    """
    bucket, rows, margin = new.bucket, new.size.rows, estimate.margin_ns
    if bucket not in estimate.lines:
        return 0
    latest, begins, lasts = new.due.latest - margin, max(now, ahead.free_at), estimate.lasts(bucket, rows)
    work = Work(estimate, begins)
    work.add(bucket, rows)
    for other, count in ahead.waiting:
        work.add(other, count)
    late = work.done_at(lasts) - latest
    if late <= 0:
        return late
    work = Work(estimate, begins)
    for other, count, deadline in ahead.first:
        work.add(other, count, deadline - margin)
        if work.done_at() > latest:
            break
    work.add(bucket, rows)
    return work.done_at(lasts) - latest
