"""How much of a server a job may ask for beside others: only what nobody misses. Pure.

While a budget burns: nothing. Else so many batches that a few wait at the server, which is then never idle, and no more. How many
wait follows from the times of answers, as in TCP Vegas (Brakmo and Peterson, "TCP Vegas: End to End Congestion Avoidance on a
Global Internet", 1995): one is added, or taken away, until it is so. After a burn the way back is quick up to half of what was
too much, and slow beyond, as in TCP's congestion avoidance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from headrace.budgets.controller import BURNS, CALM
from headrace.clock import MILLISECOND, SECOND

EVERY_NS = 250 * MILLISECOND
"""From step to step."""
MOST = 16
"""Batches under way."""
FEW, MANY = 2, 4
"""Batches that wait at the server: fewer leave it idle at times, more gain nothing."""
_HOLD_NS = SECOND
"""How long a budget has to be calm before anything is sent again."""
_REFUSED_NS = SECOND
"""How long nothing is added after a refusal: what the server asks of those that it sheds."""
_BEYOND_NS = 3 * SECOND
"""From one batch more to the next, beyond what was too much before."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What happened since the step before.

    `burn` is what the server tells, None where it has no objective. `refused` batches were not taken. An answer took `usual_ns`
    on average, 0 where there was none, and once only `shortest_ns`.
    """

    burn: float | None = None
    refused: int = 0
    usual_ns: int = 0
    shortest_ns: int = 0

    def waiting(self, limit: int) -> float:
        """How many of `limit` batches under way wait at the server."""
        return limit * (1 - min(1.0, self.shortest_ns / self.usual_ns))


@dataclass(frozen=True, slots=True)
class Share:
    """What a job may do: have `limit` batches under way.

    Up to `ceiling` it goes fast. Nothing is added before the instant `until`; the last batch was at `added_at`.
    """

    limit: int = 0
    ceiling: int = MOST
    until: int = 0
    added_at: int = 0


def decide(share: Share, seen: Seen, now: int) -> Share:
    """One step.

    Args:
        share: of the step before.
        seen: what has happened since.
        now: the instant, in ns.
    """
    limit, burn = share.limit, seen.burn or 0.0
    if burn >= BURNS or (not limit and burn > CALM):
        return replace(share, limit=0, ceiling=max(1, limit // 2) if limit else share.ceiling, until=now + _HOLD_NS)
    if seen.refused and limit:
        fewer = max(1, limit // 2)
        return replace(share, limit=fewer, ceiling=fewer, until=now + _REFUSED_NS)
    if now < share.until or burn > CALM:
        return share
    if not limit:
        return replace(share, limit=1, added_at=now)
    if not seen.usual_ns:
        return share
    waiting = seen.waiting(limit)
    if waiting > MANY:
        return replace(share, limit=max(1, limit - 1))
    is_slow = limit >= share.ceiling and now < share.added_at + _BEYOND_NS
    if waiting >= FEW or limit >= MOST or is_slow:
        return share
    return replace(share, limit=limit + 1, ceiling=max(share.ceiling, limit + 1), added_at=now)
