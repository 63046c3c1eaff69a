"""Which requests are worth a trace, and the traces that were kept: a bounded store, fed from the ledger.

What is kept is the ledger's own record. Nothing is measured for it, so a request that is not kept costs nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from headrace.ledger.records import Records, RequestRecord


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """What to keep: of the requests that settle while `level` is TIMESTAMPS, every `rate`-th, `count` in all (-1: no end).

    `log_frequency` is kept for clients that set it; traces are not written to files here.
    """

    level: str = "OFF"
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0


class Trace(NamedTuple):
    """One request that was kept; `model` is empty and `version` 0 if none was found for it."""

    model: str
    version: int
    record: RequestRecord


@dataclass(slots=True)
class _Scope:
    """All models, or one: what was set for it, and how far its sampling is."""

    own: dict[str, Any] = field(default_factory=dict[str, Any])
    settings: TraceSettings = TraceSettings()
    seen: int = 0

    def sample(self, records: Records) -> Records:
        if self.settings.level == "OFF" or not self.settings.count:
            return records[:0]
        kept = records[(self.seen + 1 + np.arange(len(records))) % self.settings.rate == 0]
        self.seen += len(records)
        if self.settings.count > 0:
            kept = kept[: self.settings.count]
            self.settings = replace(self.settings, count=self.settings.count - len(kept))
        return kept


class TraceStore:
    """The settings of all models and of each, and the latest `capacity` traces. Safe to use from any thread.

    Args:
        drain: makes the ledger fold what it has; called before anything is read or changed here.
        name_of: (model, version, digest) of a number in the ledger.
        capacity: how many traces to hold; the oldest go first.
    """

    def __init__(self, drain: Callable[[], None], name_of: Callable[[int], tuple[str, int, str]], capacity: int = 4096) -> None:
        self._drain, self._name_of = drain, name_of
        self._lock = threading.Lock()
        self._all = _Scope()
        self._models: dict[str, _Scope] = {}
        self._kept: deque[Trace] = deque(maxlen=capacity)

    def settings(self, model: str = "") -> TraceSettings:
        """What holds for a model, or for all that have no settings of their own; `count` is what is left of it."""
        self._drain()
        with self._lock:
            return self._models.get(model, self._all).settings

    def update(self, model: str, changes: Mapping[str, Any]) -> None:
        """Change settings of a model, or of all (""), from the next request that settles.

        Args:
            model: its name.
            changes: values by the names of `TraceSettings`; None goes back to what holds for all models, or to the default.
        """
        self._drain()
        with self._lock:
            scope = self._models.setdefault(model, _Scope(settings=self._all.settings)) if model else self._all
            beneath = self._all.settings if model else TraceSettings()
            self._change(scope, changes, beneath)
            if model and not scope.own:
                del self._models[model]
            if not model:
                for other in self._models.values():
                    inherited = {key: getattr(scope.settings, key) for key in changes if key not in other.own}
                    other.settings = replace(other.settings, **inherited)

    def records(self) -> list[Trace]:
        """What is kept, the oldest first."""
        self._drain()
        with self._lock:
            return list(self._kept)

    def take(self) -> list[Trace]:
        """What is kept, which is not kept any longer."""
        self._drain()
        with self._lock:
            taken = list(self._kept)
            self._kept.clear()
            return taken

    def fold(self, requests: Records) -> None:
        """Sample these records. Called by the ledger, under its lock."""
        with self._lock:
            if all(scope.settings.level == "OFF" for scope in (self._all, *self._models.values())):
                return
            names = {number: self._name_of(number) for number in np.unique(requests["model"]).tolist()}
            for scope in (self._all, *self._models.values()):
                numbers = [n for n, (model, _, _) in names.items() if self._models.get(model, self._all) is scope]
                for row in scope.sample(requests[np.isin(requests["model"], numbers)]).tolist():
                    record = RequestRecord(*row)
                    model, version, _ = names[record.model]
                    self._kept.append(Trace(model, version, record))

    @staticmethod
    def _change(scope: _Scope, changes: Mapping[str, Any], beneath: TraceSettings) -> None:
        for key, value in changes.items():
            if value is None:
                scope.own.pop(key, None)
            else:
                scope.own[key] = value
        values = {key: getattr(beneath, key) if value is None else value for key, value in changes.items()}
        scope.settings = replace(scope.settings, **values)
        scope.seen = 0
