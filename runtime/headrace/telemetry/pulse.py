"""A thread that sleeps and looks how late it is: what any thread of the server waits for the interpreter (the GIL).

How late the operating system wakes it is in that, too: some tens of µs on an idle machine. The same beat looks at the clocks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from headrace.clock import MILLISECOND, SECOND
from headrace.ledger.histograms import DURATION_EDGES, Histogram

_BEAT_NS = 50 * MILLISECOND
_LOOK_EVERY = 20
"""Beats between two looks at the clocks."""


class Pulse:
    """Beats until it is closed.

    Args:
        look: called about once a second.
    """

    def __init__(self, look: Callable[[], None] = lambda: None) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._waits = Histogram(DURATION_EDGES)
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="headrace-pulse", daemon=True)

    def start(self) -> None:
        """Begin. Once."""
        self._thread.start()

    def close(self) -> None:
        """End. Any number of times."""
        self._is_closed = True
        if self._thread.is_alive():
            self._thread.join()

    @property
    def waits(self) -> Histogram:
        """What was waited for the interpreter, in ns: a copy."""
        with self._lock:
            copied = Histogram(DURATION_EDGES)
            copied.include(self._waits)
            return copied

    def beat(self) -> None:
        """Sleep once, and count how late that ends."""
        due = time.monotonic_ns() + _BEAT_NS
        time.sleep(_BEAT_NS / SECOND)
        late = time.monotonic_ns() - due
        with self._lock:
            self._waits.add(np.array([max(late, 0)], np.int64))

    def _run(self) -> None:
        beats = 0
        while not self._is_closed:
            self.beat()
            beats += 1
            if beats % _LOOK_EVERY == 0:
                self._look()
