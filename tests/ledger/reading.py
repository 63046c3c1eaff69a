"""Records of an engine in this process, read as another process reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from headrace.engine.engine import Engine
from headrace.ledger.collect import REQUEST_KIND, Collector
from headrace.ledger.home import Home, neighbour, open_home
from headrace.ledger.records import RequestRecord


class Reader:
    """Reads the ledger of a server as another process does."""

    def __init__(self, home: Home) -> None:
        self._server = neighbour(home.path)
        self._collector = Collector(self._server)

    def take(self) -> list[tuple[str, RequestRecord]]:
        """The new records of requests, each with its model."""
        chunks, _ = self._collector.take()
        names = self._server.learn()
        requests = [chunk.records for chunk in chunks if chunk.kind == REQUEST_KIND]
        return [(names[int(each["model"])][0], RequestRecord(*each.tolist())) for records in requests for each in records]


@contextmanager
def reading(engine: Engine) -> Iterator[Reader]:
    """What the engine writes from now on."""
    home = open_home()
    engine.ledger.share(home)
    yield Reader(home)
    home.close()
