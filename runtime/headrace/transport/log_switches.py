"""What of this process's log is written: switches that clients may turn, over Python's logging below `headrace`.

The log belongs to the process, not to an engine: several servers in one process share it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from weakref import WeakKeyDictionary

ISO8601 = "ISO8601"
FORMATS = ("default", ISO8601)

_TREE = "headrace"
_originals: WeakKeyDictionary[logging.Formatter, str | None] = WeakKeyDictionary()
"""Formatters whose time stamps were changed, and how those looked before."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Which levels are written, and how an instant looks: `default` is the handler's own way, `ISO8601` that of UTC.

    Each level has its switch; `log_verbose_level` above 0 writes what is for debugging.
    """

    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose_level: int = 0
    log_format: str = "default"

    def writes(self, level: int) -> bool:
        """Whether a record of this level of Python's is written. That something broke for good always is."""
        if level >= logging.CRITICAL:
            return True
        if level >= logging.ERROR:
            return self.log_error
        if level >= logging.WARNING:
            return self.log_warning
        return self.log_info if level >= logging.INFO else self.log_verbose_level > 0


class LogSwitches:
    """The settings of one server. They begin as the process's logging stands; where servers share it, the last word counts."""

    def __init__(self) -> None:
        level = logging.getLogger(_TREE).getEffectiveLevel()
        self.settings = LogSettings(
            log_info=level <= logging.INFO,
            log_warning=level <= logging.WARNING,
            log_error=level <= logging.ERROR,
            log_verbose_level=int(level <= logging.DEBUG),
        )

    def turn(self, settings: LogSettings) -> None:
        """Make these the settings."""
        self.settings = settings
        tree = logging.getLogger(_TREE)
        levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
        tree.setLevel(next(level for level in levels if settings.writes(level)))
        # A logger's filter does not see what its children log; those of handlers do.
        for handler in {*logging.getLogger().handlers, *tree.handlers}:
            handler.filters[:] = [kept for kept in handler.filters if not isinstance(kept, _Passes)]
            handler.addFilter(_Passes(settings))
            if handler.formatter is not None:
                _stamp(handler.formatter, settings.log_format)


class _Passes(logging.Filter):
    """On each handler, of whichever server turned a switch last."""

    def __init__(self, settings: LogSettings) -> None:
        super().__init__(_TREE)
        self._settings = settings

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written; those that are not ours always are."""
        return not super().filter(record) or self._settings.writes(record.levelno)


def _stamp(formatter: logging.Formatter, form: str) -> None:
    if form == ISO8601:
        _originals.setdefault(formatter, formatter.datefmt)
        formatter.datefmt = "%Y-%m-%dT%H:%M:%SZ"
        formatter.converter = time.gmtime
    elif formatter in _originals:
        formatter.datefmt = _originals.pop(formatter)
        vars(formatter).pop("converter", None)
