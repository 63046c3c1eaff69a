"""The ledger: one fixed-size record per request and per batch, in preallocated rings.

Owner: the engine. Written by whoever settles, from any thread, under one lock. Read in bulk: whoever wants to know
something drains what is unread into the views. A ring that is full is drained by the writer, so nothing is ever lost.
Instants are ns of CLOCK_MONOTONIC; 0 means that the request never got there.
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from headrace.model import ModelSpec


class Outcome(IntEnum):
    """How a request ended. Every request ends in exactly one of these."""

    ANSWERED = 0
    FAILED = 1
    REFUSED = 2
    INVALID = 3
    EXPIRED = 4
    CANCELLED = 5


class Refusal(IntEnum):
    """Why a refused request was refused."""

    NONE = 0
    QUEUE_FULL = 1
    QUEUE_CLOSED = 2
    DRAINING = 3
    CANNOT_MEET_DEADLINE = 4
    OTHER = 5


class RequestRecord(NamedTuple):
    """One request.

    `model` is the ledger's number of the version (0: none was found); `batch` 0 means it never ran, `place` is which of its
    requests this is. `first` is when its first answer was scattered, `scattered` when the last one was. `refusal` is a `Refusal`.
    """

    number: int = 0
    batch: int = 0
    received: int = 0
    decoded: int = 0
    queued: int = 0
    taken: int = 0
    gathered: int = 0
    executed: int = 0
    first: int = 0
    scattered: int = 0
    sent: int = 0
    deadline: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    model: int = 0
    rows: int = 0
    place: int = 0
    level: int = 0
    outcome: int = 0
    code: int = 0
    refusal: int = 0


class BatchRecord(NamedTuple):
    """One batch, or one visit of a graph to a model: that has no queue, and no `number`.

    `reason` is the plan's, as its place in `scheduling.plan.Reason`; `padding` counts elements along the padded dimension that
    nobody sent: of each row, the length it was padded to less its own.
    """

    number: int
    taken: int
    gathered: int
    executed: int
    scattered: int
    model: int
    rows: int
    requests: int
    padding: int = 0
    failed: int = 0
    instance: int = 0
    reason: int = 0


def _layout(record: type[Any], formats: str) -> tuple[struct.Struct, np.dtype[Any]]:
    names: tuple[str, ...] = record._fields
    kinds = {"Q": "<u8", "q": "<i8", "I": "<u4", "H": "<u2", "B": "u1"}
    dtype = np.dtype([(name, kinds[kind]) for name, kind in zip(names, formats, strict=True)])
    return struct.Struct("<" + formats), dtype


_REQUEST, REQUEST = _layout(RequestRecord, "QQqqqqqqqqqqQQIIIIBBH")
_BATCH, BATCH = _layout(BatchRecord, "QqqqqIIIIIHH")

Records = NDArray[np.void]
Source = Callable[[], tuple[bytes, bytes]]
"""Packed records that are written elsewhere and were not taken yet: of requests, of batches."""
Fold = Callable[[Records, Records], None]
"""What takes (request records, batch records) and adds them to whatever it keeps."""

_T = TypeVar("_T")


def in_turn(*folds: Fold) -> Fold:
    """One fold out of several."""

    def fold(requests: Records, batches: Records) -> None:
        for each in folds:
            each(requests, batches)

    return fold


class _Ring:
    """Fixed-size records in one preallocated, anonymous shared mapping."""

    def __init__(self, pack: struct.Struct, dtype: np.dtype[Any], capacity: int) -> None:
        self._pack, self._capacity = pack, capacity
        self._memory = mmap.mmap(-1, capacity * pack.size)
        self._records = np.frombuffer(self._memory, dtype)
        self.written = self._read = 0

    @property
    def is_full(self) -> bool:
        return self.written - self._read == self._capacity

    def write(self, record: tuple[int, ...]) -> None:
        self._pack.pack_into(self._memory, self.written % self._capacity * self._pack.size, *record)
        self.written += 1

    def take_unread(self) -> Records:
        slots = np.arange(self._read, self.written) % self._capacity
        self._read = self.written
        return self._records[slots]


class Ledger:
    """The rings, the numbers of the versions, and where the records go when they are read.

    Args:
        fold: where records go; called under the ledger's lock.
        capacity: records a ring holds before the writer has to fold.
    """

    def __init__(self, fold: Fold, capacity: int = 1 << 14) -> None:
        self._fold = fold
        self._requests = _Ring(_REQUEST, REQUEST, capacity)
        self._batches = _Ring(_BATCH, BATCH, capacity)
        self._lock = threading.Lock()
        self._sources: list[Source] = []
        self._taken = (0, 0)
        self._models: dict[tuple[str, int, str], int] = {("", 0, ""): 0}
        self._names = list(self._models)

    def register(self, spec: ModelSpec) -> int:
        """The number under which records name this model, version and digest. A reload of the same gets the same number."""
        key = (spec.name, spec.version, spec.digest)
        with self._lock:
            if key not in self._models:
                self._models[key] = len(self._names)
                self._names.append(key)
            return self._models[key]

    def model(self, number: int) -> tuple[str, int, str]:
        """(model, version, digest) of a number. Takes no lock, so that folding may ask."""
        return self._names[number]

    def numbers(self) -> dict[tuple[str, int], list[int]]:
        """The numbers that each (model, version) has had, one a digest."""
        with self._lock:
            known = list(self._models)
        found: dict[tuple[str, int], list[int]] = {}
        for number, (model, version, _) in enumerate(known):
            found.setdefault((model, version), []).append(number)
        return found

    def add_source(self, source: Source) -> None:
        """Take records from there, too, whenever the ledger is drained."""
        with self._lock:
            self._sources.append(source)

    def write(self, record: RequestRecord) -> None:
        """One request has been settled."""
        with self._lock:
            if self._requests.is_full:
                self._drain()
            self._requests.write(record)

    def write_batch(self, record: BatchRecord) -> None:
        """One batch has been answered."""
        with self._lock:
            if self._batches.is_full:
                self._drain()
            self._batches.write(record)

    def drain(self) -> None:
        """Fold everything that is unread."""
        with self._lock:
            self._drain()

    def read(self, look: Callable[[], _T]) -> _T:
        """Fold everything that is unread, then `look` at what it adds up to before anything else is folded.

        Every writer waits meanwhile: `look` copies what it wants and comes back.
        """
        with self._lock:
            self._drain()
            return look()

    @property
    def written(self) -> tuple[int, int]:
        """How many records there have been, up to the last drain: of requests, of batches."""
        return self._requests.written + self._taken[0], self._batches.written + self._taken[1]

    def _drain(self) -> None:
        self._fold(self._requests.take_unread(), self._batches.take_unread())
        for source in self._sources:
            requests, batches = (np.frombuffer(packed, kind) for packed, kind in zip(source(), (REQUEST, BATCH), strict=True))
            self._taken = self._taken[0] + len(requests), self._taken[1] + len(batches)
            if len(requests) or len(batches):
                self._fold(requests, batches)
