"""The ledger: one fixed-size record per request and per batch, in preallocated rings.

Owner: the engine. Written by whoever settles, from any thread, under one lock. Read in bulk: whoever wants to know
something drains what is unread into the views. A ring that is full is drained by the writer, so nothing is ever lost.
Where the rings are in files (`ledger.home`), other processes read them, too, each at its own pace.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

from headrace.ledger.home import Home
from headrace.ledger.identity import Identity, Part
from headrace.ledger.records import BATCH, BATCHES, REQUEST, REQUESTS, BatchRecord, Records, RequestRecord
from headrace.ledger.ring import Ring
from headrace.model import ModelSpec
from headrace.protocol.origin import GIVEN
from headrace.request import Origin

Source = Callable[[], tuple[bytes, bytes]]
"""Packed records that are written elsewhere and were not taken yet: of requests, of batches."""
Share = Callable[[int, int], None]
"""Lets whoever writes them do so into the rings of two files, given their descriptors: of requests, of batches."""
Fold = Callable[[Records, Records], None]
"""What takes (request records, batch records) and adds them to whatever it keeps."""

_T = TypeVar("_T")
_NUMBERS = 44
"""Bits of what one queue may number, requests or batches: at a hundred thousand a second, years."""
_SHARED = (1 << 15, 1 << 13)
"""Records that the rings of the kernels hold, which write most of them: of requests, of batches."""


def in_turn(*folds: Fold) -> Fold:
    """One fold out of several."""

    def fold(requests: Records, batches: Records) -> None:
        for each in folds:
            each(requests, batches)

    return fold


class Account(NamedTuple):
    """How the ledger knows a queue: by the number of its version, and its requests and batches by numbers over `above`."""

    model: int
    above: int


class Ledger:
    """The rings, the numbers of the versions, and where the records go when they are read.

    Attributes:
        identity: whose spans are made of the records; None where nobody makes any.

    Args:
        fold: where records go; called under the ledger's lock.
        capacity: records a ring holds before the writer has to fold.
    """

    def __init__(self, fold: Fold, capacity: int = 1 << 14) -> None:
        self._fold, self._capacity = fold, capacity
        self._requests = Ring(REQUESTS, capacity)
        self._batches = Ring(BATCHES, capacity)
        self._lock = threading.Lock()
        self._sources: list[tuple[Source, Share | None]] = []
        self._taken = (0, 0)
        self._models: dict[tuple[str, int, str], int] = {("", 0, ""): 0}
        self._names = list(self._models)
        self._opened: Counter[int] = Counter()
        self.identity: Identity | None = None
        self._home: Home | None = None

    def share(self, home: Home) -> None:
        """Write into rings of files from now on, for other processes to read. Once.

        Raises:
            OSError: there is no room for them; then nothing has changed.
        """
        with self._lock:
            self._drain()
            rings = home.make_rings("python", self._capacity, self._capacity)
            for number, (_, share) in enumerate(self._sources):
                if share is not None:
                    self._share_source(home, number, share)
            self._taken = self._taken[0] + self._requests.written, self._taken[1] + self._batches.written
            self._requests = Ring(REQUESTS, 0, rings[0])
            self._batches = Ring(BATCHES, 0, rings[1])
            for number, name in enumerate(self._names):
                home.name(number, *name)
            self._home = home

    def register(self, spec: ModelSpec) -> int:
        """The number under which records name this model, version and digest. A reload of the same gets the same number."""
        key = (spec.name, spec.version, spec.digest)
        with self._lock:
            if key not in self._models:
                self._models[key] = len(self._names)
                self._names.append(key)
                if self._home is not None:
                    self._home.name(self._models[key], *key)
            return self._models[key]

    def open_account(self, spec: ModelSpec) -> Account:
        """For a queue. However often a version is loaded again, no number of its requests or batches comes twice."""
        model = self.register(spec)
        with self._lock:
            self._opened[model] += 1
            return Account(model, self._opened[model] - 1 << _NUMBERS)

    def origin_within(self, origin: Origin, model: int, number: int) -> Origin:
        """Where what is sent on for a request comes from: from the execution of that request, which came from `origin`."""
        client, high, low, span, _, _, flags, context = origin
        if context == GIVEN and self.identity is not None:
            span = self.identity.of(Part.EXECUTE, model, number)
        return Origin(client, high, low, span, number, model, flags, context)  # for every request: `_replace` takes twice as long

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

    def add_source(self, source: Source, share: Share | None = None) -> None:
        """Take records from there, too, whenever the ledger is drained; `share` lets other processes read them."""
        with self._lock:
            self._sources.append((source, share))
            if self._home is not None and share is not None:
                self._share_source(self._home, len(self._sources) - 1, share)

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

    def _share_source(self, home: Home, number: int, share: Share) -> None:
        share(*home.make_rings(f"native{number or ''}", *_SHARED))

    def _drain(self) -> None:
        self._fold(self._requests.take_unread(), self._batches.take_unread())
        for source, _ in self._sources:
            requests, batches = (np.frombuffer(packed, kind) for packed, kind in zip(source(), (REQUEST, BATCH), strict=True))
            self._taken = self._taken[0] + len(requests), self._taken[1] + len(batches)
            if len(requests) or len(batches):
                self._fold(requests, batches)
