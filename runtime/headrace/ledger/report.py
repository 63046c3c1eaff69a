"""What the side process tells its server of the traces it keeps, in a file that is replaced as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from headrace.files import replace_file

REPORT_FILE = "traces.json"


class Example(NamedTuple):
    """A request that was kept: what took `value` ns, on the wall clock at `at` (s), is in this span."""

    value: int
    at: float
    trace: str
    span: str


@dataclass(frozen=True, slots=True)
class Report:
    """What it tells.

    `examples` are one for each bucket of a histogram, by `key_of` what it is of; `left` what is left of a count that a client
    set for a model, and the revision of those settings; `positions` up to where the rings were read.
    """

    examples: Mapping[str, Mapping[str, Example]] = field(default_factory=dict[str, dict[str, Example]])
    left: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    positions: Mapping[str, int] = field(default_factory=dict[str, int])


def key_of(what: str, model: str, version: int) -> str:
    """The histogram of a duration (`ledger.histograms.SPANS`) of a version."""
    return f"{what} {version} {model}"


def write_report(directory: Path, report: Report) -> None:
    """Replace what was told.

    Raises:
        OSError: it cannot be written; what was told before is still there.
    """
    replace_file(directory / REPORT_FILE, json.dumps(asdict(report)).encode())


def read_report(directory: Path) -> Report:
    """What was told last; nothing, where there is no side process that keeps traces."""
    try:
        told = json.loads((directory / REPORT_FILE).read_bytes())
        examples = {key: {place: Example(*each) for place, each in of.items()} for key, of in told["examples"].items()}
        left = {model: (revision, count) for model, (revision, count) in told["left"].items()}
        return Report(examples, left, told["positions"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Report()
