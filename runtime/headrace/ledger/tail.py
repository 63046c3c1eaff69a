"""Records as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from headrace.clock import MILLISECOND, SECOND
from headrace.errors import Code
from headrace.ledger.collect import REQUEST_KIND, Chunk
from headrace.ledger.home import Name
from headrace.ledger.records import STAGES, Outcome, Refusal


class Line(NamedTuple):
    """One request: when it came on the wall clock, for what, how it ended, and where its time went."""

    at: str
    model: str
    outcome: str
    rows: str
    batch: str
    took: str
    stages: str

    @property
    def text(self) -> str:
        """In columns."""
        columns = f"{self.at} {self.outcome:<24} {self.model:<20} {self.rows:>5} {self.batch:>14} {self.took:>10}"
        return f"{columns}  {self.stages}".rstrip()


HEAD = Line("received    ", "model", "outcome", "rows", "batch", "ms", "of it, in ms")


def lines_of(chunks: list[Chunk], names: Mapping[int, Name]) -> list[Line]:
    """The requests in these chunks, in the order in which they were answered."""
    rows = [(record, chunk.wall_ahead) for chunk in chunks if chunk.kind == REQUEST_KIND for record in chunk.records]
    return [_line(record, ahead, names) for record, ahead in sorted(rows, key=lambda row: int(row[0]["sent"]))]


def _line(record: Any, ahead: int, names: Mapping[int, Name]) -> Line:
    model, version, _ = names.get(int(record["model"]), (f"#{record['model']}", 0, ""))
    at = datetime.fromtimestamp((int(record["received"]) + ahead) / SECOND).astimezone()
    return Line(
        at.strftime("%H:%M:%S.%f")[:-3],
        f"{model}/{version}" if model else "-",
        _outcome(record),
        str(record["rows"]) if record["queued"] else "-",
        str(record["batch"]) if record["batch"] else "-",
        f"{(int(record['sent']) - int(record['received'])) / MILLISECOND:.3f}",
        " ".join(_stages(record)),
    )


def _outcome(record: Any) -> str:
    outcome, refusal = Outcome(int(record["outcome"])), Refusal(int(record["refusal"]))
    if outcome is Outcome.ANSWERED:
        return "answered"
    if refusal is not Refusal.NONE:
        return f"refused {refusal.name.lower()}"
    return f"{outcome.name.lower()} {Code(int(record['code'])).name}"


def _stages(record: Any) -> Iterator[str]:
    for stage, (begin, end) in STAGES.items():
        if record[begin]:
            yield f"{stage} {(int(record[end] or record['sent']) - int(record[begin])) / MILLISECOND:.3f}"
