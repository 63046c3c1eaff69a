"""Telling others of the budgets once a second, and seeing to it that what was counted outlives the server.

`budgets.json` in the directory of the ledger is written anew every minute and at the end, whole or not at all. Of several
servers that share a directory one keeps the file; when it has ended, another takes it over, and adds what it has counted itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from pathlib import Path
from typing import Any

from headrace.budgets.budgets import Budgets
from headrace.budgets.decisions import FILE as DECISIONS
from headrace.budgets.decisions import Decisions
from headrace.budgets.history import MINUTE
from headrace.budgets.report import FILE, report_of
from headrace.clock import Clock, MonotonicClock
from headrace.errors import sentence
from headrace.files import replace_file
from headrace.ledger.ledger import Ledger

log = logging.getLogger(__name__)

_LOCK = ".budgets.lock"
_FORMAT = 1


class Keeping:
    """Keeps the budgets of a server. For one thread.

    Args:
        budgets: of the server.
        ledger: which feeds them.
        published: the directory where other processes look for what the server says; None if there is none.
        directory: where to keep what is counted; None is nowhere.
        decisions: of the server, to be told, too.
        clock: the clock.
    """

    def __init__(
        self,
        budgets: Budgets,
        ledger: Ledger,
        published: Path | None,
        directory: Path | None,
        decisions: Decisions | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._budgets, self._ledger, self._clock = budgets, ledger, clock or MonotonicClock()
        self._published = None if published is None else published / FILE
        self._directory = directory
        self._decisions, self._told = decisions or Decisions(), -1
        self._lock = -1
        self._written_at = self._clock.now()
        self._failing: set[Path] = set()
        self._others: dict[str, Any] = {}
        """What is kept of objectives that are not there now, and may come back."""
        self._take_over()

    def beat(self) -> None:
        """Tell others, and write if it is time."""
        now = self._clock.now()
        report = self._ledger.read(lambda: report_of(self._budgets, now))
        if self._published is not None:
            self._write(self._published, report)
            if self._told != (count := self._decisions.count):
                self._told = count
                self._write(self._published.with_name(DECISIONS), {"decisions": self._decisions.latest()})
        if now - self._written_at >= MINUTE:
            self._take_over()
            self._keep(now)

    def close(self) -> None:
        """Write what was counted, and let another server have the file."""
        self._keep(self._clock.now())
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _keep(self, now: int) -> None:
        self._written_at = now
        if self._lock >= 0 and self._directory is not None:
            kept = self._ledger.read(self._budgets.dump)
            self._write(self._directory / FILE, {"format": _FORMAT, "objectives": {**self._others, **kept}})

    def _take_over(self) -> None:
        """Be the one who keeps the file, if nobody is, and go on from what it holds."""
        if self._directory is None or self._lock >= 0:
            return
        try:
            lock = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            log.warning("budgets cannot be kept in %s: %s", self._directory, error.strerror)
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            log.info("another server keeps its budgets in %s; this one's are not kept until that has ended", self._directory)
            return
        self._lock = lock
        self._read(self._directory / FILE)

    def _read(self, path: Path) -> None:
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told["format"] != _FORMAT:
                raise ValueError(f"its format is {told['format']}, not {_FORMAT}")
            kept = dict(told["objectives"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            aside = path.with_suffix(".broken")
            log.warning("%s cannot be read, budgets begin anew; it is kept as %s: %s", path, aside.name, sentence(error))
            with contextlib.suppress(OSError):
                path.rename(aside)
            return
        now = self._clock.now()
        for problem in self._ledger.read(lambda: self._budgets.include(kept, now)):
            log.warning("%s", problem)
        self._others = {name: kept[name] for name in kept if name not in self._budgets.accounts}

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        try:
            replace_file(path, json.dumps(content, allow_nan=False).encode())
        except OSError as error:
            if path not in self._failing:
                log.error("%s cannot be written: %s; it is tried again", path, error.strerror or sentence(error))
            self._failing.add(path)
        else:
            self._failing.discard(path)
