from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.scheduling.plan import NEVER, VIEW, Plan, Reason, SetPoints, Unlearned
from headrace.scheduling.plan import plan as decide

NOW = 1_000_000


def view(*entries: dict[str, int]) -> np.ndarray:
    """Entries in the order given; what is not said is a row that arrived now and is never due."""
    array = np.zeros(len(entries), VIEW)
    array["arrival"], array["target"], array["deadline"], array["rows"] = NOW, NEVER, NEVER, 1
    array["number"] = range(1, len(entries) + 1)
    for place, entry in zip(array, entries, strict=True):
        for key, value in entry.items():
            place[key] = value
    return array


class Known:
    """A batch lasts `base` and `row` for each row."""

    def __init__(self, base: int, row: int, best: int | None = None) -> None:
        self.base, self.row, self.best = base, row, best

    def execute_ns(self, bucket: int, rows: int) -> int:
        return self.base + self.row * rows

    def best_rows(self, bucket: int) -> int | None:
        return self.best


ROWS = [dict(rows=1)] * 3


def plan(*given: Any) -> Plan:
    """What is decided; how long it will last has a test of its own."""
    return decide(*given)._replace(predicted=0)


@pytest.mark.parametrize(
    ("entries", "points"),
    [(ROWS, SetPoints(8)), (ROWS, SetPoints(1)), (ROWS, SetPoints(2)), ([dict(target=NOW + 125), *ROWS], SetPoints(8))],
)
def test_a_plan_says_how_long_its_batch_will_run(entries: list[dict[str, int]], points: SetPoints) -> None:
    decided = decide(view(*entries), Known(100, 10), points, NOW)
    assert decided.predicted == 100 + 10 * len(decided.take)
    assert decide(view(*entries), Unlearned(), points, NOW).predicted == 0


def test_who_waits_is_predicted_nothing() -> None:
    assert decide(view(*ROWS), Known(100, 10), SetPoints(8, delay_ns=100), NOW) == Plan((), (), NOW + 100, Reason.WAIT)


@pytest.mark.parametrize(
    ("entries", "points", "expected"),
    [
        pytest.param(ROWS, SetPoints(8), Plan((1, 2, 3), (), None, Reason.IDLE), id="idle-takes-what-waits"),
        pytest.param(ROWS, SetPoints(3), Plan((1, 2, 3), (), None, Reason.FULL), id="exactly-full"),
        pytest.param(ROWS, SetPoints(2), Plan((1, 2), (), None, Reason.FULL), id="no-more-than-fits"),
        pytest.param(ROWS, SetPoints(1), Plan((1,), (), None, Reason.ALONE), id="no-batching"),
        pytest.param([dict(rows=9)], SetPoints(8), Plan((1,), (), None, Reason.FULL), id="a-giant-runs-alone"),
        pytest.param([dict(rows=5), dict(rows=5), dict(rows=1)], SetPoints(8), Plan((1,), (), None, Reason.FULL), id="in-order"),
        pytest.param(
            [dict(bucket=7), dict(bucket=9), dict(bucket=7)],
            SetPoints(8),
            Plan((1, 3), (), None, Reason.BUCKET, 7),
            id="one-bucket",
        ),
        pytest.param(ROWS, SetPoints(8, preferred=(2, 8)), Plan((1, 2), (), None, Reason.PREFERRED), id="preferred"),
        pytest.param(
            [dict(arrival=NOW - 40), *ROWS],
            SetPoints(8, delay_ns=100),
            Plan((), (), NOW + 60, Reason.WAIT),
            id="waits-from-oldest",
        ),
        pytest.param(
            [dict(arrival=NOW - 100), *ROWS], SetPoints(8, delay_ns=100), Plan((1, 2, 3, 4), (), None, Reason.DELAY), id="delay"
        ),
        pytest.param(ROWS, SetPoints(3, delay_ns=100), Plan((1, 2, 3), (), None, Reason.FULL), id="full-does-not-wait"),
        pytest.param(
            [dict(rows=3), dict(rows=4)],
            SetPoints(8, delay_ns=100, preferred=(2, 6)),
            Plan((1, 2), (), None, Reason.PREFERRED),
            id="past-the-largest-preferred-does-not-wait",
        ),
        pytest.param(
            [dict(bucket=1), dict(bucket=2)],
            SetPoints(8, delay_ns=100),
            Plan((1,), (), None, Reason.BUCKET, 1),
            id="another-shape-closes-the-batch",
        ),
        pytest.param(
            ROWS,
            SetPoints(8, delay_ns=100, preferred=(2, 8)),
            Plan((1, 2), (), None, Reason.PREFERRED),
            id="preferred-does-not-wait",
        ),
        pytest.param(
            [dict(target=NOW + 30)],
            SetPoints(8, delay_ns=100),
            Plan((), (), NOW + 30, Reason.WAIT),
            id="never-waits-past-a-target",
        ),
        pytest.param([dict(deadline=NOW), dict()], SetPoints(8), Plan((2,), (1,), None, Reason.IDLE), id="drops-what-is-expired"),
        pytest.param([dict(deadline=NOW)], SetPoints(8), Plan((), (1,), None, Reason.WAIT), id="nothing-left"),
        pytest.param([], SetPoints(8), Plan((), (), None, Reason.WAIT), id="nothing-there"),
    ],
)
def test_plan(entries: list[dict[str, int]], points: SetPoints, expected: Plan) -> None:
    assert plan(view(*entries), Unlearned(), points, NOW) == expected


