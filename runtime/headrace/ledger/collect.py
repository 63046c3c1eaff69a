"""The rings of one server, read from another process, each as far as this reader has come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.ledger.home import Neighbour
from headrace.ledger.records import REQUESTS, Records
from headrace.ledger.ring import MOST_RECORDS, RingReader

REQUEST_KIND, BATCH_KIND = "requests", "batches"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records of one ring that follow one another, from position `first` on, up to `end`.

    `kind` says of what they are; `wall_ahead` is how far the server's wall clock was ahead of their instants.
    """

    kind: str
    ring: str
    first: int
    records: Records
    wall_ahead: int

    @property
    def end(self) -> int:
        """The position behind the last one."""
        return self.first + len(self.records)

    def since(self, position: int) -> Chunk:
        """Those from a position on."""
        skipped = min(max(position - self.first, 0), len(self.records))
        return Chunk(self.kind, self.ring, self.first + skipped, self.records[skipped:], self.wall_ahead)


class Collector:
    """Reads the rings of a server, those that it opens later among them.

    Args:
        server: whose.
        behind: how many of the records that are there already to read, of each ring; None for all.
        positions: from where to go on instead, by the names of rings.
    """

    def __init__(self, server: Neighbour, behind: int | None = None, positions: Mapping[str, int] | None = None) -> None:
        self._server, self._behind, self._positions = server, behind, positions or {}
        self._readers: dict[Path, RingReader] = {}
        self._known: set[str] = set()

    def rounds(self) -> Iterator[tuple[list[Chunk], int]]:
        """`take`, at least once, until what was there is taken: what comes meanwhile is for the next time, and more at once."""
        is_more = True
        while is_more:
            chunks, overrun = self.take()
            is_more = any(len(chunk.records) >= MOST_RECORDS for chunk in chunks)
            yield chunks, overrun

    def take(self) -> tuple[list[Chunk], int]:
        """What was written since the last time, and how many records were written over before they could be read.

        A ring that is full is one chunk; call it again for more.

        Raises:
            InvalidLedger: a ring is of another release.
        """
        for path in self._server.rings():
            if path.name not in self._known:
                self._known.add(path.name)
                reader = self._readers[path] = RingReader(path, self._behind)
                reader.read = self._positions.get(path.name, reader.read)
        chunks: list[Chunk] = []
        overrun = 0
        # Batches first, those of the kernels before those of Python: what a graph visited is there when its batch is.
        for path, reader in sorted(self._readers.items()):
            seen = reader.take()
            overrun += seen.overrun
            if len(seen.records):
                kind = REQUEST_KIND if reader.layout is REQUESTS else BATCH_KIND
                chunks.append(Chunk(kind, path.name, reader.read - len(seen.records), seen.records, reader.wall_ahead))
        return chunks, overrun
