"""The scheduler as a whole, on a clock of its own: what it promises for any load, and that foretelling is worth it."""

from __future__ import annotations

import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import pytest

from headrace.clock import MILLISECOND, SECOND
from headrace.ledger.records import Outcome
from headrace.model import Batching
from headrace.scheduling.admission import LEVEL_OFFSET, Limits
from headrace.scheduling.plan import Plan
from headrace.scheduling.simulate import Arrival, Report, model, simulate
from tests.scheduling.scenarios import SCENARIOS, Load

FEW, MANY = 5, 500
AT_A_TIME, BUDGET_SECONDS = 50, 480


class InOrder:
    """Sees to it that nobody is taken before somebody of his bucket who stands in front, unless that one is dropped."""

    def __call__(self, view: np.ndarray, plan: Plan, now: int) -> None:
        taken, dropped = set(plan.take), set(plan.drop)
        mates = [n for n, bucket in zip(view["number"].tolist(), view["bucket"].tolist(), strict=True) if bucket == plan.bucket]
        ahead = [n for n in mates if n not in dropped][: len(plan.take)]
        assert set(ahead) == taken or not plan.take, f"{plan} passes over somebody"


@dataclass(frozen=True)
class Compared:
    scenario: str
    seed: int
    plain: float
    ours: float


def run(load: Load, *, predicts: bool) -> Report:
    report = simulate(
        load.arrivals,
        load.spec(predicts=predicts),
        load.service(),
        instances=load.instances,
        learned=load.learned() if predicts else (),
        watch=InOrder(),
    )
    assert all(fate.outcome is not None for fate in report.fates), "somebody was not answered"
    assert report.recorded == sum(fate.outcome is not Outcome.REFUSED or fate.admitted for fate in report.fates)
    assert report.most_waiting <= Limits().requests
    return report


def compare(scenario: str, seed: int) -> Compared:
    load = SCENARIOS[scenario](seed)
    return Compared(scenario, seed, run(load, predicts=False).goodput, run(load, predicts=True).goodput)


def judge(found: list[Compared], bound: float) -> None:
    by_scenario: dict[str, list[Compared]] = defaultdict(list)
    for each in found:
        by_scenario[each.scenario].append(each)
    for scenario, seeds in by_scenario.items():
        worst = min(seeds, key=lambda each: each.ours / each.plain if each.plain else 1.0)
        ratio = sum(each.ours for each in seeds) / sum(each.plain for each in seeds)
        least = worst.ours / worst.plain
        print(f"{scenario}: {len(seeds)} seeds, goodput {ratio:.3f} of the plain plan's, worst {least:.3f} (seed {worst.seed})")
        assert ratio >= 1.0, scenario
        assert least >= bound, (scenario, worst.seed)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_is_lost_and_foretelling_is_worth_it(scenario: str) -> None:
    judge([compare(scenario, seed) for seed in range(FEW)], 0.95)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_for_many_loads(capsys: pytest.CaptureFixture[str]) -> None:
    """Of as many seeds as there is time for; on two cores of their own, that is all of them."""
    found: list[Compared] = []
    until = time.monotonic() + BUDGET_SECONDS
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for first in range(0, MANY, AT_A_TIME):
            asked = [(scenario, seed) for scenario in SCENARIOS for seed in range(first, min(first + AT_A_TIME, MANY))]
            found += pool.map(compare, *zip(*asked, strict=True), chunksize=5)
            if time.monotonic() > until:
                break
    with capsys.disabled():
        judge(found, 0.95)


