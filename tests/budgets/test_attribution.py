"""Who is charged for a bad request, and that it is charged once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.budgets.attribution import (
    CAUSES,
    CHARGES,
    EXTERNALITIES,
    Ahead,
    Allowance,
    StageBudgets,
    charges,
    straggling,
)
from headrace.budgets.budgets import Budgets
from headrace.budgets.history import BAD, TOTAL
from headrace.budgets.offenders import offenders_of
from headrace.clock import MILLISECOND, SECOND
from headrace.ledger.collect import BATCH_KIND, REQUEST_KIND, Chunk
from headrace.ledger.records import STAGES, Outcome, Records, Refusal
from headrace.scheduling.plan import Reason
from tests.budgets.making import NOON, batch, batches, expired, objective, request, requests

MS = MILLISECOND


def allowance(usual: dict[str, float] | None = None, threshold: float = 20, **stages: float) -> Allowance:
    """What each stage may take, and usually takes, in ms; 1 unless it is said."""
    budgets, habits = (np.array([given.get(name, 1.0) for name in STAGES]) * MS for given in (stages, usual or stages))
    return Allowance(round(threshold * MS), budgets, habits)


def charged(bad: Records, ran: Records, allowed: Allowance, padded: float = 0) -> dict[str, float]:
    """Of one request, what is not zero."""
    (row,) = charges(bad, ran, allowed, np.full(1, float(padded)))
    assert row[: len(CHARGES)].sum() == pytest.approx(1)
    return {name: round(share, 6) for name, share in zip(CAUSES, row.tolist(), strict=True) if abs(share) > 1e-9}


NONE = batches()


def test_each_stage_is_charged_in_proportion_to_its_excess() -> None:
    late = requests(request(receive=0.5, gather=4, execute=7, send=2))
    assert charged(late, NONE, allowance(gather=1, execute=2, send=2)) == {"gather": 0.375, "execute": 0.625}


def test_who_was_nowhere_too_long_is_charged_for_where_the_time_went() -> None:
    late = requests(request(queue=3, execute=1))
    assert charged(late, NONE, allowance(queue=10, execute=10)) == {"queue": 0.75, "execute": 0.25}


def test_who_had_no_time_at_all_is_charged_for_the_way_in() -> None:
    assert charged(requests(request(outcome=Outcome.EXPIRED)), NONE, allowance()) == {"receive": 1}


def test_the_stage_it_ended_in_ends_with_it() -> None:
    assert charged(requests(expired(NOON, 50)), NONE, allowance()) == {"queue": 1}


def test_an_instance_is_busy_with_one_batch_at_a_time() -> None:
    """The answers of a batch may leave when the next has been taken."""
    ran = batches(batch(NOON + 11 * MS, 2, execute=10), batch(NOON, 1, execute=10, scatter=5))
    usual = np.array([1.0 if name == "scatter" else 100.0 for name in STAGES]) * MS
    busy, slow = Ahead(ran, usual).between(np.array([NOON - MS]), np.array([NOON + 40 * MS]))
    assert busy.tolist() == [21 * MS]
    assert slow.sum() == 0, "what is left of the first is the second's time"


def test_waiting_for_batches_that_take_as_long_as_usual_is_the_queues() -> None:
    late = requests(request(queue=30, execute=1))
    ahead = batches(*(batch(NOON + n * 10 * MS, number=n + 1, execute=10) for n in range(3)))
    assert charged(late, ahead, allowance(queue=5, execute=10)) == {"queue": 1, "ahead": 1}


def test_waiting_for_a_batch_that_took_too_long_is_its_stages() -> None:
    late = requests(request(queue=40, execute=1))
    slow = batches(batch(NOON, execute=38, gather=2))
    told = charged(late, slow, allowance(queue=4, execute=8, gather=2))
    assert told == {"queue": 0.25, "execute": 0.75, "ahead": 1}
    part = batches(batch(NOON - 20 * MS, execute=38, gather=2))
    assert charged(late, part, allowance(queue=4, execute=8, gather=2)) == {"queue": 0.5, "execute": 0.5, "ahead": 0.5}, (
        "only what it waited for"
    )


def test_of_two_instances_one_that_is_slow_is_half_the_reason() -> None:
    late = requests(request(queue=40, execute=1))
    both = batches(batch(NOON, execute=40, instance=0), batch(NOON, number=2, execute=40, instance=1))
    one = batches(
        batch(NOON, execute=40, instance=0), *(batch(NOON + n * 4 * MS, n + 2, execute=4, instance=1) for n in range(10))
    )
    allowed = allowance(queue=4, execute=4)
    assert charged(late, both, allowed) == {"queue": 0.1, "execute": 0.9, "ahead": 1}
    assert charged(late, one, allowed) == {"queue": 0.55, "execute": 0.45, "ahead": 1}


@pytest.mark.parametrize(("reason", "held"), [(Reason.DELAY, 0.75), (Reason.FULL, 0.75), (Reason.IDLE, 0)])
def test_being_held_for_company_is_told_apart_from_waiting(reason: Reason, held: float) -> None:
    late = requests(request(queue=40, execute=1) | {"batch": 2})
    ran = batches(batch(NOON, execute=10), batch(NOON + 40 * MS, number=2, reason=reason))
    told = charged(late, ran, allowance(queue=4, execute=10))
    assert (told["queue"], told["ahead"], told.get("window", 0)) == (1, 0.25, held)


def test_what_was_refused_for_the_queue_is_charged_as_if_it_had_waited() -> None:
    told = request(NOON, Outcome.REFUSED) | {"refusal": Refusal.QUEUE_FULL}
    slow = batches(batch(NOON - 30 * MS, execute=25))
    assert charged(requests(told), slow, allowance(execute=5)) == {"execute": 0.75, "refused": 0.25, "ahead": 0.75}
    assert charged(requests(told), NONE, allowance(execute=5)) == {"refused": 1}
    leaving = told | {"refusal": Refusal.DRAINING}
    assert charged(requests(leaving), slow, allowance(execute=5)) == {"refused": 1}


def test_what_failed_is_charged_to_that() -> None:
    assert charged(requests(request(outcome=Outcome.FAILED, execute=50)), NONE, allowance()) == {"failed": 1}


def test_padding_is_charged_to_others_in_the_batch_but_not_to_the_longest() -> None:
    told = [request(execute=50) | {"batch": 1, "bytes_in": length, "client": n + 1} for n, length in enumerate((100, 100, 400))]
    members, ran = requests(*told), batches(batch(NOON, execute=50, padding=600))
    padded = straggling(members, ran)
    assert padded.tolist() == pytest.approx([0.5, 0.5, 0])
    shares = charges(members, ran, allowance(execute=5), padded)
    assert shares[:, CAUSES.index("padding")].tolist() == pytest.approx([0.5, 0.5, 0])
    assert straggling(members, batches(batch(NOON, execute=50))).tolist() == [0, 0, 0], "a batch that was not padded"
    found = offenders_of(
        objective(), allowance(execute=5), [chunk(REQUEST_KIND, members), chunk(BATCH_KIND, ran)], {1: ("m", 1, "d")}
    )
    assert [(each.client[-1], each.requests, each.bad, each.spoilt) for each in found] == [
        ("3", 1, 1, pytest.approx(1)), ("1", 1, 1, 0), ("2", 1, 1, 0),
    ]  # fmt: skip


def chunk(kind: str, records: Records) -> Chunk:
    return Chunk(kind, "ring", 0, records, 0)


stage_times = st.fixed_dictionaries({name: st.floats(0, 60) for name in STAGES})


@st.composite
def told_requests(draw: st.DrawFn) -> dict[str, int]:
    outcome = draw(st.sampled_from([each for each in Outcome if each not in (Outcome.INVALID, Outcome.CANCELLED)]))
    record: dict[str, Any] = request(NOON + draw(st.integers(-200, 200)) * MS, outcome, **draw(stage_times))
    record |= {
        "batch": draw(st.integers(0, 6)),
        "bytes_in": draw(st.integers(0, 1000)),
        "rows": draw(st.integers(0, 9)),
        "code": 13 if outcome is Outcome.FAILED else 0,
        "refusal": draw(st.sampled_from(list(Refusal))) if outcome is Outcome.REFUSED else 0,
    }
    if outcome is not Outcome.ANSWERED:
        # It may have ended anywhere: then the later stamps are missing.
        for stamp in ("scattered", "executed", "gathered", "taken", "queued")[: draw(st.integers(0, 5))]:
            record[stamp] = 0
    return record


@st.composite
def told_batches(draw: st.DrawFn) -> dict[str, int]:
    lasted = {name: draw(st.floats(0, 80)) for name in ("gather", "execute", "scatter")}
    fields = {"instance": draw(st.integers(0, 2)), "padding": draw(st.integers(0, 5)), "reason": draw(st.integers(0, 8))}
    return batch(NOON + draw(st.integers(-300, 300)) * MS, draw(st.integers(0, 6)), **lasted, **fields)


@settings(deadline=None)
@given(
    st.lists(st.lists(told_requests(), max_size=12), max_size=4),
    st.lists(told_batches(), max_size=12),
    st.dictionaries(st.sampled_from(list(STAGES)), st.integers(1, 3).map(lambda ms: ms * MS), max_size=6),
)
def test_the_burn_of_the_stages_adds_up_to_the_burn(
    folds: list[list[dict[str, int]]], ran: list[dict[str, int]], declared: dict[str, int]
) -> None:
    budgets = Budgets([objective(stages=declared)], lambda number: ("m", 1, "d"), 0)
    for told in folds:
        budgets.fold(requests(*told), batches(*ran))
    account = budgets.accounts["m-soon"]
    now = NOON + 10 * SECOND
    counts = account.history.counts(now, 100 * SECOND)
    by = dict(zip(CAUSES, counts[BAD + 1 :].tolist(), strict=True))
    assert counts[TOTAL] == sum(map(len, folds))
    assert sum(by[name] for name in CHARGES) == pytest.approx(counts[BAD])
    assert all(-1e-9 <= share <= counts[BAD] + 1e-9 for share in by.values())
    assert sum(by[name] for name in EXTERNALITIES) <= counts[BAD] + 1e-9
    burn = budgets.burns(now)["m-soon"]
    assert burn.slow == pytest.approx(counts[BAD] / counts[TOTAL] / 0.01 if counts[TOTAL] else 0), "all of it within 30 s"


def test_very_many_are_charged_as_some_of_them() -> None:
    budgets = Budgets([objective()], lambda number: ("m", 1, "d"), 0)
    told = [request(execute=50), request(queue=50)]
    budgets.fold(requests(*(told[n % 5 == 0] for n in range(20_000))), NONE)
    total = budgets.accounts["m-soon"].history.total
    by = dict(zip(CAUSES, total[BAD + 1 :].tolist(), strict=True))
    assert (total[TOTAL], total[BAD]) == (20_000, 20_000)
    assert by["execute"] + by["queue"] == pytest.approx(20_000)
    assert by["execute"] == pytest.approx(16_000, rel=0.1)


def test_stage_budgets_are_what_was_declared_and_the_shares_of_good_requests() -> None:
    learned = StageBudgets(objective(stages={"queue": 5 * MS}))
    assert learned.allowance.stages.tolist() == pytest.approx([3 * MS, 5 * MS, 3 * MS, 3 * MS, 3 * MS, 3 * MS])
    learned.learn(requests(*(request(receive=0.1, queue=9, gather=0.2, execute=1, scatter=0.1, send=0.1) for _ in range(100))))
    stages = dict(zip(STAGES, (learned.allowance.stages / MS).tolist(), strict=True))
    assert stages["queue"] == 5
    assert stages["execute"] == pytest.approx(15 * 1 / 1.5, rel=0.1)
    assert stages["gather"] == pytest.approx(15 * 0.2 / 1.5, rel=0.1)
    assert sum(stages.values()) == pytest.approx(20), "together they are the objective"
    assert dict(zip(STAGES, (learned.allowance.usual / MS).tolist(), strict=True))["queue"] == pytest.approx(9, rel=0.1)


def test_stage_budgets_follow_slowly() -> None:
    learned = StageBudgets(objective())
    for execute, rounds in ((1, 20), (10, 40)):
        for _ in range(rounds):
            learned.learn(requests(*(request(queue=1, execute=execute) for _ in range(1000))))
    stages = dict(zip(STAGES, (learned.allowance.stages / MS).tolist(), strict=True))
    assert stages["execute"] / stages["queue"] == pytest.approx(10, rel=0.25)
