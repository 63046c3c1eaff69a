"""Records as the ledger has them, and an objective as a file has it."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.budgets.slo import Objective
from headrace.clock import MILLISECOND, SECOND
from headrace.ledger.records import BATCH, REQUEST, STAGES, Outcome, Records

NOON = 10**17
"""An instant of CLOCK_MONOTONIC, in ns, that is a whole minute of the line of time of a history that is not ahead."""
NOON -= NOON % (3600 * SECOND)

OPENSLO = """
apiVersion: openslo/v1
kind: SLO
metadata:
  name: m-soon
spec:
  indicator:
    metadata: {name: m-duration}
    spec:
      thresholdMetric:
        metricSource:
          type: headrace
          spec: {model: m, unit: ms}
  timeWindow: [{duration: 30d, isRolling: true}]
  budgetingMethod: Occurrences
  objectives: [{op: lte, value: 20, target: 0.99}]
"""


def objective(**changes: Any) -> Objective:
    told: dict[str, Any] = {"name": "m-soon", "model": "m", "threshold_ns": 20 * MILLISECOND, "target": 0.99}
    return Objective(**(told | changes))


def request(at: int = NOON, outcome: Outcome = Outcome.ANSWERED, **stages: float) -> dict[str, int]:
    """One that came at `at`, and was in each stage for so many ms, one stage after the other."""
    record = {"received": at, "decoded": at, "outcome": outcome, "model": 1, "rows": 1, "number": 1}
    for name, (_, end) in STAGES.items():
        at += round(stages.get(name, 0) * MILLISECOND)
        record[end] = at
    return record


def expired(at: int, waited: float) -> dict[str, int]:
    """One that nobody took."""
    record = request(at, Outcome.EXPIRED, queue=waited)
    return record | dict.fromkeys(("taken", "gathered", "executed", "scattered"), 0)


def batch(
    taken: int, number: int = 1, gather: float = 0, execute: float = 1, scatter: float = 0, **fields: int
) -> dict[str, int]:
    """One that was taken at `taken`, and lasted so many ms at each stage."""
    gathered = taken + round(gather * MILLISECOND)
    executed = gathered + round(execute * MILLISECOND)
    scattered = executed + round(scatter * MILLISECOND)
    stamps = {"taken": taken, "gathered": gathered, "executed": executed, "scattered": scattered}
    return {"number": number, "model": 1, "rows": 1, "requests": 1, **stamps, **fields}


def requests(*told: dict[str, int]) -> Records:
    return _records(REQUEST, told)


def batches(*told: dict[str, int]) -> Records:
    return _records(BATCH, told)


def _records(kind: Any, told: tuple[dict[str, int], ...]) -> Records:
    records = np.zeros(len(told), kind)
    for record, values in zip(records, told, strict=True):
        for name, value in values.items():
            record[name] = value
    return records
