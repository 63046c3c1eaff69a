"""A ring of fixed-size records in memory, which may be a file that other processes map. `docs/ledger.md` draws the format.

The header is a page: magic, layout, size of a record, capacity, kind; at 64, `written`, how many records there have been; at 128,
how far the wall clock is ahead of CLOCK_MONOTONIC. Record `n` lies at `n % capacity`. There is one writer at a time. A record is
complete before `written` counts it, so one that a writer died in is never seen. A reader elsewhere copies, then looks at
`written` again: what may have been written over meanwhile is counted as overrun, and not returned.

`kernels/core/src/ring.rs` writes the same format.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.errors import InvalidLedger
from headrace.ledger.records import BATCHES, REQUESTS, Layout, Records, at

HEADER_BYTES = 4096
MAGIC = b"HRLEDGER"
MOST_RECORDS = 1 << 15
"""Taken of a ring at once."""
LAYOUT = 1
_HEAD = struct.Struct("<8sIIQI")
_WRITTEN_AT, _WALL_AT = 64, 128
KINDS = (REQUESTS, BATCHES)
"""Layouts by the kind that the header names."""


def make_ring_file(path: Path, layout: Layout, capacity: int) -> int:
    """Make the file of a ring, with room for all of it, so that nobody finds out later that there is none.

    Returns:
        An open descriptor, the caller's.

    Raises:
        OSError: there is no room, or it cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, HEADER_BYTES + capacity * layout.size)
        os.pwrite(descriptor, _HEAD.pack(MAGIC, LAYOUT, layout.size, capacity, KINDS.index(layout)), 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class Clocks:
    """The two counters in a header that a server keeps: how many there have been, and how the clocks stand."""

    def __init__(self, memory: mmap.mmap) -> None:
        words: NDArray[np.int64] = np.frombuffer(memory, np.int64, HEADER_BYTES // 8)
        self._words = words

    @property
    def written(self) -> int:
        """How many records there have been."""
        return int(self._words[_WRITTEN_AT // 8])

    @written.setter
    def written(self, count: int) -> None:
        self._words[_WRITTEN_AT // 8] = count

    @property
    def wall_ahead(self) -> int:
        """How far the wall clock is ahead of the monotonic one, in ns."""
        return int(self._words[_WALL_AT // 8])

    @wall_ahead.setter
    def wall_ahead(self, ns: int) -> None:
        self._words[_WALL_AT // 8] = ns


class _Barrier:
    """What is done before it is crossed is seen before what is done afterwards, by other processes and on all processors, too.

    Python has no barrier of its own, but whoever leaves a lock and takes it again crosses one. To take it first and then leave it
    would be none: a processor may move what comes before and what comes after into the middle, and there past each other.
    """

    def __init__(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        self._leave, self._take = lock.release, lock.acquire

    def cross(self) -> None:
        """Do so. One thread at a time."""
        self._leave()
        self._take()


class Ring:
    """The writer's side, with a reader in the same process that loses nothing: what it has not read is not written over.

    Whoever writes takes a lock for each record, and leaves it: that keeps the counter of one record before the next record.

    Args:
        layout: of the records.
        capacity: how many it holds, when it is not in a file.
        descriptor: of a file that `make_ring_file` made; it stays the caller's. Without, nobody else sees the records.
    """

    def __init__(self, layout: Layout, capacity: int, descriptor: int = -1) -> None:
        self._pack_into, self._size = layout.struct.pack_into, layout.size
        if descriptor >= 0:
            capacity = (os.fstat(descriptor).st_size - HEADER_BYTES) // layout.size
        self._capacity = capacity
        self._memory = mmap.mmap(descriptor, HEADER_BYTES + capacity * layout.size)
        self._records = np.frombuffer(self._memory, layout.dtype, capacity, HEADER_BYTES)
        self._counter = memoryview(self._memory)[_WRITTEN_AT : _WRITTEN_AT + 8].cast("q")
        self._cross_barrier = _Barrier().cross
        self.written = self._read = 0

    @property
    def is_full(self) -> bool:
        """Whether the next record would be written over one that was not read."""
        return self.written - self._read == self._capacity

    def write(self, record: tuple[int, ...]) -> None:
        """Add a record."""
        written = self.written
        self._pack_into(self._memory, HEADER_BYTES + written % self._capacity * self._size, *record)
        self.written = written + 1
        self._cross_barrier()
        self._counter[0] = written + 1

    def take_unread(self) -> Records:
        """Copies of what was not taken before."""
        slots = np.arange(self._read, self.written) % self._capacity
        self._read = self.written
        return at(self._records, slots)


class Seen(NamedTuple):
    """What a reader got: records, the oldest first, and how many were written over before it came."""

    records: Records
    overrun: int


class RingReader:
    """A reader in another process. It sees what is written from `behind` records before now on.

    Args:
        path: of the file.
        behind: how many of the records that are there already to read; None for all.

    Raises:
        InvalidLedger: it is no ring, or one of another release.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, behind: int | None = None) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size < HEADER_BYTES:
                raise InvalidLedger(f"{path} is no ring of a ledger: it is too short")
            memory = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        magic, layout, record_bytes, self.capacity, kind = _HEAD.unpack_from(memory)
        if magic != MAGIC:
            raise InvalidLedger(f"{path} is no ring of a ledger")
        if layout != LAYOUT or kind >= len(KINDS) or record_bytes != KINDS[kind].size:
            raise InvalidLedger(f"{path} was written by another release of Headrace; read it with that one")
        if self.capacity == 0 or size < HEADER_BYTES + self.capacity * record_bytes:
            raise InvalidLedger(f"{path} is no ring of a ledger: it is shorter than it says")
        self.layout = KINDS[kind]
        self._header = Clocks(memory)
        self._records: NDArray[Any] = np.frombuffer(memory, self.layout.dtype, self.capacity, HEADER_BYTES)
        self._cross_barrier = _Barrier().cross
        self.read = 0 if behind is None else max(0, self._header.written - behind)

    @property
    def wall_ahead(self) -> int:
        """How far the wall clock of the server is ahead of the monotonic one, in ns."""
        return self._header.wall_ahead

    @property
    def unread(self) -> int:
        """How many there are that were not taken, those that are overrun among them."""
        return self._header.written - self.read

    def take(self, most: int = MOST_RECORDS) -> Seen:
        """Copies of what was written since the last time, at most so many."""
        written = self._header.written
        self._cross_barrier()
        first = max(self.read, written - self.capacity)
        end = min(written, first + most)
        copied = at(self._records, np.arange(first, end) % self.capacity)
        self._cross_barrier()
        # The writer may be in the middle of the next one, which lies where the oldest one did.
        whole = self._header.written + 1 - self.capacity
        lost = min(max(whole - first, 0), end - first)
        overrun = first - self.read + lost
        self.read = end
        return Seen(copied[lost:], overrun)


def is_full_disk(error: OSError) -> bool:
    """Whether there was no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
