"""What the side process tells of the spans that others send it, in a file that is replaced as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headrace.files import replace_file
from headrace.ledger.histograms import DURATION_EDGES, Histogram

OUTSIDE_FILE = "outside.json"


@dataclass(frozen=True, slots=True)
class OutsideReport:
    """What it tells.

    `addresses` are where it listens, by protocol; `durations` the counts of a histogram of `DURATION_EDGES` and its total (ns),
    by `ledger.report.key_of` what it is of; `objectives` what `budgets.outside` says, by their names.
    """

    addresses: Mapping[str, str] = field(default_factory=dict[str, str])
    durations: Mapping[str, tuple[list[int], int]] = field(default_factory=dict[str, tuple[list[int], int]])
    objectives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def histograms(self) -> dict[str, Histogram]:
        """The durations, to go on counting, or to be shown."""
        found: dict[str, Histogram] = {}
        for key, (counts, total) in self.durations.items():
            found[key] = Histogram(DURATION_EDGES)
            found[key].counts += np.array(counts, np.int64)
            found[key].total = total
        return found


def write_outside(directory: Path, report: OutsideReport) -> None:
    """Replace what was told.

    Raises:
        OSError: it cannot be written; what was told before is still there.
    """
    replace_file(directory / OUTSIDE_FILE, json.dumps(asdict(report)).encode())


def read_outside(directory: Path) -> OutsideReport:
    """What was told last; nothing, where nobody takes spans."""
    try:
        return OutsideReport(**json.loads((directory / OUTSIDE_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return OutsideReport()
