"""What became of the requests of one objective, counted by second, by minute and by hour, as far back as its window reaches.

Its size is fixed: 300 seconds, 720 minutes, and the hours of the window. Whoever is told of an event is told the instant at
which it ended, so events may come late and in any order; what is older than the oldest bucket is forgotten.

Time here is a line of its own that never goes back, so that a wall clock that is set changes nothing: instants of
CLOCK_MONOTONIC, moved by how far the wall clock was ahead when the server started, or by more, where what was counted before
would else lie in the future.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.budgets.attribution import CAUSES
from headrace.budgets.slo import Objective
from headrace.clock import SECOND

TOTAL, BAD = 0, 1
"""The first columns of what is counted: requests, and those of them that were bad. Behind them, one for each of `CAUSES`."""
WIDTH = 2 + len(CAUSES)
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND

_SECONDS, _MINUTES = 300, 720
_LAST = 1 << 62


class Tier:
    """Counts by intervals of one length, the latest so many of them.

    Args:
        step: ns of an interval.
        length: how many are kept.
    """

    def __init__(self, step: int, length: int) -> None:
        self.step = step
        self.numbers = np.full(length, -1, np.int64)
        """Which interval, counted from the beginning of time, each place holds; -1 is none."""
        self.counts = np.zeros((length, WIDTH))

    @property
    def reach(self) -> int:
        """The longest window (ns) that can be asked for: the oldest interval is on its way out."""
        return (len(self.numbers) - 1) * self.step

    def put(self, number: int, counts: NDArray[np.float64]) -> None:
        """Add to one interval; nothing if it is older than all that are kept."""
        place = number % len(self.numbers)
        if self.numbers[place] < number:
            self.numbers[place] = number
            self.counts[place] = 0
        if self.numbers[place] == number:
            self.counts[place] += counts

    def sum(self, now: int, window: int) -> NDArray[np.float64]:
        """What was counted in the `window` (ns) before `now`. Of the interval in which it begins, its part is taken."""
        first, inside = divmod(now - window, self.step)
        counted = self.counts[self.numbers > first].sum(axis=0)
        return counted + self.counts[self.numbers == first].sum(axis=0) * (1 - inside / self.step)


class History:
    """The events of one objective.

    Args:
        objective: whose.
        ahead: how far (ns) its line of time is ahead of CLOCK_MONOTONIC.
    """

    def __init__(self, objective: Objective, ahead: int = 0) -> None:
        self.objective, self.ahead = objective, ahead
        self.total = np.zeros(WIDTH)
        """All that was added here: it only grows."""
        hours = -(-objective.window_ns // HOUR)
        self._tiers = Tier(SECOND, _SECONDS), Tier(MINUTE, _MINUTES), Tier(HOUR, hours + 1)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return bool((self._tiers[-1].numbers < 0).all())

    def add(self, ended: NDArray[np.int64], bad: NDArray[np.bool_], shares: NDArray[np.float64]) -> None:
        """Count requests.

        Args:
            ended: when each was over, ns of CLOCK_MONOTONIC.
            bad: which of them were bad.
            shares: of each of those, how much of it each of `CAUSES` has: float64, one row a bad request.
        """
        numbers, places = np.unique((ended + self.ahead) // SECOND, return_inverse=True)
        sums = np.zeros((len(numbers), WIDTH))
        sums[:, TOTAL] = np.bincount(places, minlength=len(numbers))
        for column, weights in enumerate((np.ones(len(shares)), *shares.T), BAD):
            sums[:, column] = np.bincount(places[bad], weights, len(numbers))
        self.total += sums.sum(axis=0)
        for number, counts in zip(numbers.tolist(), sums, strict=True):
            for tier in self._tiers:
                tier.put(number * SECOND // tier.step, counts)

    def counts(self, now: int, window: int) -> NDArray[np.float64]:
        """What was counted in the `window` (ns) before `now` (CLOCK_MONOTONIC): requests, bad ones, and what each cause has."""
        tier = next((tier for tier in self._tiers if window <= tier.reach), self._tiers[-1])
        return tier.sum(now + self.ahead, window)

    def dump(self) -> dict[str, Any]:
        """What is to be kept for the next server, as JSON can say it: minutes and hours."""
        return {
            "of": self._identity(),
            "causes": list(CAUSES),
            **{str(tier.step // SECOND): _dump(tier) for tier in self._tiers[1:]},
        }

    def include(self, kept: Mapping[str, Any]) -> bool:
        """Add what another server has kept; False if that was counted by another measure.

        Raises:
            KeyError, TypeError, ValueError: this is nothing that `dump` has made; nothing was added.
        """
        if kept["of"] != self._identity() or kept["causes"] != list(CAUSES):
            return False
        read = [(tier, _read(kept[str(tier.step // SECOND)], tier.step)) for tier in self._tiers[1:]]
        for tier, intervals in read:
            for number, counts in intervals:
                tier.put(number, counts)
        return True

    def _identity(self) -> dict[str, Any]:
        """What a request is measured by. If it changes, what was counted before says nothing."""
        of = self.objective
        return {"model": of.model, "version": of.version, "classes": list(of.classes), "threshold_ns": of.threshold_ns}


def latest(kept: Mapping[str, Any]) -> int:
    """When (ns, of its line of time) the latest minute of what a server has kept began; 0 if there is none.

    Raises:
        KeyError, TypeError, ValueError: this is nothing that `dump` has made.
    """
    return max((number * MINUTE for number, _ in _read(kept["60"], MINUTE)), default=0)


def _dump(tier: Tier) -> list[list[float]]:
    return [
        [int(tier.numbers[place]), *tier.counts[place].tolist()] for place in np.argsort(tier.numbers) if tier.numbers[place] >= 0
    ]


def _read(rows: Sequence[Sequence[float]], step: int) -> list[tuple[int, NDArray[np.float64]]]:
    """Intervals in ascending order.

    Raises:
        TypeError, ValueError: these are none.
    """
    if not rows:
        return []
    table = np.array(rows, np.float64)
    if table.shape[1:] != (1 + WIDTH,) or not np.isfinite(table).all() or (table < 0).any() or table[:, 0].max() > _LAST / step:
        raise ValueError("these are no counts")
    return [(int(row[0]), row[1:]) for row in table[np.argsort(table[:, 0])]]
