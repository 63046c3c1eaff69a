"""Questions in SQL to a ledger: to its segments, and to what a running server has not written there yet. Read-only.

DuckDB answers, in memory. What it is asked about is given to it as tables before the question comes; then it is cut off: it can
read and write no file, load nothing, and change none of that. Only questions are taken.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as pd

from headrace.errors import InvalidLedger, sentence
from headrace.ledger.collect import BATCH_KIND, REQUEST_KIND, Chunk, Collector
from headrace.ledger.home import Neighbour
from headrace.ledger.records import STAGES
from headrace.ledger.segments import Segment, ends_of, read_segments
from headrace.ledger.tables import SCHEMAS, table_of

_PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.02

_DURATIONS = ", ".join(f"(coalesce({end}, sent) - {begin}) / 1e3 AS {name}_us" for name, (begin, end) in STAGES.items())
VIEWS: Mapping[str, str] = {
    "stages": f"""
        SELECT *,
            {_DURATIONS},
            (sent - received) / 1e3 AS request_us, predicted_ns / 1e3 AS predicted_us
        FROM requests""",
    "visits": "SELECT * FROM batches WHERE reason = 'graph'",
}
"""Views by name; durations in µs."""


@dataclass(slots=True)
class Sources:
    """What a question is about: rows, by `requests` and `batches`, and what is to be said of them."""

    segments: list[Segment] = field(default_factory=list[Segment])
    live: dict[str, list[pa.Table]] = field(default_factory=dict[str, list[pa.Table]])
    warnings: list[str] = field(default_factory=list[str])

    def table(self, kind: str) -> pa.Table | pd.Dataset:
        """All rows of a kind; those of segments are read when the question needs them."""
        files = [str(segment.path) for segment in self.segments if segment.kind == kind]
        schema = SCHEMAS[kind]
        live = self.live.get(kind) or [schema.empty_table()]
        rows = pd.dataset(pa.concat_tables(live).unify_dictionaries())
        return pd.dataset([pd.dataset(files, schema=schema, format="parquet"), rows]) if files else rows


def gather_sources(directory: Path | None, servers: Sequence[Neighbour]) -> Sources:
    """What there is to ask about, as of now.

    A server that writes segments is asked to write what it holds, so that nothing lies between them and its rings.

    Args:
        directory: of segments.
        servers: that run; of their records, those are taken that are in no segment there.

    Raises:
        InvalidLedger: the directory cannot be read, or a server is of another release.
    """
    sources = Sources()
    for server in servers:
        if directory is not None and not _write_now(server):
            sources.warnings.append(f"the side process of server {server.pid} does not answer: what it holds is missing")
    taken = [(server, _all_of(server)) for server in servers]
    if directory is not None:
        try:
            # After the rings: what is in both is known, and what goes from one to the other meanwhile is not missed.
            sources.segments, broken = read_segments(directory)
        except OSError as error:
            raise InvalidLedger(f"cannot read the ledger in {directory}: {error.strerror or sentence(error)}") from None
        sources.warnings += [f"{problem}; it is left out" for problem in broken]
    for server, chunks in taken:
        ends, names = ends_of(sources.segments, server.id), server.learn()
        for kind in (REQUEST_KIND, BATCH_KIND):
            new = [chunk.since(ends.get(chunk.ring, 0)) for chunk in chunks if chunk.kind == kind]
            sources.live.setdefault(kind, []).append(
                table_of([chunk for chunk in new if len(chunk.records)], kind, server.id, names)
            )
    return sources


class Desk:
    """Answers questions about some sources, and no others."""

    def __init__(self, sources: Sources) -> None:
        self._connection = duckdb.connect(":memory:")
        for kind in (REQUEST_KIND, BATCH_KIND):
            self._connection.register(kind, sources.table(kind))
        for name, query in VIEWS.items():
            self._connection.execute(f"CREATE VIEW {name} AS {query}")
        for setting in (
            "enable_external_access = false",
            "python_enable_replacements = false",
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            "lock_configuration = true",
        ):
            self._connection.execute(f"SET {setting}")

    def ask(self, sql: str) -> pa.Table:
        """The answer to one question.

        Raises:
            InvalidLedger: it is none, or a wrong one.
        """
        try:
            statements = self._connection.extract_statements(sql)
            if len(statements) != 1:
                raise InvalidLedger(f"one question at a time: there are {len(statements)} statements")
            kind = statements[0].type
            if kind != duckdb.StatementType.SELECT:
                told = str(kind).rpartition(".")[2]
                raise InvalidLedger(f"the ledger is only read: SELECT is answered, {told} is not")
            return self._connection.sql(statements[0].query).to_arrow_table()
        except duckdb.Error as error:
            raise InvalidLedger(str(error).strip()) from None


def _all_of(server: Neighbour) -> list[Chunk]:
    collector, chunks = Collector(server), list[Chunk]()
    # A ring is read once: on a busy server there would be no end.
    taken, _ = collector.take()
    chunks += taken
    return chunks


def _write_now(server: Neighbour) -> bool:
    """Have its side process write what it holds; False if it does not answer. One that has none has nothing to write."""
    tally = server.tally
    if not tally.pid:
        return True
    tally.asked = asked = tally.asked + 1
    until = time.monotonic() + _PATIENCE_SECONDS
    while tally.done < asked and tally.pid and server.is_alive:
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_SECONDS)
    return True