def test_a_low_class_that_names_no_deadline_starts_within_the_ageing_bound() -> None:
    """Twice as much of the high class as can be done, for ever.

    The low one waits for what a level is worth, then for those of the high class who stood in front then, and runs.
    """
    service_ns, max_rows = 30 * SECOND, 4
    gap = service_ns // max_rows // 2
    batching = Batching(enabled=True, priority_levels=2, default_priority=1)
    patience = 5 * service_ns
    bound = LEVEL_OFFSET + patience + service_ns
    high = [Arrival(at, deadline_ns=patience, priority=1) for at in range(gap, bound + 20 * service_ns, gap)]
    low = Arrival(gap // 2, priority=2)
    warm = [Arrival(0, priority=1)] * max_rows
    report = simulate([*warm, low, *high], model(max_rows, batching), lambda length, rows, now: service_ns)
    fate = report.fates[max_rows]
    assert fate.outcome is Outcome.ANSWERED
    assert fate.taken - low.at <= bound
    assert fate.taken - low.at > 10 * service_ns, "the high class was there all the time"
    refused = sum(each.outcome is not Outcome.ANSWERED for each in report.fates)
    assert refused > len(high) // 3


def test_the_same_seed_gives_the_same_fates() -> None:
    first, second = (run(SCENARIOS["classes"](7), predicts=True) for _ in range(2))
    assert first.fates == second.fates


def test_batches_last_what_the_service_says() -> None:
    report = simulate(
        [Arrival(0), Arrival(1), Arrival(2)], model(8), lambda length, rows, now: 100 + 10 * rows, learned=[(1, 1, 110)] * 3
    )
    assert report.batches == [(0, 1), (110, 2)]
    assert [fate.taken for fate in report.fates] == [0, 110, 110]


def test_without_enough_to_do_nobody_is_refused() -> None:
    arrivals = [Arrival(at * 1000, deadline_ns=10 * SECOND) for at in range(200)]
    report = simulate(arrivals, model(8), lambda length, rows, now: 500)
    assert all(fate.is_good for fate in report.fates)


def test_no_more_instances_are_at_work_than_the_objective_asks_for() -> None:
    """Two instances, and one of them would do: where the model has an objective it does, and the work becomes less."""
    arrivals = [Arrival(at * 400_000) for at in range(2000)]

    def service(length: int, rows: int, now: int) -> int:
        return 1_000_000 + 50_000 * rows

    patient = Batching(enabled=True, objective_ns=50_000_000)
    hurried = Batching(enabled=True, objective_ns=3_000_000)
    works: dict[str, int] = {}
    for name, batching in (("patient", patient), ("hurried", hurried), ("none", Batching(enabled=True))):
        profile = [(1, rows, service(1, rows, 0)) for rows in (1, 2, 4, 8) for _ in range(3)]
        report = simulate(arrivals, model(32, batching), service, instances=2, learned=profile)
        works[name] = sum(service(1, rows, 0) for _, rows in report.batches)
        longest = max(fate.answered - fate.arrival.at for fate in report.fates)
        assert longest <= batching.objective_ns
    assert works["patient"] < 0.8 * works["none"]
    assert works["hurried"] == works["none"]


def test_a_queue_that_stands_refuses_who_names_no_deadline() -> None:
    """Twice as much as can be done, for ever, and nobody says until when: nobody waits for much longer than ten seconds."""
    service_ns, max_rows = SECOND // 2, 8
    arrivals = [Arrival(at * SECOND // 32) for at in range(32 * 200)]
    report = simulate(arrivals, model(max_rows), lambda length, rows, now: service_ns)
    waits = [fate.answered - fate.arrival.at for fate in report.fates if fate.outcome is Outcome.ANSWERED]
    assert max(waits) < 25 * SECOND
    assert max(waits[len(waits) // 2 :]) < 15 * SECOND
    assert all(fate.outcome in (Outcome.ANSWERED, Outcome.REFUSED) for fate in report.fates)
    assert sum(rows for _, rows in report.batches) >= 16 * 200, "an instance is never idle"


def test_who_comes_while_a_run_takes_far_too_long_is_done_after_it() -> None:
    """The first run lasts ten times as long, and whoever waits for it will be late: no reason to refuse who comes then."""
    service_ns, max_rows = 10 * MILLISECOND, 4
    lost = [Arrival(MILLISECOND, deadline_ns=8 * service_ns) for _ in range(6 * max_rows)]
    late_comers = [Arrival(55 * MILLISECOND, deadline_ns=75 * MILLISECOND) for _ in range(2 * max_rows)]
    report = simulate(
        [Arrival(0), *lost, *late_comers],
        model(max_rows),
        lambda length, rows, now: service_ns if now else 10 * service_ns,
        learned=[(1, rows, service_ns) for rows in range(1, max_rows + 1)],
    )
    fates = report.fates[1:]
    assert not any(fate.is_good for fate in fates[: len(lost)])
    assert all(fate.is_good for fate in fates[len(lost) :])
