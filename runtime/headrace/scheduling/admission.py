"""At the door: when a request is due, where it stands in the order, and whether the queue may take it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from headrace.clock import SECOND
from headrace.errors import CannotMeetDeadline, HeadraceError, QueueFull
from headrace.model import Batching, QueuePolicy
from headrace.request import Request
from headrace.scheduling.plan import NEVER

LEVEL_OFFSET = 3600 * SECOND
"""What one priority level is worth in the order of the queue: strict in practice, and nobody waits for ever."""

BEHIND_EVERYONE = 1 << 62
"""By how much an entry falls back whose queue policy says DELAY."""

_LAST_LEVEL = (1 << 32) - 1
_LAST_KEY = NEVER - BEHIND_EVERYONE


@dataclass(frozen=True, slots=True)
class Estimate:
    """What push needs to foretell when a request will be done: a batch of r rows lasts `base_ns + r * row_ns`."""

    base_ns: int
    row_ns: int
    max_rows: int
    instances: int = 1

    def lasts(self, rows: int) -> int:
        """How long a batch of so many rows runs, in ns."""
        return self.base_ns + rows * self.row_ns

    def done_at(self, rows_ahead: int, rows: int, free_at: int, now: int) -> int:
        """The instant at which a request of `rows` rows will be done when `rows_ahead` rows go first, in ns.

        The work is thought to run in full batches, shared evenly by the instances, from `free_at`, when the first of them is
        idle. Whole numbers only: kernels/ computes the same from the same golden vectors.
        """
        total = rows_ahead + rows
        work = -(-total // self.max_rows) * self.base_ns + total * self.row_ns
        return max(now, free_at) + max(self.lasts(rows), work // self.instances)


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a queue. A request that finds it empty is always taken, however large: it would never fit otherwise."""

    requests: int = 1 << 14
    rows: int = 1 << 20
    nbytes: int = 4 << 30
    estimate: Estimate | None = None


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


def due(request: Request, batching: Batching, now: int) -> Due:
    """When a request that arrives now is due, and where it stands in the order.

    The hard deadline is the earlier of the client's and the V2 `timeout`, unless the model's queue policy takes that
    parameter for its own, as Triton does: then it can only shorten the policy's timeout. Where order is to be preserved, it is
    that of arrival.
    """
    level = 0
    if batching.priority_levels:
        level = request.priority if 1 <= request.priority <= batching.priority_levels else batching.default_priority
        level = min(level, _LAST_LEVEL)
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


class Ahead(NamedTuple):
    """What stands before a request: rows that are queued and go first, and the instant at which an instance is idle, in ns."""

    rows: int = 0
    free_at: int = 0


def refusal(
    request: Request, times: Due, size: Depth, waiting: Depth, ahead: Ahead, limits: Limits, now: int
) -> HeadraceError | None:
    """Why the queue must not take this request, or None.

    Nobody is refused because of a prediction while nobody waits and an instance is idle: there is nothing to save then, and
    what is never run is never learned.

    Args:
        request: for its id.
        times: when it is due.
        size: the request itself: 1 request, its rows and bytes.
        waiting: what is queued already.
        ahead: what goes before it.
        limits: the bounds.
        now: the instant, in ns.
    """
    if waiting.requests and (
        waiting.requests + size.requests > limits.requests
        or waiting.rows + size.rows > limits.rows
        or waiting.nbytes + size.nbytes > limits.nbytes
    ):
        return QueueFull(request.id)
    if limits.estimate is not None and times.latest != NEVER and (waiting.requests or now < ahead.free_at):
        late = limits.estimate.done_at(ahead.rows, size.rows, ahead.free_at, now) - times.latest
        if late > 0:
            return CannotMeetDeadline(late)
    return None
