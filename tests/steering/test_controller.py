"""The controller alone: what it may do in one step, and what it must not, whatever it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.budgets.controller import GIVES, TAKES, Decision, Levers, Move, Seen, State, decide
from headrace.clock import MILLISECOND, SECOND
from headrace.scheduling.admission import SHARE_OF
from headrace.scheduling.steering import QUANTILE, Steering

CALM = Seen(0.0, 0.0, 1.0, 100, 0, 0, 0.01, 20 * MILLISECOND, has_variant=True, classes=3, sheddable=2)
BURNS = replace(CALM, fast=20.0, slow=5.0, left=0.8, bad=30, refused=25)
START = 10 * SECOND

rates = st.floats(0, 1e6)
seen = st.builds(
    lambda requests, bad, refused, **rest: Seen(
        requests=requests, bad=(b := min(bad, requests)), refused=min(refused, b), threshold_ns=20 * MILLISECOND, **rest
    ),
    requests=st.floats(0, 1e6),
    bad=st.floats(0, 1e6),
    refused=st.floats(0, 1e6),
    fast=rates,
    slow=rates,
    left=st.floats(-1e6, 1.0),
    allowed=st.floats(1e-6, 0.5),
    has_variant=st.booleans(),
    classes=st.just(3),
    sheddable=st.integers(0, 2),
)
gaps = st.one_of(st.just(SECOND), st.integers(-100 * SECOND, 100 * SECOND))


def steps(of: list[Seen], every: int = SECOND) -> list[Decision]:
    """One decision after the other, the first of which only learns the time."""
    state, now, made = State(stepped_at=START), START, list[Decision]()
    for each in of:
        now += every
        made.append(decide(state, each, now))
        state = made[-1].state
    return made


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(seen, gaps), max_size=15))
def test_whatever_happens_steps_and_levers_stay_within_their_bounds(story: list[tuple[Seen, int]]) -> None:
    state, now = State(), START
    for each, gap in story:
        now += gap
        before = state.levers
        made = decide(state, each, now)
        state, after, steering = made.state, made.levers, made.steering
        assert made.before == before
        assert -1 <= after.caution <= 1
        assert 0 <= after.variant <= 1
        assert 0 <= after.shed <= 2
        for name in ("caution", "variant", "shed"):
            moved = getattr(after, name) - getattr(before, name)
            assert abs(moved) <= (TAKES if made.move is Move.TAKE else GIVES) + 1e-9
        assert 0.5 <= steering.quantile <= 0.95
        assert 0 <= steering.margin_ns <= each.threshold_ns // 8
        assert 0 <= steering.patience <= 2
        assert 0 <= steering.variant <= SHARE_OF
        assert 1 not in steering.shed, "the first class is never shed"
        assert all(0 < share < SHARE_OF for share in steering.shed.values()), "of every class somebody is served"


@settings(max_examples=60, deadline=None)
@given(seen, st.one_of(st.integers(-100 * SECOND, 0), st.integers(4 * SECOND, 1000 * SECOND)))
def test_a_step_that_knows_not_what_happened_changes_nothing(each: Seen, gap: int) -> None:
    """A clock that is set, a machine that slept, a ledger that was not read: the next step after that goes on from there."""
    before = steps([BURNS, BURNS])[-1].state
    made = decide(before, each, before.stepped_at + gap)
    assert made.levers == before.levers
    assert made.move is Move.NONE
    assert replace(made.state, stepped_at=before.stepped_at) == before


@settings(max_examples=60, deadline=None)
@given(seen.map(lambda s: replace(s, fast=s.fast % 0.5, bad=0, refused=0)))
def test_a_budget_that_does_not_burn_takes_nothing(each: Seen) -> None:
    assert not [made for made in steps([each] * 20) if made.move is Move.TAKE]


@settings(max_examples=60, deadline=None)
@given(seen)
def test_no_variant_is_used_and_no_class_shed_that_is_not_there(each: Seen) -> None:
    bare = replace(each, has_variant=False, sheddable=0)
    assert all((made.levers.variant, made.levers.shed) == (0, 0) for made in steps([bare] * 10))


def test_as_much_goes_to_the_variant_as_was_bad() -> None:
    (made,) = steps([BURNS])
    assert made.levers == Levers(caution=0.0, variant=pytest.approx(0.25 + 0.05 / 3))
    assert made.steering == Steering(variant=273)
    assert made.why == "the budget burns: more goes to the variant"


def test_classes_are_shed_when_all_of_it_runs_on_the_variant() -> None:
    made = steps([BURNS] * 25)
    expected = [BURNS.refused / 100 + 5 / 300 + n * (BURNS.refused / 100 + 5 / 300) / 2 for n in range(6)]
    assert [each.levers.variant for each in made[:6]] == pytest.approx([min(1.0, share) for share in expected])
    assert [each.levers.shed for each in made[:7]] == [0] * 7
    assert made[-1].levers.shed == 2
    first = next(each for each in made if each.levers.shed)
    assert first.before.variant == 1
    assert first.steering.shed == {3: round(first.levers.shed * SHARE_OF)}
    assert made[-1].steering.shed == {2: SHARE_OF - SHARE_OF // 16, 3: SHARE_OF - SHARE_OF // 16}


def test_who_came_too_late_asks_for_caution_and_who_was_refused_does_not() -> None:
    late = steps([replace(BURNS, refused=0)] * 5)[-1]
    assert late.levers.caution == 1
    assert late.steering.quantile == pytest.approx(0.95)
    assert late.steering.margin_ns == 20 * MILLISECOND // 8
    assert late.steering.patience == 0
    after = decide(late.state, BURNS, late.at + SECOND)
    assert after.levers.caution == pytest.approx(1 - (25 - 5) / 100)


def test_a_calm_budget_gives_back_slowly_the_classes_first() -> None:
    taken = steps([BURNS] * 25)
    state, now = taken[-1].state, taken[-1].at
    given_back: list[Decision] = []
    for _ in range(200):
        now += SECOND
        made = decide(state, CALM, now)
        state = made.state
        given_back.append(made)
    moves = [each.move for each in given_back]
    assert moves[:9] == [Move.NONE] * 9, "it has to be calm for ten seconds first"
    shed_gone = next(n for n, each in enumerate(given_back) if each.levers.shed == 0)
    assert given_back[shed_gone].levers.variant == 1
    assert given_back[-1].levers == Levers(caution=-1.0), "and is spent on throughput in the end"
    assert given_back[-1].steering.quantile == 0.5
    assert moves.index(Move.SPEND) > shed_gone


def test_a_budget_that_is_mostly_gone_is_not_spent_on_throughput() -> None:
    made = steps([replace(CALM, left=0.3)] * 100)
    assert made[-1].levers == Levers()
    assert made[-1].steering.quantile == QUANTILE


def test_who_gave_too_soon_waits_three_times_as_long() -> None:
    made = steps([BURNS, *[CALM] * 10])
    assert made[-1].move is Move.GIVE
    again = decide(made[-1].state, BURNS, made[-1].at + SECOND)
    assert again.state.hold_ns == 3 * made[0].state.hold_ns
    assert decide(again.state, BURNS, again.at + SECOND).state.hold_ns == again.state.hold_ns, "once for each"


def test_few_requests_say_little() -> None:
    (made,) = steps([replace(BURNS, requests=2, bad=1, refused=1)])
    assert made.levers.variant == pytest.approx(1 / 20)


def test_classes_come_back_although_nobody_of_the_objective_asks_any_more() -> None:
    taken = steps([replace(BURNS, has_variant=False)] * 4)
    state, now = taken[-1].state, taken[-1].at
    for _ in range(60):
        now += SECOND
        state = decide(state, replace(CALM, requests=0), now).state
    assert state.levers.shed == 0


def test_what_burns_less_than_it_may_is_given_back_later() -> None:
    taken = steps([BURNS])[-1]
    state, now, waited = taken.state, taken.at, 0
    while state.levers.variant == taken.levers.variant:
        now, waited = now + SECOND, waited + 1
        state = decide(state, replace(CALM, fast=0.8, slow=0.8, bad=0.8), now).state
    assert waited == 31, "not after ten seconds, and not never"
