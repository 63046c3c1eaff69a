"""What the ledger says, added up: the statistics of every version since the server started."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headrace.ledger.records import Outcome, Records, Refusal, at, of_version
from headrace.protocol.origin import MALFORMED


@dataclass(slots=True)
class Total:
    """How often, and how many ns in all."""

    count: int = 0
    ns: int = 0

    def add(self, durations: np.ndarray[Any, Any]) -> None:
        """Count each of these durations."""
        self.count += len(durations)
        self.ns += int(durations.sum())


@dataclass(slots=True)
class BatchTotals:
    """All executed batches of one row count."""

    gather: Total = field(default_factory=Total)
    execute: Total = field(default_factory=Total)
    scatter: Total = field(default_factory=Total)


@dataclass(slots=True)
class VersionTotals:
    """One version. Stage totals count each request of a batch with the whole stage, as Triton's statistics do."""

    pushed: int = 0
    """Requests that entered the queue; each ends in one of `outcomes`, and so do those that were turned away before."""
    inference_count: int = 0
    execution_count: int = 0
    padding: int = 0
    """Elements along the padded dimension that nobody sent, of executed batches."""
    last_inference_ms: int = 0
    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    gather: Total = field(default_factory=Total)
    execute: Total = field(default_factory=Total)
    scatter: Total = field(default_factory=Total)
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    refusals: dict[Refusal, int] = field(default_factory=lambda: dict.fromkeys(Refusal, 0))
    failed_unrun: int = 0
    """Of those that failed: how many no batch had taken."""
    reasons: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Batches by why they had their size: the numbers of `scheduling.plan.Reason`."""
    wasted_rows: int = 0
    """Rows of requests that ran, and that nobody waited for any more: cancelled or expired."""
    malformed_traces: int = 0
    """Requests whose trace context could not be understood, and was ignored."""
    batches: dict[int, BatchTotals] = field(default_factory=lambda: defaultdict(BatchTotals))


class Statistics:
    """Totals by the ledger's model number. Fed by the ledger, under its lock."""

    def __init__(self) -> None:
        self.versions: dict[int, VersionTotals] = defaultdict(VersionTotals)
        self._wall_ahead_ns = time.time_ns() - time.monotonic_ns()

    def summary(self) -> dict[str, int]:
        """Over all versions: how many requests were pushed, and how all of them ended, by name of the outcome."""
        versions = list(self.versions.values())
        ended = {outcome.name.lower(): sum(v.outcomes[outcome] for v in versions) for outcome in Outcome}
        return {"pushed": sum(v.pushed for v in versions), **ended}

    def fold(self, requests: Records, batches: Records) -> None:
        """Add these records."""
        for number in np.unique(requests["model"]).tolist():
            self._fold_requests(self.versions[number], of_version(requests, number))
        for number in np.unique(batches["model"]).tolist():
            mine = of_version(batches, number)
            useful = mine["failed"] < mine["requests"]
            self._fold_batches(self.versions[number], at(mine, useful))
            failed = at(mine, ~useful & (mine["number"] == 0))
            self.versions[number].fail.add(np.repeat(failed["executed"] - failed["taken"], failed["requests"]))

    def _fold_requests(self, totals: VersionTotals, records: Records) -> None:
        for outcome, count in zip(*np.unique(records["outcome"], return_counts=True), strict=True):
            totals.outcomes[Outcome(outcome)] += int(count)
        for refusal, count in zip(*np.unique(records["refusal"], return_counts=True), strict=True):
            totals.refusals[Refusal(refusal)] += int(count)
        totals.failed_unrun += int(((records["outcome"] == Outcome.FAILED) & (records["taken"] == 0)).sum())
        totals.malformed_traces += int((records["context"] == MALFORMED).sum())
        gone = (records["outcome"] == Outcome.CANCELLED) | (records["outcome"] == Outcome.EXPIRED)
        totals.wasted_rows += int(np.maximum(records["rows"][gone & (records["executed"] > 0)], 1).sum())
        totals.pushed += int((records["queued"] > 0).sum())
        good = at(records, records["outcome"] == Outcome.ANSWERED)
        # What never passed validation has not reached the model: Triton does not count it as failed either.
        bad = at(records, (records["outcome"] != Outcome.ANSWERED) & (records["outcome"] != Outcome.INVALID))
        totals.success.add(good["sent"] - good["received"])
        totals.fail.add(bad["sent"] - bad["received"])
        totals.queue.add(good["taken"] - good["queued"])
        totals.gather.add(good["gathered"] - good["taken"])
        totals.execute.add(good["executed"] - good["gathered"])
        totals.scatter.add(good["scattered"] - good["executed"])
        if len(good):
            totals.inference_count += int(np.maximum(good["rows"], 1).sum())
            last = (int(good["sent"].max()) + self._wall_ahead_ns) // 1_000_000
            totals.last_inference_ms = max(totals.last_inference_ms, last)

    def _fold_batches(self, totals: VersionTotals, records: Records) -> None:
        totals.execution_count += len(records)
        self._fold_visits(totals, at(records, records["number"] == 0))
        totals.padding += int(records["padding"].sum())
        for reason, count in zip(*np.unique(records["reason"], return_counts=True), strict=True):
            totals.reasons[int(reason)] += int(count)
        for rows in np.unique(records["rows"]).tolist():
            same = at(records, records["rows"] == rows)
            sums = totals.batches[rows]
            sums.gather.add(same["gathered"] - same["taken"])
            sums.execute.add(same["executed"] - same["gathered"])
            sums.scatter.add(same["scattered"] - same["executed"])

    def _fold_visits(self, totals: VersionTotals, records: Records) -> None:
        """What graphs ran of it: their requests have no record of this model, and each had the whole of the visit."""
        if not len(records):
            return
        lasted = np.repeat(records["executed"] - records["taken"], records["requests"])
        totals.inference_count += int(records["rows"].sum())
        for total in (totals.success, totals.execute):
            total.add(lasted)
        for total in (totals.queue, totals.gather, totals.scatter):
            total.add(np.zeros(len(lasted), np.int64))
        last = (int(records["scattered"].max()) + self._wall_ahead_ns) // 1_000_000
        totals.last_inference_ms = max(totals.last_inference_ms, last)
