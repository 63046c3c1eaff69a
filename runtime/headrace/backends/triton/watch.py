"""Looks at a server that is not well, or may not be, until it is well again: in a thread that lives no longer than that."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from headrace.backends.triton.circuit import Circuit
from headrace.clock import Clock

log = logging.getLogger(__name__)


class Watch:
    """The circuit of one session, for all threads.

    Args:
        who: for the log.
        look: looks at the server, and says what is wrong; empty when it is well.
        clock: the clock.
    """

    def __init__(self, who: str, look: Callable[[], str], clock: Clock) -> None:
        self._who, self._look, self._clock = who, look, clock
        self._circuit = Circuit()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = self._is_doubted = False

    @property
    def why(self) -> str:
        """Why nothing is to be sent; empty when all is well."""
        return self._circuit.why

    @property
    def is_watching(self) -> bool:
        """Whether the server is being looked at."""
        return self._thread is not None

    def wait_ns(self) -> int:
        """How long until it is looked at again."""
        return self._circuit.wait(self._clock.now())

    def answered(self) -> None:
        """The server has answered a batch."""
        with self._changed:
            self._circuit.answered()

    def timed_out(self, why: str) -> None:
        """It has not answered in time."""
        with self._changed:
            self._circuit.timed_out(why, self._clock.now())
        self.doubt()

    def down(self, why: str) -> None:
        """It is not there, or not what it was."""
        with self._changed:
            was_open = self._circuit.is_open
            self._circuit.down(why, self._clock.now())
        if not was_open:
            log.warning("%s is not used for now: %s", self._who, why)
        self.doubt()

    def doubt(self) -> None:
        """It may not be well: look."""
        with self._changed:
            self._is_doubted = True
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._watch, name="headrace-triton-watch", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Look no more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _watch(self) -> None:
        while True:
            with self._changed:
                wait = self._circuit.wait(self._clock.now())
                while wait and not self._is_closed:
                    self._clock.wait(self._changed, self._clock.now() + wait)
                    wait = self._circuit.wait(self._clock.now())
                if self._is_closed:
                    self._thread = None
                    return
                self._is_doubted = False
            why = self._look()
            with self._changed:
                was_open = self._circuit.is_open
                self._circuit.looked(why, self._clock.now())
                is_done = not why and not self._is_doubted
                if is_done:
                    self._thread = None
            if why and not was_open:
                log.warning("%s is not used for now: %s", self._who, why)
            if was_open and not why:
                log.info("%s is well again", self._who)
            if is_done:
                return
