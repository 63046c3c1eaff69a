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
    """What push needs to foretell when a request will be done: a batch of r rows lasts `base_ns + r * row_ns`.

    `free_at` holds the instant at which each instance will be idle (ns).
    """

    base_ns: int
    row_ns: int
    max_rows: int
    free_at: tuple[int, ...]

    def done_at(self, rows_ahead: int, rows: int, now: int) -> int:
        """The instant at which a request of `rows` rows will be done when `rows_ahead` rows go first, in ns.

        The work is thought to run in full batches, shared evenly by the instances, from when the first of them is free.
        Whole numbers only: kernels/ computes the same from the same golden vectors.
        """
        total = rows_ahead + rows
        batches = -(-total // self.max_rows)
        work = batches * self.base_ns + total * self.row_ns
        own = self.base_ns + rows * self.row_ns
        return max(now, min(self.free_at)) + max(own, work // len(self.free_at))


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

    `deadline` is hard: past it nobody wants the answer. `target` is soft: the order and the plan go by it. `queue_until` is how
    long Triton's queue policy lets it wait. `key` is its place in the order.
    """

    deadline: int
    target: int
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
    return Due(deadline, target, queue_until, min(key, _LAST_KEY), level)


def refusal(
    request: Request, times: Due, size: Depth, waiting: Depth, rows_ahead: int, limits: Limits, now: int
) -> HeadraceError | None:
    """Why the queue must not take this request, or None.

    Args:
        request: for its id.
        times: when it is due.
        size: the request itself: 1 request, its rows and bytes.
        waiting: what is queued already.
        rows_ahead: rows queued that go before it.
        limits: the bounds.
        now: the instant, in ns.
    """
    if waiting.requests and (
        waiting.requests + size.requests > limits.requests
        or waiting.rows + size.rows > limits.rows
        or waiting.nbytes + size.nbytes > limits.nbytes
    ):
        return QueueFull(request.id)
    if limits.estimate is not None and times.deadline != NEVER:
        late = limits.estimate.done_at(rows_ahead, size.rows, now) - times.deadline
        if late > 0:
            return CannotMeetDeadline(late)
    return None
