"""What the side process does with records: hold them until there are enough, then write them to segments.

A disk that is full stops nobody: what is held stays until there is room, as far as that is bounded, and what had to be dropped
is counted.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from headrace.clock import SECOND
from headrace.errors import InvalidLedger, sentence
from headrace.ledger.collect import BATCH_KIND, REQUEST_KIND, Chunk, Collector
from headrace.ledger.home import Neighbour
from headrace.ledger.segments import Limits, ends_of, read_segments, remove_old, remove_unfinished, write_segment
from headrace.ledger.tables import table_of
from headrace.ledger.tally import Tally

log = logging.getLogger(__name__)

_AGAIN_NS = 5 * SECOND
"""How long to wait after a segment that could not be written."""
_MOST_HELD = 3
"""As many segments may be held in memory, when they cannot be written."""


class Spill:
    """Follows one server.

    Args:
        server: the server.
        directory: where segments go; it is made.
        limits: what may be there.
        segment_bytes: of records, as they lie in memory, that make a segment.
        segment_ns: how long records wait for more.

    Raises:
        InvalidLedger: the directory cannot be used.
    """

    def __init__(self, server: Neighbour, directory: Path, limits: Limits, segment_bytes: int, segment_ns: int) -> None:
        self._server, self._directory, self._limits = server, directory, limits
        self._segment_bytes, self._segment_ns = segment_bytes, segment_ns
        try:
            directory.mkdir(parents=True, exist_ok=True)
            remove_unfinished(directory)
            segments, broken = read_segments(directory)
        except OSError as error:
            raise InvalidLedger(f"cannot keep a ledger in {directory}: {sentence(error)}") from None
        for problem in broken:
            log.warning("%s; it is left as it is", problem)
        self._collector = Collector(server, positions=ends_of(segments, server.id))
        self._tally: Tally = server.tally
        self._held: dict[str, list[Chunk]] = {REQUEST_KIND: [], BATCH_KIND: []}
        self._since = 0
        self._again_at = 0
        self._failing = 0
        """Records that were dropped since segments cannot be written, plus one."""

    @property
    def held(self) -> int:
        """How many records are not in a segment yet."""
        return sum(len(chunk.records) for chunks in self._held.values() for chunk in chunks)

    def tick(self, now: int) -> None:
        """Take what there is, and write a segment if it is time; `now` is in ns."""
        asked = self._tally.asked
        self._take(now)
        is_due = self._bytes() >= self._segment_bytes or (self.held and now - self._since >= self._segment_ns)
        if asked > self._tally.done:
            if self.write(now):
                self._tally.done = asked
        elif is_due and now >= self._again_at:
            self.write(now)

    def finish(self, now: int) -> None:
        """Take and write everything there is: the server has ended, or we are to."""
        self._take(now)
        if not self.write(now):
            self._tally.unwritten += self.held
            log.error("%d records were not written: there is nobody left to keep them", self.held)

    def write(self, now: int) -> bool:
        """Write what is held; says whether that is done."""
        names = self._server.learn()
        for kind, chunks in self._held.items():
            if not chunks:
                continue
            try:
                write_segment(self._directory, kind, self._server.id, chunks, table_of(chunks, kind, self._server.id, names))
            except OSError as error:
                self._failed(error, now)
                return False
            self._tally.spilled += sum(len(chunk.records) for chunk in chunks)
            chunks.clear()
        if self._failing:
            log.warning("segments can be written again; %d records are not in them", self._failing - 1)
            self._failing = 0
        remove_old(self._directory, self._limits, time.time())
        return True

    def _take(self, now: int) -> None:
        for chunks, overrun in self._collector.rounds():
            if overrun:
                self._tally.overrun += overrun
                log.warning("%d records were written over before they could be read", overrun)
            if chunks and not self.held:
                self._since = now
            for chunk in chunks:
                self._held[chunk.kind].append(chunk)
            self._bound()

    def _bound(self) -> None:
        """Drop the oldest of what cannot be written: memory has an end, too."""
        while self._failing and self._bytes() > _MOST_HELD * self._segment_bytes:
            kind = max(self._held, key=lambda kind: sum(chunk.records.nbytes for chunk in self._held[kind]))
            lost = len(self._held[kind].pop(0).records)
            self._tally.unwritten += lost
            self._failing += lost

    def _bytes(self) -> int:
        return sum(chunk.records.nbytes for chunks in self._held.values() for chunk in chunks)

    def _failed(self, error: OSError, now: int) -> None:
        self._again_at = now + _AGAIN_NS
        if not self._failing:
            self._failing = 1
            log.error(
                "the ledger cannot be written to %s: %s; requests are served all the same, and the records are kept while "
                "there is memory for them",
                self._directory,
                error.strerror or sentence(error),
            )
