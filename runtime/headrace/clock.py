"""The one clock.

Instants and durations on the way of a request are whole nanoseconds of CLOCK_MONOTONIC: the unit of the ledger, shared
with every other process of the machine. Wall time appears only where a person or a protocol asks for it.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000


class Clock(Protocol):
    """Where the time comes from, and the only way to wait for it."""

    def now(self) -> int:
        """The instant, in ns."""
        ...

    def wait(self, condition: threading.Condition, until: int | None) -> None:
        """Wait on a held `condition` until it is notified or `until` (ns) has come; may return early."""
        ...


class MonotonicClock:
    """CLOCK_MONOTONIC."""

    now = staticmethod(time.monotonic_ns)
    """The instant, in ns. Asked ten times a request, so without a step in between."""

    def wait(self, condition: threading.Condition, until: int | None) -> None:
        """Wait on a held `condition` until it is notified or `until` (ns) has come."""
        condition.wait(None if until is None else max(0.0, (until - time.monotonic_ns()) / SECOND))


class VirtualClock:
    """A clock that tests move. Whoever waits is woken by `advance`, never by time."""

    def __init__(self, now: int = SECOND) -> None:
        self._now = now
        self._waiting: set[threading.Condition] = set()
        self._lock = threading.Lock()

    def now(self) -> int:
        """The instant, in ns."""
        return self._now

    def wait(self, condition: threading.Condition, until: int | None) -> None:
        """Wait on a held `condition` until it is notified, or `advance` was called."""
        with self._lock:
            if until is not None and until <= self._now:
                return
            self._waiting.add(condition)
        condition.wait()

    def advance(self, by: int) -> None:
        """Move the time on by `by` ns and wake everyone who waits for it."""
        with self._lock:
            self._now += by
            waiting, self._waiting = self._waiting, set()
        for condition in waiting:
            with condition:
                condition.notify_all()
