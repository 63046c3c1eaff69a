"""What waits between the segments of a graph that a job runs.

Online, whoever is idle takes what is urgent. Here, the thread that sent rows on runs them itself, when it has sent all that
belong together, in batches that depend on nothing but those rows: so a split that is made again is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from headrace.backends.base import Outputs, Piece, Session
from headrace.clock import Clock
from headrace.engine.lifecycle import UNBOUNDED
from headrace.errors import BackendFailed, HeadraceError, Overloaded
from headrace.jobs.cutting import bisect
from headrace.ledger.ledger import Ledger
from headrace.model import ModelSpec, Padding
from headrace.request import Request
from headrace.scheduling.admission import Limits
from headrace.scheduling.base import Queue
from headrace.scheduling.batch import PortableBatch
from headrace.scheduling.entry import EntryState, PortableEntry, Sink
from headrace.scheduling.expiry import PortableQueues
from headrace.scheduling.plan import Plan, Reason
from headrace.scheduling.queue import PortableQueue
from headrace.tensor import rows_of


class JobQueues:
    """See `scheduling.base.Queues`: those between segments are `InnerQueue`."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger, self._clock = ledger, clock
        self._others = PortableQueues(ledger, clock)

    def __call__(self, spec: ModelSpec, limits: Limits) -> Queue:
        """A queue for one loaded version, or for a segment of it."""
        if limits is UNBOUNDED:
            return InnerQueue(spec, limits, self._ledger, self._clock, lambda queue, at: None)
        return self._others(spec, limits)

    def close(self) -> None:
        """End what belongs to them."""
        self._others.close()


class InnerQueue(PortableQueue):
    """A queue whose entries are taken by the thread that pushed them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._mine = threading.local()
        self._ended = threading.Event()

    def push(self, request: Request, sink: Sink) -> PortableEntry:
        """Keep rows for the next `run` of this thread. See `scheduling.base.Queue.push`."""
        entry = super().push(request, sink)
        self._waiting_here.append(entry)
        return entry

    def turn(self, until: int | None, *, keeps: bool = False) -> None:
        """Nothing for instances, to the end."""
        self._ended.wait()

    def close(self) -> None:
        """Take no more."""
        super().close()
        self._ended.set()

    @property
    def nbytes_here(self) -> int:
        """How large what this thread has pushed, and not run yet, is."""
        return sum(entry.size.nbytes for entry in self._waiting_here)

    def run(self, session: Session) -> bool:
        """Run what this thread has pushed; says whether there was anything.

        Raises:
            Overloaded, MemoryError: nothing can be run now.
        """
        entries, self._mine.entries = self._waiting_here, []
        for together in _batches(entries, max(1, self.spec.max_batch_size), self.spec.padding):
            batch = self.close_turn(Plan(tuple([entry.number for entry in together]), (), None, Reason.FULL), 0)
            if batch is not None:
                _answer(batch, session)
        return bool(entries)

    @property
    def _waiting_here(self) -> list[PortableEntry]:
        if not hasattr(self._mine, "entries"):
            self._mine.entries = []
        return self._mine.entries


def _batches(entries: Sequence[PortableEntry], most: int, padding: Padding | None) -> list[list[PortableEntry]]:
    """Entries that can run together, about equally long, and no more than fit."""
    alike: dict[Any, list[PortableEntry]] = {}
    for entry in entries:
        if entry.state is EntryState.WAITING:
            alike.setdefault(entry.admitted.shapes, []).append(entry)
    elements = padding.max_elements if padding is not None else 0
    found: list[list[PortableEntry]] = []
    for group in alike.values():
        rows = most
        for entry in sorted(group, key=lambda entry: entry.admitted.length):
            after = rows + entry.admitted.rows
            if after > most or (elements and after * entry.admitted.length > elements):
                found.append([])
                after = entry.admitted.rows
            found[-1].append(entry)
            rows = after
    return found


def _answer(batch: PortableBatch, session: Session) -> None:
    """Run a batch, and answer it; what raises for some of its requests, for those alone."""

    def run(first: int, last: int) -> None:
        part = batch if last - first == len(batch) else batch.between(first, last)
        for place, piece, final in pieces_of(session.run(part), part.offsets):
            try:
                if isinstance(piece, HeadraceError):
                    raise piece
                batch.send(first + place, piece, final)
            except HeadraceError as error:
                batch.fail(error, first + place)

    def fail(place: int, error: Exception) -> None:
        batch.fail(BackendFailed.of(error), place)

    stopped: BaseException | None = None
    with batch:
        try:
            if session.replayable:
                bisect(0, len(batch), run, fail)
            else:
                run(0, len(batch))
        except (Overloaded, MemoryError) as error:
            stopped = error
            raise
    if stopped is not None:  # the batch tells its requests, and nobody else
        raise stopped


def pieces_of(outputs: Outputs | Iterator[Piece] | None, offsets: Sequence[int]) -> list[Piece]:
    """What a session has returned, request by request."""
    if outputs is None:
        return []
    if not isinstance(outputs, Mapping):
        return list(outputs)
    bounds = enumerate(pairwise(offsets))
    return [(place, {name: rows_of(t, a, b) for name, t in outputs.items()}, True) for place, (a, b) in bounds]
