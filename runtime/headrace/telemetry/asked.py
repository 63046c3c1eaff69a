"""Which requests clients want traced, by Triton's trace settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.ledger.home import Name
from headrace.ledger.records import Records
from headrace.ledger.traces import SETTINGS_FILE, TraceSettings, read_settings
from headrace.telemetry.sampling import Why


@dataclass(slots=True)
class _Scope:
    """All models, or one: what holds for it, and how far that has come. `left` is negative where there is no end."""

    settings: TraceSettings
    left: int
    seen: int = 0

    def picks(self, count: int) -> NDArray[np.intp]:
        """Of so many requests that follow, those to keep: every so-manieth, as long as there are any left."""
        if self.settings.level == "OFF" or not self.left:
            return np.zeros(0, np.intp)
        picked = np.flatnonzero((self.seen + 1 + np.arange(count)) % self.settings.rate == 0)
        self.seen += count
        if self.left > 0:
            picked = picked[: self.left]
            self.left -= len(picked)
        return picked


class Asked:
    """The settings of one server, as far as they were used up.

    Args:
        directory: of the server.
        names: what the numbers of models mean.
        left: what another one had left, of which this one is the successor.
    """

    def __init__(self, directory: Path, names: Mapping[int, Name], left: Mapping[str, tuple[int, int]]) -> None:
        self._directory, self._names, self._before = directory, names, left
        self._stamp: tuple[int, int] | None = None
        self._scopes: dict[str, _Scope] = {}

    @property
    def left(self) -> dict[str, tuple[int, int]]:
        """What is left of the count, of each model that has settings of its own and of all others, and the revision of those."""
        return {model: (scope.settings.revision, scope.left) for model, scope in self._scopes.items()}

    def look(self) -> None:
        """See whether they have changed."""
        try:
            found = (self._directory / SETTINGS_FILE).stat()
        except OSError:
            return
        if self._stamp == (stamp := (found.st_ino, found.st_mtime_ns)):
            return
        self._stamp = stamp
        known = self._scopes
        self._scopes = {}
        for model, settings in read_settings(self._directory).items():
            scope = known.get(model)
            if scope is None or scope.settings.revision != settings.revision:
                revision, left = self._before.get(model, (-1, 0))
                scope = _Scope(settings, left if revision == settings.revision else settings.count)
            self._scopes[model] = scope

    def whys_of(self, requests: Records) -> NDArray[np.uint8]:
        """`Why.ASKED` for those that are to be kept. Parts of other requests go with those."""
        found = np.zeros(len(requests), np.uint8)
        if all(scope.settings.level == "OFF" for scope in self._scopes.values()):
            return found
        of = {number: self._names.get(number, ("", 0, ""))[0] for number in np.unique(requests["model"]).tolist()}
        for model, scope in self._scopes.items():
            numbers = [number for number, name in of.items() if (name if name in self._scopes else "") == model]
            mine = np.flatnonzero(np.isin(requests["model"], numbers) & (requests["parent"] == 0))
            found[mine[scope.picks(len(mine))]] = Why.ASKED
        return found