def test_a_known_model_takes_no_more_than_its_most_urgent_target_allows() -> None:
    urgent = dict(target=NOW + 130)
    decided = plan(view(urgent, *ROWS), Known(100, 10), SetPoints(8), NOW)
    assert decided == Plan((1, 2, 3), (), None, Reason.SLACK)


def test_a_target_that_cannot_be_met_any_more_binds_nobody() -> None:
    """Whoever is late anyway must not make the batch small: the others would be late next."""
    assert plan(view(dict(target=NOW - 1), *ROWS), Known(100, 10), SetPoints(8), NOW).take == (1, 2, 3, 4)


def test_where_a_target_is_lost_the_deadline_still_counts() -> None:
    late = dict(target=NOW + 50, deadline=NOW + 125)
    decided = plan(view(late, *ROWS), Known(100, 10), SetPoints(8), NOW)
    assert decided == Plan((1, 2), (), None, Reason.SLACK)


def test_the_way_back_counts() -> None:
    urgent = dict(target=NOW + 130)
    assert plan(view(urgent, *ROWS), Known(100, 10), SetPoints(8, margin_ns=10), NOW).take == (1, 2)


def test_no_batch_is_larger_than_the_best_one() -> None:
    assert plan(view(*ROWS), Known(100, 10, best=2), SetPoints(8), NOW) == Plan((1, 2), (), None, Reason.FULL)


def test_padded_elements_are_bounded_and_the_first_always_goes() -> None:
    entries = [dict(padded=10, rows=2), dict(padded=10, rows=2), dict(padded=10)]
    assert plan(view(*entries), Unlearned(), SetPoints(8, max_elements=40), NOW) == Plan((1, 2), (), None, Reason.FULL)
    assert plan(view(*entries), Unlearned(), SetPoints(8, max_elements=5), NOW).take == (1,)


def due(*times: int) -> list[dict[str, int]]:
    return [dict(target=NOW + time, deadline=NOW + time) for time in times]


def test_the_urgent_one_is_dropped_where_that_saves_more() -> None:
    """Alone he takes 110, and then seven others are late; together they take 180."""
    decided = plan(view(*due(115, *[200] * 7)), Known(100, 10), SetPoints(8), NOW)
    assert decided == Plan((2, 3, 4, 5, 6, 7, 8), (1,), None, Reason.SLACK)


