"""Burn rates, what is left, for how long, and which alerts that means."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.budgets.attribution import CAUSES
from headrace.budgets.burn import DAY, WORKBOOK, burning, duration_text, pairs_of, rates
from headrace.budgets.history import HOUR, MINUTE, History
from headrace.clock import MILLISECOND, SECOND
from tests.budgets.making import NOON, objective


def steady(share: float, since: int, until: int = 0, every: int = 10 * SECOND) -> History:
    """A thousand requests at a time, of which a share is bad, from `since` ago to `until` ago."""
    history = History(objective())
    _go_on(history, share, since, until, every)
    return history


def _go_on(history: History, share: float, since: int, until: int, every: int) -> None:
    instants = np.repeat(np.arange(NOON - since, NOON - until, every), 1000)
    bad = np.arange(len(instants)) % 1000 < share * 1000
    history.add(instants, bad, np.eye(1, len(CAUSES))[np.zeros(bad.sum(), int)])


def test_the_pairs_are_the_workbooks() -> None:
    assert pairs_of(30 * DAY) == WORKBOOK
    for pair in WORKBOOK:
        assert pair.factor * pair.long_ns / (30 * DAY) == pytest.approx(pair.spent), "what the factor means"
    assert [pair.short_ns * 12 for pair in WORKBOOK] == [pair.long_ns for pair in WORKBOOK]


def test_other_windows_have_pairs_in_proportion() -> None:
    week = pairs_of(7 * DAY)
    assert [(pair.factor, pair.spent) for pair in week] == [(pair.factor, pair.spent) for pair in WORKBOOK]
    assert (week[0].long_ns, week[0].short_ns) == (14 * MINUTE, 70 * SECOND)
    assert pairs_of(HOUR)[0].short_ns == 417 * MILLISECOND


def test_nothing_counted_burns_nothing() -> None:
    burn = rates(History(objective()), NOON)
    assert (burn.fast, burn.slow, burn.left, burn.exhausted_in_ns, burn.firing) == (0, 0, 1, None, ())


def test_a_steady_share_of_bad_requests_burns_at_its_rate_over_every_window() -> None:
    burn = rates(steady(0.02, 30 * HOUR), NOON)
    assert [burn.fast_requests, burn.slow_requests] == [0, 3000]
    assert burn.slow == pytest.approx(2)
    assert list(burn.windows.values()) == pytest.approx([2.0] * 7)
    assert burn.left == pytest.approx(-1), "twice what the traffic so far allows"
    assert [pair.factor for pair in burn.firing] == [1]


def test_what_is_left_lasts_as_long_as_it_does_at_the_rate_of_the_latest_hour() -> None:
    history = steady(0.001, 10 * DAY, HOUR, MINUTE)
    _go_on(history, 0.02, HOUR, 0, MINUTE)
    burn = rates(history, NOON)
    spent = (0.001 * (240 - 1) + 0.02) / 240 / 0.01
    assert burn.left == pytest.approx(1 - spent, rel=0.01)
    assert burn.exhausted_in_ns == pytest.approx((1 - spent) * 30 * DAY / 2, rel=0.05)


def test_nothing_left_is_exhausted_now() -> None:
    history = steady(0.5, HOUR, 30 * MINUTE, MINUTE)
    assert rates(history, NOON).exhausted_in_ns == 0
    assert rates(history, NOON + DAY).exhausted_in_ns == 0, "although nothing is being spent"


@pytest.mark.parametrize(
    ("share", "since", "until", "severities"),
    [
        (0.2, 6 * HOUR, 0, ["page", "page", "ticket", "ticket"]),
        (0.2, HOUR, 0, ["page"]),
        (0.2, 2 * MINUTE, 0, []),
        (0.2, HOUR, 10 * MINUTE, []),
        (0.04, DAY, 0, ["ticket", "ticket"]),
        (0.005, DAY, 0, []),
    ],
)
def test_an_alert_fires_when_both_windows_burn(share: float, since: int, until: int, severities: list[str]) -> None:
    history = steady(0, 3 * DAY, since, MINUTE)
    _go_on(history, share, since, until, MINUTE)
    assert [pair.severity for pair in rates(history, NOON).firing] == severities


@pytest.mark.parametrize(
    ("ns", "text"),
    [(30 * DAY, "30d"), (90 * MINUTE, "1h30m"), (417 * MILLISECOND, "417ms"), (280 * SECOND, "4m40s"), (0, "0s"), (999, "0s")],
)
def test_durations_are_written_as_prometheus_reads_them(ns: int, text: str) -> None:
    assert duration_text(ns) == text


def test_a_budget_burns_when_it_did_just_now_and_for_some_seconds() -> None:
    """Not by chance, and not because of what is over."""
    assert burning(History(objective()), NOON) == 0
    assert burning(steady(0.02, 10 * SECOND, every=SECOND // 10), NOON) == pytest.approx(2)
    assert burning(steady(0.02, 10 * SECOND, 2 * SECOND, SECOND // 10), NOON) == 0
    chance = steady(0, 10 * SECOND, every=SECOND // 10)
    _go_on(chance, 0.02, SECOND // 10, 0, SECOND // 10)
    assert 0 < burning(chance, NOON) < 0.1
