"""A conversation over one socket, where several threads wait for different things.

Whoever waits reads, and hears what is for others, too; so a batch costs no thread between the socket and who waits for it. The
server's side and the process's have one each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

Message = dict[str, Any]


class Over(Exception):
    """Nothing will ever be heard again; says why."""


class Late(Exception):
    """It was not heard in time."""


class Listening:
    """Threads that wait for what is heard.

    Args:
        receive: the next message and its descriptors, within so many seconds (None: for ever); raises `Over` or `Late`.
        hear: does what a message says; by one thread at a time. Must not wait for another message.
    """

    def __init__(
        self, receive: Callable[[float | None], tuple[Message, list[int]]], hear: Callable[[Message, list[int]], None]
    ) -> None:
        self._receive, self._hear = receive, hear
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._is_reading, self._waiting = False, 0
        self._over: Exception | None = None

    def wait(self, is_done: Callable[[], object], seconds: float | None = None) -> None:
        """Listen until something is so that is made so by hearing.

        Raises:
            Over: it will not be.
            Late: it is not yet.
        """
        left, until = seconds, None if seconds is None else monotonic() + seconds
        with self._lock:
            while not is_done():
                if self._over is not None:
                    raise self._over
                if not self._is_reading:
                    self._listen(left)
                else:
                    self._wait(left)
                if until is not None:
                    left = max(0.0, until - monotonic())

    def end(self, why: Exception) -> None:
        """Whoever waits is told `why` it is over."""
        with self._changed:
            self._over = self._over or why
            self._changed.notify_all()

    def _listen(self, seconds: float | None) -> None:
        """Read one message, in the name of all."""
        self._is_reading = True
        self._lock.release()
        over: Exception | None = None
        try:
            self._hear(*self._receive(seconds))
        except Over as error:
            over = error
        finally:
            self._lock.acquire()
            self._is_reading = False
            self._over = self._over or over
            if self._waiting:
                self._changed.notify_all()

    def _wait(self, seconds: float | None) -> None:
        """Let another thread listen."""
        self._waiting += 1
        try:
            if not self._changed.wait(seconds):
                raise Late
        finally:
            self._waiting -= 1
