"""Which actor makes which split. Pure: whoever runs the actors says what has become of them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

AHEAD = 2
"""Splits that an actor has at once: one is read while another one is written."""
_DEATHS = 3
"""Actors that may die of a split."""


class Rota:
    """The splits of a job that are to be made, in order.

    A split whose actor has died is made once more, first and by itself: then it is known which one it is that actors die of.
    """

    def __init__(self, splits: Iterable[int]) -> None:
        self._waiting = deque(splits)
        self._given: dict[int, list[int]] = {}
        self._deaths: Counter[int] = Counter()

    @property
    def is_done(self) -> bool:
        """Whether all are made."""
        return not self._waiting and not any(self._given.values())

    @property
    def waiting(self) -> int:
        """Splits that nobody has."""
        return len(self._waiting)

    def give(self, actor: int) -> int | None:
        """The next split for an actor; None if it has enough, or there is none."""
        own = self._given.setdefault(actor, [])
        if not self._waiting or len(own) >= AHEAD:
            return None
        if own and (self._deaths[self._waiting[0]] or any(self._deaths[split] for split in own)):
            return None
        own.append(self._waiting.popleft())
        return own[-1]

    def made(self, actor: int, split: int) -> None:
        """An actor has made a split."""
        self._given[actor].remove(split)

    def died(self, actor: int) -> int | None:
        """An actor is no more: others make what it had. A split of which too many have died, if there is one."""
        own = self._given.pop(actor, [])
        self._deaths.update(own)
        self._waiting.extendleft(reversed(own))
        return next((split for split in own if self._deaths[split] >= _DEATHS), None)
