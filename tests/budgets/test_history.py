"""What was counted, over which window, for how long, and what becomes of it when a server or a clock is set."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.budgets.attribution import CAUSES
from headrace.budgets.budgets import Budgets
from headrace.budgets.history import BAD, HOUR, MINUTE, TOTAL, History
from headrace.clock import SECOND
from headrace.ledger.records import BATCH
from tests.budgets.making import NOON, objective, request, requests

DAY = 24 * HOUR


def add(history: History, *instants: int, bad: bool = False) -> None:
    shares = np.zeros((len(instants) if bad else 0, len(CAUSES)))
    shares[:, 0] = 1
    history.add(np.array(instants, np.int64), np.full(len(instants), bad), shares)


def counted(history: History, now: int, window: int) -> list[float]:
    return history.counts(now, window)[[TOTAL, BAD]].tolist()


def test_events_are_counted_for_as_long_as_the_window_is() -> None:
    history = History(objective())
    add(history, NOON - 20 * DAY, NOON - 2 * HOUR, NOON - 40 * SECOND, NOON - 3 * SECOND)
    add(history, NOON - 25 * SECOND, bad=True)
    windows = {5 * SECOND: [1, 0], 30 * SECOND: [2, 1], HOUR: [3, 1], 3 * HOUR: [4, 1], 30 * DAY: [5, 1]}
    assert {window: counted(history, NOON, window) for window in windows} == windows
    assert counted(history, NOON + 60 * DAY, 30 * DAY) == [0, 0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 299), st.booleans()), max_size=50), st.integers(1, 299))
def test_a_window_of_whole_seconds_is_counted_exactly(events: list[tuple[int, bool]], seconds: int) -> None:
    history = History(objective())
    for ago, bad in events:
        add(history, NOON - ago * SECOND - 1, bad=bad)
    inside = [bad for ago, bad in events if ago < seconds]
    assert counted(history, NOON, seconds * SECOND) == [len(inside), sum(inside)]


def test_a_window_that_begins_within_an_interval_takes_its_part() -> None:
    history = History(objective())
    add(history, *(NOON - 5 * SECOND for _ in range(100)))
    assert counted(history, NOON, 4 * SECOND + SECOND // 4) == pytest.approx([25, 0])


def test_order_does_not_matter_and_what_is_too_old_is_forgotten() -> None:
    one, other = History(objective()), History(objective())
    instants = [NOON, NOON - DAY, NOON - 5 * SECOND, NOON - 300 * DAY, NOON - 2 * MINUTE]
    for instant in instants:
        add(one, instant)
    for instant in reversed(instants):
        add(other, instant)
    for window in (5 * SECOND, HOUR, 30 * DAY):
        assert counted(one, NOON, window) == counted(other, NOON, window)
    assert counted(one, NOON, 30 * DAY) == [4, 0]


def test_its_size_is_fixed() -> None:
    history = History(objective())
    sizes: set[int] = set()
    for day in range(0, 400, 40):
        add(history, *(NOON + day * DAY + number * 7 * MINUTE for number in range(5000)))
        kept = history.dump()
        sizes.add(len(kept["60"]) + len(kept["3600"]))
    assert max(sizes) <= 720 + 721
    assert counted(history, NOON + 400 * DAY, 30 * DAY)[0] < 30 * 24 * 60 / 7 + 10


def test_a_gap_is_a_time_without_events() -> None:
    history = History(objective())
    add(history, NOON - 25 * DAY, bad=True)
    add(history, NOON)
    assert counted(history, NOON, HOUR) == [1, 0]
    assert counted(history, NOON, 30 * DAY) == [2, 1]


def budgets(ahead: int = 0, **changes: Any) -> Budgets:
    return Budgets([objective(**changes)], lambda number: ("m", 1, "d"), ahead)


def restarted(kept: Budgets, ahead: int, now: int, **changes: Any) -> tuple[Budgets, list[str]]:
    """A server that comes up at `now` of its clock, with what another has kept, as it was on disk."""
    after = budgets(ahead, **changes)
    return after, after.include(json.loads(json.dumps(kept.dump())), now)


def fold(into: Budgets, *told: dict[str, int]) -> None:
    into.fold(requests(*told), np.zeros(0, BATCH))


def left(of: Budgets, now: int) -> float:
    return of.burns(now)["m-soon"].left


def test_what_was_counted_outlives_a_restart_of_server_and_machine() -> None:
    before = budgets(ahead=7 * DAY)
    fold(before, *(request(NOON, execute=1) for _ in range(195)), *(request(NOON, execute=50) for _ in range(1)))
    # The machine was restarted: CLOCK_MONOTONIC begins anew, the wall clock goes on. An hour has passed.
    after, problems = restarted(before, ahead=NOON + 7 * DAY, now=HOUR)
    assert problems == []
    assert left(after, HOUR) == pytest.approx(left(before, NOON + HOUR)) == pytest.approx(1 - 1 / 1.96)
    fold(after, *(request(HOUR, execute=1) for _ in range(4)))
    assert left(after, HOUR + SECOND) == pytest.approx(0.5)
    assert left(after, 31 * DAY) == 1, "and in the end it is forgotten"
    allowed = after.accounts["m-soon"].stages.allowance
    assert np.allclose(allowed.stages, before.accounts["m-soon"].stages.allowance.stages, rtol=0.2)


@pytest.mark.parametrize("step", [-400 * DAY, -HOUR, HOUR])
def test_a_wall_clock_that_was_set_between_two_servers_loses_nothing_but_the_time(step: int) -> None:
    before = budgets()
    fold(before, request(NOON, execute=50), *(request(NOON, execute=1) for _ in range(99)))
    after, _ = restarted(before, ahead=step, now=NOON)
    assert left(after, NOON + MINUTE) == pytest.approx(0)
    fold(after, *(request(NOON + MINUTE, execute=1) for _ in range(100)))
    assert left(after, NOON + 2 * MINUTE) == pytest.approx(0.5)


def test_a_wall_clock_that_is_set_meanwhile_changes_nothing() -> None:
    """Nobody asks it: events and windows are instants of CLOCK_MONOTONIC."""
    one, other = budgets(ahead=0), budgets(ahead=1000 * DAY)
    for each in (one, other):
        fold(each, request(NOON, execute=50), request(NOON + HOUR, execute=1))
    assert one.burns(NOON + HOUR + SECOND) == other.burns(NOON + HOUR + SECOND)


def test_many_restarts_do_not_make_time_run_ahead() -> None:
    server = budgets()
    for start in range(50):
        fold(server, request(NOON + start * SECOND, execute=1))
        server, _ = restarted(server, ahead=0, now=NOON + start * SECOND)
    assert server.accounts["m-soon"].history.ahead == 0
    assert server.accounts["m-soon"].history.counts(NOON + MINUTE, HOUR)[TOTAL] == 50


def test_another_measure_begins_anew_and_another_target_does_not() -> None:
    before = budgets()
    fold(before, request(NOON, execute=50), *(request(NOON, execute=1) for _ in range(99)))
    same, problems = restarted(before, 0, NOON, target=0.9)
    assert problems == []
    assert left(same, NOON + 1) == pytest.approx(0.9)
    other, problems = restarted(before, 0, NOON, threshold_ns=10 * SECOND)
    assert problems == ["objective 'm-soon' measures something else now: it begins anew"]
    assert left(other, NOON + 1) == 1


def spoil(kept: dict[str, Any], how: str) -> None:
    rows = kept["m-soon"]["60"]
    match how:
        case "gone":
            del kept["m-soon"]["60"]
        case "text":
            kept["m-soon"]["60"] = "no rows"
        case "short":
            rows[0] = rows[0][:3]
        case "nan":
            rows[0][1] = float("nan")
        case "negative":
            rows[0][1] = -5
        case "huge":
            rows[0][0] = 1e300
        case "nothing":
            kept["m-soon"] = None


@pytest.mark.parametrize("how", ["gone", "text", "short", "nan", "negative", "huge", "nothing"])
def test_what_cannot_be_read_begins_anew(how: str) -> None:
    before = budgets()
    fold(before, request(NOON, execute=50))
    kept = before.dump()
    spoil(kept, how)
    after = budgets()
    assert after.include(kept, NOON) == ["what was kept of objective 'm-soon' cannot be read: it begins anew"]
    assert left(after, NOON + 1) == 1
    assert after.accounts["m-soon"].history.ahead == 0