def test_nobody_is_dropped_for_the_sake_of_a_lower_level() -> None:
    high, low = due(115)[0], [dict(level=1, **each) for each in due(*[200] * 7)]
    assert plan(view(high, *low), Known(100, 10), SetPoints(8), NOW) == Plan((1,), (), None, Reason.SLACK)


def test_nobody_is_dropped_where_the_others_can_wait() -> None:
    decided = plan(view(*due(115, *[500] * 7)), Known(100, 10), SetPoints(8), NOW)
    assert decided == Plan((1,), (), None, Reason.SLACK)


def test_an_objective_is_missed_rather_than_its_request_dropped() -> None:
    soft = [dict(target=NOW + 115), *[dict(target=NOW + 200)] * 7]
    assert plan(view(*soft), Known(100, 10), SetPoints(8), NOW) == Plan(tuple(range(1, 9)), (), None, Reason.SLACK)


def test_who_was_dropped_makes_room_for_more() -> None:
    decided = plan(view(*due(115, *[180] * 8)), Known(100, 10), SetPoints(8), NOW)
    assert decided == Plan(tuple(range(2, 10)), (1,), None, Reason.SLACK)


def test_a_smaller_batch_may_get_the_most_done() -> None:
    """Of eight, all would be late; four of them are not, and that is more than the two that the first one allows."""
    decided = plan(view(*due(125, *[145] * 9)), Known(100, 10), SetPoints(8), NOW)
    assert decided == Plan((2, 3, 4, 5), (1,), None, Reason.SLACK)


HOLDS = SetPoints(8, holds=True)


def test_what_a_busy_instance_can_do_in_time_is_left_to_it() -> None:
    patient = view(dict(target=NOW + 1000))
    assert plan(patient, Known(100, 10), HOLDS, NOW, NOW + 50) == Plan((), (), NOW + 50, Reason.WAIT)


@pytest.mark.parametrize(
    ("target", "known", "busy_until"),
    [
        pytest.param(NOW + 250, Known(100, 10), NOW + 50, id="somebody-might-be-late"),
        pytest.param(NOW + 10_000, Known(10, 100), NOW + 50, id="nothing-is-saved"),
        pytest.param(NOW + 10_000, Unlearned(), NOW + 50, id="nothing-is-known"),
        pytest.param(NOW + 10_000, Known(100, 10), 0, id="nobody-runs"),
        pytest.param(NOW + 10_000, Known(100, 10), NOW, id="it-should-be-idle-by-now"),
    ],
)
def test_nothing_is_held_back_otherwise(target: int, known: Known | Unlearned, busy_until: int) -> None:
    assert plan(view(dict(target=target)), known, HOLDS, NOW, busy_until) == Plan((1,), (), None, Reason.IDLE)


def test_a_known_model_stops_waiting_when_it_has_to_start() -> None:
    decided = plan(view(dict(target=NOW + 200)), Known(100, 10), SetPoints(8, delay_ns=1000), NOW)
    assert decided == Plan((), (), NOW + 90, Reason.WAIT)


entry = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 6),
        "bucket": st.integers(0, 2),
        "arrival": st.integers(NOW - 200, NOW),
        "deadline": st.sampled_from([NEVER, NOW - 1, NOW + 50]),
        "target": st.integers(NOW - 50, NOW + 500),
    }
)


