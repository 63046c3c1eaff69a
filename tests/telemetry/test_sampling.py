"""What is kept, and why: pure policy on records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.clock import MILLISECOND, SECOND
from headrace.ledger.records import BATCH, REQUEST, BatchRecord, Outcome, Records, RequestRecord
from headrace.telemetry.sampling import Cap, Policy, Why, randomness, tracestate_of, whys_of, whys_of_batches


def requests(*given: dict[str, Any]) -> Records:
    return np.array([tuple(RequestRecord(**each)) for each in given], REQUEST)


def batch(predicted: int, actual: int, gathered: int = SECOND) -> Records:
    return np.array([tuple(BatchRecord(1, 0, gathered, gathered + actual, 0, 1, 1, 1, predicted=predicted))], BATCH)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"sent": 10}, Why(0)),
        ({"sent": 10, "deadline": 10}, Why(0)),
        ({"sent": 11, "deadline": 10}, Why.LATE),
        ({"outcome": Outcome.EXPIRED}, Why.LATE),
        ({"outcome": Outcome.FAILED}, Why.ERROR),
        ({"outcome": Outcome.REFUSED}, Why.ERROR),
        ({"outcome": Outcome.INVALID}, Why.ERROR),
        ({"outcome": Outcome.CANCELLED}, Why(0)),
        ({"context": 1, "trace_flags": 1}, Why.UPSTREAM),
        ({"context": 1, "trace_flags": 3}, Why.UPSTREAM),
        ({"context": 1, "trace_flags": 0}, Why(0)),
        ({"context": 2, "trace_flags": 1}, Why(0)),
        (
            {"sent": 11, "deadline": 10, "outcome": Outcome.FAILED, "context": 1, "trace_flags": 1},
            Why.LATE | Why.ERROR | Why.UPSTREAM,
        ),
        ({"sent": 1, "deadline": (1 << 63) - 1}, Why(0)),
        ({"sent": 1, "deadline": -(1 << 63)}, Why.LATE),
    ],
)
def test_what_a_request_has_in_itself(record: dict[str, Any], why: Why) -> None:
    assert whys_of(requests(record, {"sent": 1})).tolist() == [why, 0]


@pytest.mark.parametrize(
    ("predicted", "actual", "is_wrong"),
    [
        (10 * MILLISECOND, 20 * MILLISECOND, False),
        (10 * MILLISECOND, 20 * MILLISECOND + 1, True),
        (50 * MILLISECOND, MILLISECOND, False),
        (1000, 900_000, False),
        (1000, 1_001_001, True),
        (0, SECOND, False),
    ],
)
def test_a_batch_is_mispredicted_by_ratio_and_by_more_than_noise(predicted: int, actual: int, is_wrong: bool) -> None:
    assert whys_of_batches(batch(predicted, actual), Policy(least_ns=MILLISECOND)).tolist() == [
        Why.MISPREDICTED if is_wrong else 0
    ]


def test_a_batch_that_did_not_run_is_not_mispredicted() -> None:
    assert whys_of_batches(batch(MILLISECOND, SECOND, gathered=0), Policy()).tolist() == [0]


@pytest.mark.parametrize("baseline", [0.0, 0.01, 0.5, 1.0])
def test_lots_fall_as_often_as_was_said_and_the_trace_says_how_often(baseline: float) -> None:
    policy, count = Policy(baseline=baseline), 100_000
    models, numbers = np.repeat(np.arange(1, 11), count // 10), np.tile(np.arange(1, count // 10 + 1), 10)
    lots = randomness(4711, models.astype(np.uint64), numbers.astype(np.uint64))
    share = (lots >= policy.threshold).mean()
    assert share == pytest.approx(baseline, abs=4 * (baseline * (1 - baseline) / count) ** 0.5 + 1e-12)
    assert (randomness(4711, models[:9].astype(np.uint64), numbers[:9].astype(np.uint64)) == lots[:9]).all()
    assert (randomness(4712, models.astype(np.uint64), numbers.astype(np.uint64)) != lots).all()
    for lot in lots[lots >= policy.threshold][:20].tolist():
        threshold, _, random = tracestate_of(Why.BASELINE, policy.threshold, lot).partition(";rv:")
        rejected = int(threshold.removeprefix("th:").ljust(14, "0"), 16) / 2**56
        assert 1 - rejected == pytest.approx(baseline)
        assert baseline == 1 or int(random, 16) == lot


def test_what_has_a_reason_stands_for_itself() -> None:
    assert (
        tracestate_of(Why.LATE, Policy().threshold, 1) == tracestate_of(Why.LATE | Why.BASELINE, Policy().threshold, 1) == "th:0"
    )
    assert tracestate_of(Why.BASELINE, 0xC << 52, 0xFED) == "th:c;rv:00000000000fed"


def test_the_cap_holds_over_time_and_a_whole_batch_may_overdraw_it() -> None:
    cap = Cap(100)
    assert cap.allows(99, SECOND)
    assert cap.allows(51, SECOND)
    assert not cap.allows(1, SECOND)
    assert not cap.allows(1, SECOND + SECOND // 2)
    assert cap.allows(1, SECOND + SECOND * 6 // 10)
    allowed = sum(cap.allows(10, SECOND * 2 + step * 1_000_000) for step in range(10_000))
    assert 100 <= allowed <= 112, "10 s of 100 spans a second, and what had been saved"
    assert cap.dropped == 2 + 10 * (10_000 - allowed)


def test_reasons_have_names() -> None:
    assert (Why.LATE | Why.BASELINE).words == ("late", "baseline")
    assert Why(0).words == ()
