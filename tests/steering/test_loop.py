"""The whole loop on a clock of its own: it comes to rest, does not overshoot, does not swing, and starves nobody."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import mean

import pytest

from headrace.budgets.controller import Move
from headrace.clock import MILLISECOND, SECOND
from headrace.ledger.records import Outcome
from headrace.scheduling.simulate import Arrival
from headrace.scheduling.steering import Steering
from tests.steering.loop import ALLOWED, THRESHOLD_NS, Loop, arrivals, is_good, reversals, run

BEGINS, SETTLES, LASTS = 10, 30, 110
"""Seconds: when it happens, how long the loop has to come to rest, and how long all of it lasts."""


def usual(seed: int) -> list[Arrival]:
    return arrivals(seed, (0.7, LASTS))


SCENARIOS: dict[str, tuple[Callable[[int], list[Arrival]], Callable[[int], float]]] = {
    "step load": (lambda seed: arrivals(seed, (0.7, BEGINS), (1.4, LASTS - BEGINS)), lambda now: 1.0),
    "slow drift": (usual, lambda now: 1 + now / SECOND / LASTS),
    "twice as slow": (usual, lambda now: 2.0 if now > BEGINS * SECOND else 1.0),
    "noisy neighbour": (usual, lambda now: 1.8 if now > BEGINS * SECOND and now // (10 * SECOND) % 2 else 1.0),
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_settles_without_overshoot_and_does_not_swing(scenario: str, seed: int) -> None:
    asked, factor = SCENARIOS[scenario]
    loop = Loop()
    report = run(loop, asked(seed), factor)
    share = loop.lever("variant")
    settled = share[BEGINS + SETTLES :]
    level = mean(settled)
    assert level > 0.05, "there is something to do"
    if scenario != "slow drift":  # of which the end is further up than the beginning
        assert max(share) <= 1.2 * max(settled)
        assert max(abs(value - level) for value in settled) <= 0.25 * max(1.0, level)
    for name in ("caution", "variant"):
        values = loop.lever(name)
        worst = max(reversals(values[at : at + 60]) for at in range(BEGINS + SETTLES, LASTS - 60))
        assert worst <= 2, (name, values)
    late = [fate for fate in report.fates if fate.arrival.at > (BEGINS + SETTLES) * SECOND]
    assert sum(not is_good(fate) for fate in late) <= 2 * ALLOWED * len(late)


def test_a_burst_costs_a_fraction_of_the_budget_and_is_forgotten() -> None:
    """Twice the load for ten seconds: what the loop is for."""
    asked = arrivals(3, (0.7, 15), (1.4, 10), (0.7, 45))
    steered, alone = Loop(), Loop(has_variant=False)
    ours, plain = run(steered, asked), run(alone, asked)
    bad = [sum(not is_good(fate) for fate in report.fates) for report in (ours, plain)]
    assert bad[0] <= 0.5 * bad[1], bad
    during = [fate for fate in ours.fates if 15 * SECOND <= fate.arrival.at < 25 * SECOND]
    assert sum(map(is_good, during)) > sum(is_good(fate) for fate in plain.fates if 15 * SECOND <= fate.arrival.at < 25 * SECOND)
    assert steered.made[-1].levers.variant == 0
    assert any(made.move is Move.GIVE for made in steered.made)


def test_a_healthy_budget_is_spent_on_larger_batches_and_kept() -> None:
    """Twice the time to wait for company, where the configuration allows any; and back as soon as it burns."""
    asked = arrivals(8, (0.15, 80), (1.4, 10))
    steered, fixed = (Loop(has_variant=False, delay_ns=40 * MILLISECOND, fixed=by) for by in (None, Steering(quantile=0.5)))
    ours, plain = run(steered, asked), run(fixed, asked)
    rows = [mean(rows for at, rows in report.batches if 60 * SECOND < at < 80 * SECOND) for report in (ours, plain)]
    assert rows[0] > 1.3 * rows[1], rows
    assert steered.made[79].steering.patience == 2
    assert all(is_good(fate) for fate in ours.fates if fate.arrival.at < 79 * SECOND)
    assert steered.made[-1].levers.caution > -1, "the load has doubled"


def test_low_classes_make_room_and_are_served_again_and_again() -> None:
    """More of the low class than can be done, by a model whose times are not foretold: the high class waits for full batches."""
    high = arrivals(4, (0.2, 75), priority=1)
    low = arrivals(5, (0.5, 10), (2.0, 30), (0.2, 35), priority=2, deadline_ns=10 * THRESHOLD_NS)
    asked = sorted(high + low, key=lambda each: each.at)

    def factor(now: int) -> float:
        return 2.4 if 10 * SECOND < now < 40 * SECOND else 1.0

    steered = Loop(has_variant=False, classes=2, covered=1, predicts=False)
    alone = Loop(has_variant=False, classes=2, covered=1, predicts=False, fixed=Steering())
    ours, plain = run(steered, asked, factor), run(alone, asked, factor)
    settled = range(27, 40)
    bad = [
        sum(not is_good(f) for f in report.fates if f.arrival.priority == 1 and f.arrival.at // SECOND in settled)
        for report in (ours, plain)
    ]
    assert bad[0] < 0.5 * bad[1], bad
    assert max(steered.lever("shed")) == 1
    assert steered.made[-1].levers.shed < 0.5, "they come back"
    outcomes = [(f.arrival.at // SECOND, f.outcome) for f in ours.fates if f.arrival.priority == 2]
    assert (settled[0], Outcome.REFUSED) in outcomes
    served = sorted({at for at, outcome in outcomes if outcome is Outcome.ANSWERED})
    assert max(after - before for before, after in pairwise(served)) <= 3, "again and again"


def test_a_gap_changes_nothing_abruptly() -> None:
    """Nobody asks for half a minute in the middle of a burst, as when a ledger was not read."""
    first, again = arrivals(6, (0.7, 10), (1.4, 15)), arrivals(7, (1.4, 20))
    asked = first + [Arrival(each.at + 55 * SECOND, deadline_ns=each.deadline_ns) for each in again]
    loop = Loop()
    run(loop, asked)
    share = loop.lever("variant")
    assert max(abs(after - before) for before, after in pairwise(share[20:])) <= 0.5
    assert all(after >= before - 0.051 for before, after in pairwise(share))
