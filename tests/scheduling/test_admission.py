from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from headrace.clock import SECOND
from headrace.errors import CannotMeetDeadline, HeadraceError, QueueFull
from headrace.model import Batching, QueuePolicy
from headrace.protocol.validate import bucket_of
from headrace.request import Request
from headrace.scheduling.admission import (
    BEHIND_EVERYONE,
    LEVEL_OFFSET,
    Ahead,
    Depth,
    Due,
    Estimate,
    Limits,
    Line,
    due,
    in_share,
    job_level,
    lateness,
    refusal,
)
from headrace.scheduling.plan import NEVER

NOW = 100 * SECOND
NOTHING, PLAIN, ONE = Ahead(), Batching(), Depth(1, 1, 0)
GOLDEN = json.loads((Path(__file__).parent / "estimate.json").read_text())


def request(**keywords) -> Request:
    return Request("m", {}, received=NOW, decoded=NOW, **keywords)


class New(NamedTuple):
    due: Due
    size: Depth
    bucket: int = 0


def known(base: int, row: int, max_rows: int) -> Limits:
    """Limits of a queue whose bucket 0 is known."""
    return Limits(estimate=Estimate({0: Line(base, row, max_rows)}))


def refuse(
    asked: Request,
    waiting: Depth,
    limits: Limits,
    ahead: Ahead = NOTHING,
    batching: Batching = PLAIN,
    size: Depth = ONE,
) -> HeadraceError | None:
    return refusal(asked.id, New(due(asked, batching, NOW), size), waiting, ahead, limits, NOW)


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
    error = refuse(request(id="7"), waiting, limits, size=Depth(1, 2, 2))
    assert isinstance(error, QueueFull) is is_full
    if error is not None:
        assert error.message == "[request id: 7] Exceeds maximum queue size"


def test_a_giant_is_taken_by_an_empty_queue() -> None:
    size = Depth(1, 1000, 1 << 40)
    assert refuse(request(), Depth(), Limits(), size=size) is None


def test_what_is_predicted_to_be_late_is_refused_at_the_door() -> None:
    limits = known(10, 1, 4)
    in_time, late, never = request(deadline=NOW + 17), request(deadline=NOW + 15), request()
    busy = Ahead(free_at=NOW + 5)
    assert refuse(in_time, Depth(), limits, busy) is None
    refused = refuse(late, Depth(), limits, busy)
    assert isinstance(refused, CannotMeetDeadline)
    assert refused.retry_after_ns == 1
    assert refuse(never, Depth(), limits, Ahead([(0, 10**6)], [(0, 10**6, NEVER)], NOW + 5)) is None


def test_nobody_is_refused_by_prediction_while_an_instance_is_idle_and_nobody_waits() -> None:
    """What never runs is never learned: a prediction that is too long could not be mended."""
    limits, late, idle = known(SECOND, 0, 4), request(deadline=NOW + 15), Ahead(free_at=NOW)
    assert refuse(late, Depth(), limits, idle) is None
    assert isinstance(refuse(late, Depth(1, 1, 0), limits, idle), CannotMeetDeadline)


def test_a_target_refuses_only_where_the_model_says_so() -> None:
    limits, asked, busy = known(100, 0, 4), request(deadline=NOW + SECOND), Ahead(free_at=NOW + 5)
    patient, strict = Batching(objective_ns=20), Batching(objective_ns=20, sheds_target=True)
    assert refuse(asked, Depth(), limits, busy, patient) is None
    assert isinstance(refuse(asked, Depth(), limits, busy, strict), CannotMeetDeadline)


def test_where_tritons_queue_policy_speaks_no_prediction_refuses() -> None:
    asked, batching = request(deadline=NOW + 15), Batching(policy=QueuePolicy(timeout_ns=100))
    assert refuse(asked, Depth(), known(SECOND, 0, 4), Ahead(free_at=NOW + 5), batching) is None


@pytest.mark.parametrize("vector", GOLDEN["vectors"], ids=lambda v: v["why"])
def test_the_estimate_agrees_with_the_golden_vectors(vector: dict) -> None:
    lines = {bucket: Line(*line) for bucket, *line in vector["lines"]}
    estimate = Estimate(lines, vector["instances"], vector["margin_ns"])
    ahead = Ahead(vector["waiting"], vector["first"], vector["free_at"])
    times = Due(NEVER, NEVER, vector["latest"], NEVER, 0, 0)
    asked = New(times, Depth(1, vector["rows"], 0), vector["bucket"])
    assert lateness(estimate, asked, ahead, vector["now"]) == vector["late"]


@pytest.mark.parametrize(
    "vector", json.loads((Path(__file__).parent / "shares.json").read_text())["vectors"], ids=lambda v: v["why"]
)
def test_shares_agree_with_the_golden_vectors(vector: dict) -> None:
    numbers = range(vector["first"], vector["first"] + vector["count"])
    assert [nth for nth in numbers if in_share(nth, vector["share"])] == vector["in"]


def test_only_who_has_no_deadline_is_refused_where_the_queue_stands() -> None:
    limits = Limits(undated=3)
    dated, undated, three = request(deadline=NOW + SECOND), request(), Depth(3, 3, 0)
    assert refuse(dated, three, limits) is None
    assert isinstance(refuse(undated, three, limits), QueueFull)
    assert refuse(undated, Depth(2, 2, 0), limits) is None


def test_the_golden_vectors_of_buckets() -> None:
    """The same numbers as in kernels/: profiles on disk are kept by them."""
    for vector in json.loads((Path(__file__).parent / "buckets.json").read_text())["vectors"]:
        shapes = tuple(None if shape is None else tuple(shape) for shape in vector["shapes"])
        assert bucket_of(shapes) == int(vector["bucket"])


@pytest.mark.parametrize(("levels", "default", "level"), [(0, 0, 0), (1, 1, 0), (2, 1, 2), (5, 3, 5), (5, 5, 0)])
def test_the_class_of_jobs_is_the_lowest_if_it_is_nobodys_by_default(levels: int, default: int, level: int) -> None:
    assert job_level(Batching(priority_levels=levels, default_priority=default)) == level
