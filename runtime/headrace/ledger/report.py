"""What the side process tells its server, in files that are replaced as a whole: of traces it keeps, of spans others send it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from headrace.files import replace_file
from headrace.ledger.histograms import DURATION_EDGES, Histogram


class Example(NamedTuple):
    """A request that was kept: what took `value` ns, on the wall clock at `at` (s), is in this span."""

    value: int
    at: float
    trace: str
    span: str


@dataclass(frozen=True, slots=True)
class Report:
    """What it tells of the traces it keeps.

    `examples` are one for each bucket of a histogram, by `key_of` what it is of; `left` what is left of a count that a client
    set for a model, and the revision of those settings; `positions` up to where the rings were read.
    """

    file: ClassVar[str] = "traces.json"
    examples: Mapping[str, Mapping[str, Example]] = field(default_factory=dict[str, dict[str, Example]])
    left: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    positions: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class OutsideReport:
    """What it tells of the spans that others send it.

    `addresses` are where it listens, by protocol; `durations` the counts of a histogram of `DURATION_EDGES` and its total (ns),
    by `key_of` what it is of; `objectives` what `budgets.outside` says, by their names.
    """

    file: ClassVar[str] = "outside.json"
    addresses: Mapping[str, str] = field(default_factory=dict[str, str])
    durations: Mapping[str, tuple[list[int], int]] = field(default_factory=dict[str, tuple[list[int], int]])
    objectives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def histograms(self) -> dict[str, Histogram]:
        """The durations, to go on counting, or to be shown.

        Raises:
            TypeError, ValueError: these are none.
        """
        found: dict[str, Histogram] = {}
        for key, (counts, total) in self.durations.items():
            found[key] = histogram = Histogram(DURATION_EDGES)
            histogram.counts, histogram.total = np.array(counts, np.int64).reshape(histogram.counts.shape), total
        return found


def key_of(what: str, model: str, version: int) -> str:
    """The histogram of a duration (`ledger.histograms.SPANS`) of a version."""
    return f"{what} {version} {model}"


def write_report(directory: Path, report: Report | OutsideReport) -> None:
    """Replace what was told.

    Raises:
        OSError: it cannot be written; what was told before is still there.
    """
    replace_file(directory / report.file, json.dumps(asdict(report)).encode())


def read_report(directory: Path) -> Report:
    """What was told last; nothing, where there is no side process that keeps traces."""
    try:
        told = json.loads((directory / Report.file).read_bytes())
        examples = {key: {place: Example(*each) for place, each in of.items()} for key, of in told["examples"].items()}
        left = {model: (revision, count) for model, (revision, count) in told["left"].items()}
        return Report(examples, left, told["positions"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Report()


def read_outside(directory: Path) -> OutsideReport:
    """What was told last; nothing, where nobody takes spans."""
    try:
        told = OutsideReport(**json.loads((directory / OutsideReport.file).read_bytes()))
        told.histograms()
        return told
    except (OSError, ValueError, TypeError, AttributeError):
        return OutsideReport()
