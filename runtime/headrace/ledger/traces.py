"""What clients want traced, in the words of Triton's trace settings.

The server keeps the settings, and writes them where the side process reads them. Which requests they pick is decided there, with
everything else that a trace is kept for: see `headrace.telemetry.asked`.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from headrace.files import replace_file
from headrace.ledger.report import read_report

log = logging.getLogger(__name__)

SETTINGS_FILE = "trace-settings.json"
"""In the directory of the server: for each model that has settings of its own, and for all others (""), what holds."""


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """What to keep: of the requests that settle while `level` is TIMESTAMPS, every `rate`-th, `count` in all (-1: no end).

    `log_frequency` is kept for clients that set it; traces are not written to files here. `revision` counts the changes: with
    each, counting begins anew.
    """

    level: str = "OFF"
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0
    revision: int = 0


@dataclass(slots=True)
class _Scope:
    """All models, or one: what was set for it, and what holds."""

    own: dict[str, Any] = field(default_factory=dict[str, Any])
    settings: TraceSettings = TraceSettings()


class TraceStore:
    """The settings of all models and of each. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all = _Scope()
        self._models: dict[str, _Scope] = {}
        self._directory: Path | None = None

    def share(self, directory: Path) -> None:
        """Let the side process know, from now on; `directory` is that of the server."""
        with self._lock:
            self._directory = directory
            self._write()

    def settings(self, model: str = "") -> TraceSettings:
        """What holds for a model, or for all that have no settings of their own; `count` is what is left of it."""
        with self._lock:
            scope = model if model in self._models else ""
            holds = self._models.get(model, self._all).settings
            left = read_report(self._directory).left if self._directory is not None else {}
        revision, count = left.get(scope, (-1, 0))
        return replace(holds, count=count) if revision == holds.revision else holds

    def update(self, model: str, changes: Mapping[str, Any]) -> None:
        """Change settings of a model, or of all ("").

        Args:
            model: its name.
            changes: values by the names of `TraceSettings`; None goes back to what holds for all models, or to the default.
        """
        with self._lock:
            scope = self._models.setdefault(model, _Scope(settings=self._all.settings)) if model else self._all
            beneath = self._all.settings if model else TraceSettings()
            _change(scope, changes, beneath)
            if model and not scope.own:
                del self._models[model]
            if not model:
                for other in self._models.values():
                    inherited = {key: getattr(scope.settings, key) for key in changes if key not in other.own}
                    other.settings = _next(other.settings, inherited)
            self._write()

    def _write(self) -> None:
        if self._directory is None:
            return
        told = {model: asdict(scope.settings) for model, scope in {"": self._all, **self._models}.items()}
        try:
            replace_file(self._directory / SETTINGS_FILE, json.dumps(told).encode())
        except OSError as error:
            log.warning("the side process will not know what is to be traced: %s", error.strerror)


def read_settings(directory: Path) -> dict[str, TraceSettings]:
    """What a server has written; empty where it has not."""
    try:
        return {model: TraceSettings(**told) for model, told in json.loads((directory / SETTINGS_FILE).read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _change(scope: _Scope, changes: Mapping[str, Any], beneath: TraceSettings) -> None:
    for key, value in changes.items():
        if value is None:
            scope.own.pop(key, None)
        else:
            scope.own[key] = value
    scope.settings = _next(
        scope.settings, {key: getattr(beneath, key) if value is None else value for key, value in changes.items()}
    )


def _next(settings: TraceSettings, values: Mapping[str, Any]) -> TraceSettings:
    return replace(settings, **values, revision=settings.revision + 1)
