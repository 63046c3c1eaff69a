"""What a side process has done, in a few counters that its server maps, and a bell to ask it to write what it holds.

Each counter has one writer. A side process that is started anew goes on from what it finds.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BYTES = 4096


def make_tally(path: Path) -> None:
    """Make the file.

    Raises:
        OSError: there is no room for it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _BYTES)
    finally:
        os.close(descriptor)


class _Counter:
    """One word of a tally."""

    def __init__(self, place: int) -> None:
        self._place = place

    def __get__(self, tally: Tally, kind: type[Tally]) -> int:
        return int(tally.words[self._place])

    def __set__(self, tally: Tally, value: int) -> None:
        tally.words[self._place] = value


class Tally:
    """The counters. `asked` belongs to those who ask, the others to the side process.

    Attributes:
        pid: its process number; 0 while there is none.
        overrun: records that were written over before it had read them.
        spilled: records that it has written to segments.
        unwritten: records that it could not write: the disk was full.
        asked: how often it was asked to write what it holds.
        done: up to which of these it has done so.
        untraced: records that were written over before it had decided whether to keep their trace.
        spans_sent: spans that the endpoint has taken.
        spans_capped: spans that were above the cap.
        spans_unbuffered: spans for which there was no room, because the endpoint is too slow.
        spans_failed: spans that the endpoint did not take.
        spans_joined: spans of others that say something of a request.
        spans_unmatched: those of no request that is known.
        spans_ambiguous: those of several.
        spans_implausible: those that say what cannot be.
        spans_unused: those that say nothing of our time.
        spans_malformed: those that are none.
        spans_without_room: those that were sent when too many waited.
        messages_too_large: messages of such spans that were refused: above the limit,
        messages_garbage: not understood,
        messages_busy: one too many at once,
        messages_slow: not there in time.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be mapped.
    """

    pid, overrun, spilled, unwritten, asked, done = map(_Counter, range(6))
    untraced, spans_sent, spans_capped, spans_unbuffered, spans_failed = map(_Counter, range(6, 11))
    spans_joined, spans_unmatched, spans_ambiguous, spans_implausible = map(_Counter, range(11, 15))
    spans_unused, spans_malformed, spans_without_room = map(_Counter, range(15, 18))
    messages_too_large, messages_garbage, messages_busy, messages_slow = map(_Counter, range(18, 22))

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.words: NDArray[Any] = np.frombuffer(mmap.mmap(descriptor, _BYTES), np.int64)
        finally:
            os.close(descriptor)
        self._path = path
        self._lock = -1

    def claim(self) -> bool:
        """Be the side process, until this process ends; False if another one is."""
        self._lock = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = -1
            return False
        self.pid = os.getpid()
        return True
