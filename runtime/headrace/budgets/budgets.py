"""The error budgets of a server: every objective, and what has become of it. Fed by the ledger, under its lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.budgets.attribution import CAUSES, ENOUGH_TO_LEARN, StageBudgets, charges, straggling
from headrace.budgets.burn import Burn, rates
from headrace.budgets.history import History, latest
from headrace.budgets.slo import Objective
from headrace.ledger.records import BATCH, Records, at, concatenated, of_version

_LOOKED_AT = 1000
_BATCHES = 4096
"""Of each version so many batches are remembered, to say what requests waited for."""


class Account:
    """One objective: its history, and what its stages may take."""

    def __init__(self, objective: Objective, ahead: int) -> None:
        self.objective = objective
        self.history = History(objective, ahead)
        self.stages = StageBudgets(objective)

    def fold(self, requests: Records, batches: Records) -> None:
        """Add records of requests of a version that the objective covers; `batches` are the latest of it."""
        counts, bad = self.objective.judge(requests)
        if not counts.any():
            return
        self.history.add(requests["sent"][counts], bad[counts], self._charges(requests, bad, batches))
        good = np.flatnonzero(counts & ~bad)
        self.stages.learn(at(requests, good[:: 1 + len(good) // ENOUGH_TO_LEARN]))

    def _charges(self, requests: Records, bad: NDArray[np.bool_], batches: Records) -> NDArray[np.float64]:
        """What each bad request is charged to. Of very many, some are looked at, and speak for those that follow them."""
        places = np.flatnonzero(bad)
        if not len(places):
            return np.zeros((0, len(CAUSES)))
        padded = straggling(requests, batches)
        each = 1 + len(places) // _LOOKED_AT
        looked_at = places[::each]
        shares = charges(at(requests, looked_at), batches, self.stages.allowance, padded[looked_at])
        return np.repeat(shares, each, axis=0)[: len(places)]

    def dump(self) -> dict[str, Any]:
        """What is to be kept for the next server."""
        return {**self.history.dump(), "stages": self.stages.dump()}

    def include(self, kept: Mapping[str, Any], now: int) -> bool:
        """Add what another server has kept; see `History.include`."""
        # Before anything is counted, time can still begin later: a clock that was set back must not hide what was kept.
        if self.history.is_empty:
            self.history.ahead = max(self.history.ahead, latest(kept) - now)
        if not self.history.include(kept):
            return False
        self.stages.include(kept["stages"])
        return True


class Budgets:
    """All objectives of a server. Whoever looks at them does so in `Ledger.read`.

    Args:
        objectives: which.
        name: (model, version, digest) of the ledger's number of a version.
        ahead: how far (ns) the wall clock is ahead of CLOCK_MONOTONIC.
    """

    def __init__(self, objectives: Iterable[Objective], name: Callable[[int], tuple[str, int, str]], ahead: int) -> None:
        self._name = name
        self.accounts = {each.name: Account(each, ahead) for each in objectives}
        self._batches: dict[int, Records] = {}

    @property
    def objectives(self) -> list[Objective]:
        """All of them, by name."""
        return [account.objective for account in self.accounts.values()]

    def fold(self, requests: Records, batches: Records) -> None:
        """Add these records. The cost is that of some array operations for each version that has an objective."""
        if not self.accounts:
            return
        for number in np.unique(batches["model"]).tolist():
            if self._covering(number):
                self._remember(number, of_version(batches, number))
        for number in np.unique(requests["model"]).tolist():
            if covering := self._covering(number):
                mine = of_version(requests, number)
                for account in covering:
                    account.fold(mine, self._batches_of(number))

    @property
    def targets(self) -> dict[str, int]:
        """How soon (ns) requests of a model are to be answered, by its name: by the strictest of its objectives."""
        found: dict[str, int] = {}
        for account in self.accounts.values():
            objective = account.objective
            found[objective.model] = min(objective.threshold_ns, found.get(objective.model, objective.threshold_ns))
        return found

    def burns(self, now: int) -> dict[str, Burn]:
        """The burn of every objective at an instant (ns of CLOCK_MONOTONIC), by name."""
        return {name: rates(account.history, now) for name, account in self.accounts.items()}

    def dump(self) -> dict[str, Any]:
        """What is to be kept for the next server."""
        return {name: account.dump() for name, account in self.accounts.items()}

    def include(self, kept: Mapping[str, Any], now: int) -> list[str]:
        """Add what another server has kept; sentences about what of it is not taken. `now` is in ns of CLOCK_MONOTONIC."""
        problems: list[str] = []
        for name, account in self.accounts.items():
            if name not in kept:
                continue
            try:
                if not account.include(kept[name], now):
                    problems.append(f"objective '{name}' measures something else now: it begins anew")
            except (KeyError, TypeError, ValueError):
                problems.append(f"what was kept of objective '{name}' cannot be read: it begins anew")
        return problems

    def _remember(self, number: int, batches: Records) -> None:
        if number not in self._batches:
            # What ran before a reload is not asked for any more.
            for other in [other for other in self._batches if self._name(other)[:2] == self._name(number)[:2]]:
                del self._batches[other]
        self._batches[number] = concatenated(self._batches_of(number), batches)[-_BATCHES:]

    def _batches_of(self, number: int) -> Records:
        return self._batches.get(number, np.zeros(0, BATCH))

    def _covering(self, number: int) -> list[Account]:
        model, version, _ = self._name(number)
        return [account for account in self.accounts.values() if account.objective.covers(model, version)]
