"""What the ledger says, as distributions: how long each stage took, and how many rows a batch had.

Answered requests only, as in Triton's totals; so the sums of the stages add up to the sum of the requests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.clock import MICROSECOND
from headrace.ledger.records import STAGES, Outcome, Records

WHOLE, FIRST_RESPONSE = "request", "first_response"
SPANS: Mapping[str, tuple[str, str]] = {WHOLE: ("received", "sent"), FIRST_RESPONSE: ("received", "first"), **STAGES}

_STAMPS = sorted({stamp for span in SPANS.values() for stamp in span})

DURATION_EDGES: NDArray[np.int64] = np.array([m * 10**e * MICROSECOND for e in range(1, 8) for m in (1, 2, 5)], np.int64)
"""ns: 1, 2, 5 times every power of ten from 10 µs to 50 s."""
ROWS_EDGES: NDArray[np.int64] = 2 ** np.arange(13, dtype=np.int64)


class Histogram:
    """Counts between edges. An edge belongs to the bucket that it ends; what is above the last one is in one more bucket.

    Args:
        edges: ascending.
    """

    def __init__(self, edges: NDArray[np.int64]) -> None:
        self.edges = edges
        self.counts = np.zeros(len(edges) + 1, np.int64)
        # A Python number: in int64, the ns of a thousand requests at a time would overflow within months.
        self.total = 0

    def add(self, values: NDArray[Any]) -> None:
        """Count each of these values."""
        self.counts += np.bincount(np.searchsorted(self.edges, values, side="left"), minlength=len(self.counts))
        self.total += int(values.sum())

    def include(self, other: Histogram) -> None:
        """Add what another one, of the same edges, has counted."""
        self.counts += other.counts
        self.total += other.total


@dataclass(slots=True)
class VersionHistograms:
    """One version: durations in ns by the names of `SPANS`, and the rows of its batches."""

    spans: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram(DURATION_EDGES) for name in SPANS})
    rows: Histogram = field(default_factory=lambda: Histogram(ROWS_EDGES))

    @staticmethod
    def sum_of(parts: Iterable[VersionHistograms]) -> VersionHistograms:
        """All of them together: a copy."""
        together = VersionHistograms()
        for part in parts:
            together.rows.include(part.rows)
            for name, histogram in together.spans.items():
                histogram.include(part.spans[name])
        return together


class Histograms:
    """Distributions by the ledger's model number. Fed by the ledger, under its lock."""

    def __init__(self) -> None:
        self.versions: dict[int, VersionHistograms] = defaultdict(VersionHistograms)

    def fold(self, requests: Records, batches: Records) -> None:
        """Add these records. The cost is that of a few array operations a version, however many records there are."""
        good = np.flatnonzero(requests["outcome"] == Outcome.ANSWERED)
        good, parts = _by_model(requests, good)
        # Columns, not records: a record is as wide as two cache lines, and only these are wanted.
        stamps = {stamp: requests[stamp][good] for stamp in _STAMPS}
        for number, part in parts:
            spans = self.versions[number].spans
            for name, (begin, end) in SPANS.items():
                ends = stamps[end][part]
                spans[name].add((ends - stamps[begin][part])[ends > 0])
        # As in `Statistics`: a batch of which nothing succeeded is not counted.
        useful, parts = _by_model(batches, np.flatnonzero(batches["failed"] < batches["requests"]))
        rows = batches["rows"][useful].astype(np.int64)
        for number, part in parts:
            self.versions[number].rows.add(rows[part])


def _by_model(records: Records, indices: NDArray[np.intp]) -> tuple[NDArray[np.intp], list[tuple[int, slice]]]:
    """These records sorted by model, and which part of them is whose."""
    models = records["model"][indices]
    order = np.argsort(models, kind="stable")
    found = np.unique(models[order], return_index=True, return_counts=True)
    parts = zip(*(column.tolist() for column in found), strict=True)
    return indices[order], [(number, slice(start, start + count)) for number, start, count in parts]
