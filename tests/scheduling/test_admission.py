from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.clock import SECOND
from headrace.errors import CannotMeetDeadline, QueueFull
from headrace.model import Batching, QueuePolicy
from headrace.protocol.validate import bucket_of
from headrace.request import Request
from headrace.scheduling.admission import BEHIND_EVERYONE, LEVEL_OFFSET, Ahead, Depth, Estimate, Limits, due, refusal
from headrace.scheduling.plan import NEVER

NOW = 100 * SECOND
GOLDEN = json.loads((Path(__file__).parent / "estimate.json").read_text())


def request(**keywords) -> Request:
    return Request("m", {}, received=NOW, decoded=NOW, **keywords)


def test_without_times_and_classes_the_order_is_that_of_arrival() -> None:
    first = due(Request("m", {}, received=NOW), Batching(), NOW)
    second = due(Request("m", {}, received=NOW + 1), Batching(), NOW + 1)
    assert first.deadline == first.queue_until == NEVER
    assert first.key < second.key


def test_the_deadline_is_the_earlier_of_the_clients_and_the_timeout() -> None:
    assert due(request(deadline=NOW + 50, timeout_ns=20), Batching(), NOW).deadline == NOW + 20
    assert due(request(deadline=NOW + 50, timeout_ns=80), Batching(), NOW).deadline == NOW + 50


def test_the_target_is_the_earlier_of_deadline_and_objective() -> None:
    assert due(request(deadline=NOW + 50), Batching(objective_ns=20), NOW).target == NOW + 20
    assert due(request(deadline=NOW + 10), Batching(objective_ns=20), NOW).target == NOW + 10


def test_a_queue_policy_that_may_be_overridden_takes_the_timeout_for_its_own() -> None:
    batching = Batching(policy=QueuePolicy(timeout_ns=100, allow_override=True))
    shorter, longer = due(request(timeout_ns=30), batching, NOW), due(request(timeout_ns=300), batching, NOW)
    assert (shorter.queue_until, shorter.deadline) == (NOW + 30, NEVER)
    assert (longer.queue_until, longer.deadline) == (NOW + 100, NEVER)


@pytest.mark.parametrize(("asked", "level"), [(0, 2), (1, 1), (3, 3), (4, 2)])
def test_priorities_out_of_range_are_the_default_level(asked: int, level: int) -> None:
    times = due(request(priority=asked), Batching(priority_levels=3, default_priority=2), NOW)
    assert times.level == level
    assert times.key == times.target + level * LEVEL_OFFSET


def test_no_time_and_no_level_leaves_the_range_of_an_int64() -> None:
    far = due(request(deadline=1 << 70, timeout_ns=(1 << 63) - 1), Batching(), NOW)
    low = due(request(), Batching(priority_levels=1 << 63, default_priority=1 << 62), NOW)
    assert far.deadline == NEVER
    assert max(far.key, low.key) + BEHIND_EVERYONE <= NEVER


def test_priorities_count_only_where_levels_are_configured() -> None:
    assert due(request(priority=1), Batching(), NOW).level == 0


@pytest.mark.parametrize(
    ("waiting", "is_full"),
    [
        (Depth(), False),
        (Depth(1, 8, 0), False),
        (Depth(2, 2, 0), True),
        (Depth(1, 9, 0), True),
        (Depth(1, 1, 99), True),
        (Depth(0, 0, 0), False),
    ],
)
def test_each_bound_refuses(waiting: Depth, is_full: bool) -> None:
    limits = Limits(requests=2, rows=10, nbytes=100)
    error = refusal(request(id="7"), due(request(), Batching(), NOW), Depth(1, 2, 2), waiting, Ahead(), limits, NOW)
    assert isinstance(error, QueueFull) is is_full
    if error is not None:
        assert error.message == "[request id: 7] Exceeds maximum queue size"


def test_a_giant_is_taken_by_an_empty_queue() -> None:
    size = Depth(1, 1000, 1 << 40)
    assert refusal(request(), due(request(), Batching(), NOW), size, Depth(), Ahead(), Limits(), NOW) is None


def test_what_is_predicted_to_be_late_is_refused_at_the_door() -> None:
    limits = Limits(estimate=Estimate(base_ns=10, row_ns=1, max_rows=4))
    in_time, late, never = request(deadline=NOW + 17), request(deadline=NOW + 15), request()
    one, busy = Depth(1, 1, 0), Ahead(0, NOW + 5)
    assert refusal(in_time, due(in_time, Batching(), NOW), one, Depth(), busy, limits, NOW) is None
    refused = refusal(late, due(late, Batching(), NOW), one, Depth(), busy, limits, NOW)
    assert isinstance(refused, CannotMeetDeadline)
    assert refused.retry_after_ns == 1
    assert refusal(never, due(never, Batching(), NOW), one, Depth(), Ahead(10**6, NOW + 5), limits, NOW) is None


def test_nobody_is_refused_by_prediction_while_an_instance_is_idle_and_nobody_waits() -> None:
    """What never runs is never learned: a prediction that is too long could not be mended."""
    limits = Limits(estimate=Estimate(base_ns=SECOND, row_ns=0, max_rows=4))
    late, one = request(deadline=NOW + 15), Depth(1, 1, 0)
    times = due(late, Batching(), NOW)
    assert refusal(late, times, one, Depth(), Ahead(0, NOW), limits, NOW) is None
    assert isinstance(refusal(late, times, one, Depth(1, 1, 0), Ahead(0, NOW), limits, NOW), CannotMeetDeadline)


def test_a_target_refuses_only_where_the_model_says_so() -> None:
    limits = Limits(estimate=Estimate(base_ns=100, row_ns=0, max_rows=4))
    asked, one, busy = request(deadline=NOW + SECOND), Depth(1, 1, 0), Ahead(0, NOW + 5)
    patient, strict = Batching(objective_ns=20), Batching(objective_ns=20, sheds_target=True)
    assert refusal(asked, due(asked, patient, NOW), one, Depth(), busy, limits, NOW) is None
    assert isinstance(refusal(asked, due(asked, strict, NOW), one, Depth(), busy, limits, NOW), CannotMeetDeadline)


def test_where_tritons_queue_policy_speaks_no_prediction_refuses() -> None:
    limits = Limits(estimate=Estimate(base_ns=SECOND, row_ns=0, max_rows=4))
    asked, batching = request(deadline=NOW + 15), Batching(policy=QueuePolicy(timeout_ns=100))
    assert refusal(asked, due(asked, batching, NOW), Depth(1, 1, 0), Depth(), Ahead(0, NOW + 5), limits, NOW) is None


@pytest.mark.parametrize("vector", GOLDEN["vectors"], ids=lambda v: v["why"])
def test_the_estimate_agrees_with_the_golden_vectors(vector: dict) -> None:
    free_at = vector["free_at"]
    estimate = Estimate(vector["base_ns"], vector["row_ns"], vector["max_rows"], len(free_at))
    assert estimate.done_at(vector["rows_ahead"], vector["rows"], min(free_at), vector["now"]) == vector["done_at"]


def test_the_golden_vectors_of_buckets() -> None:
    """The same numbers as in kernels/: profiles on disk are kept by them."""
    for vector in json.loads((Path(__file__).parent / "buckets.json").read_text())["vectors"]:
        shapes = tuple(None if shape is None else tuple(shape) for shape in vector["shapes"])
        assert bucket_of(shapes) == int(vector["bucket"])