@given(
    st.lists(entry, max_size=12),
    st.integers(1, 8),
    st.sampled_from([0, 100]),
    st.sampled_from([(), (4,), (2, 8)]),
    st.sampled_from([Unlearned(), Known(20, 5)]),
)
def test_every_plan_is_sound(entries, max_rows, delay, preferred, predictor) -> None:
    seen = view(*entries)
    decided = plan(seen, predictor, SetPoints(max_rows, delay, preferred), NOW)
    taken = [entries[n - 1] for n in decided.take]
    live = [n for n, e in enumerate(entries, 1) if e["deadline"] > NOW]
    given_up = [n for n in decided.drop if n in live]
    assert [n for n in decided.drop if n not in live] == [n for n in range(1, len(entries) + 1) if n not in live]
    assert not given_up or decided.reason is Reason.SLACK, "for the sake of others, where not all can be in time"
    assert all(entries[n - 1]["deadline"] < NOW + (predictor.execute_ns(0, max_rows) or 0) for n in given_up)
    assert len({e["bucket"] for e in taken}) <= 1
    assert sum(e["rows"] for e in taken) <= max_rows or len(taken) == 1
    if taken:
        mates = [n for n in live if entries[n - 1]["bucket"] == entries[live[0] - 1]["bucket"] and n not in given_up]
        assert list(decided.take) == mates[: len(taken)], "a prefix of the most urgent one's bucket"
        assert decided.until is None
    elif live:
        assert delay, "it waits only where a delay is configured"
        assert decided.until is not None
        assert (
            NOW
            < decided.until
            <= min(entries[n - 1]["arrival"] for n in live if entries[n - 1]["bucket"] == entries[live[0] - 1]["bucket"]) + delay
        )


def test_who_would_be_late_in_any_case_is_dropped_for_the_sake_of_the_others() -> None:
    hopeless, fine = dict(deadline=NOW + 50, target=NOW + 50), dict(deadline=NOW + 500, target=NOW + 500)
    decided = plan(view(hopeless, fine, fine), Known(100, 1), SetPoints(8), NOW)
    assert decided == Plan((2, 3), (1,), None, Reason.IDLE)


def test_the_last_one_runs_although_it_would_be_late() -> None:
    """There is nobody to save, and what is never run is never learned."""
    hopeless = dict(deadline=NOW + 50, target=NOW + 50)
    assert plan(view(hopeless), Known(100, 1), SetPoints(8), NOW) == Plan((1,), (), None, Reason.IDLE)
    assert plan(view(hopeless, hopeless), Known(100, 1), SetPoints(8), NOW) == Plan((2,), (1,), None, Reason.IDLE)


def test_nobody_is_dropped_for_a_target() -> None:
    soft = dict(target=NOW + 50)
    assert plan(view(soft, soft), Known(100, 1), SetPoints(8), NOW).drop == ()


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 400)), min_size=1, max_size=32),
    st.integers(0, 200),
    st.integers(0, 40),
)
def test_a_batch_makes_nobody_late_who_would_not_be_late_alone(entries: list[tuple[int, int]], base: int, row: int) -> None:
    """The invariant of the plan, for whatever waits: what runs together meets the earliest target in it, or is one alone."""
    rows, times = zip(*sorted(entries, key=lambda entry: entry[1]), strict=True)
    waiting = view(*(dict(rows=n, target=NOW + t, deadline=NOW + t) for n, t in zip(rows, times, strict=True)))
    known = Known(base, row)
    decided = plan(waiting, known, SetPoints(16), NOW)
    hopeless = {n for n, (count, time) in enumerate(zip(rows, times, strict=True), 1) if known.execute_ns(0, count) > time}
    if decided.reason is not Reason.SLACK:
        assert set(decided.drop) <= hopeless
    else:
        # Dropped for the sake of the others: with as many of them as there might be he would be late.
        assert decided.take
        together = sum(rows[number - 1] for number in decided.take)
        assert all(times[n - 1] < known.execute_ns(0, 2 * together) for n in set(decided.drop) - hopeless)
    taken = [number - 1 for number in decided.take]
    lasts = base + row * sum(rows[n] for n in taken)
    assert len(taken) == 1 or lasts <= min(times[n] for n in taken)
    assert len(set(decided.take) | set(decided.drop)) == len(decided.take) + len(decided.drop)
