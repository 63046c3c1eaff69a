"""The slow loop in an engine whose clock the test moves: a batch lasts as long as the model moves it on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import Engine
from headrace.backends.fake import FakeBackend, Script
from headrace.budgets.controller import Levers, Move, Seen, State, decide
from headrace.budgets.decisions import Decisions, in_words
from headrace.budgets.slo import Objective
from headrace.clock import MILLISECOND, SECOND, VirtualClock
from headrace.scheduling.steering import Steering
from tests.engine.conftest import Store
from tests.waiting import until

ROW = np.ones((1, 2), np.float32)
SOON, LATER = Objective("soon", "m", 50 * MILLISECOND, 0.9), Objective("later", "m", 10 * SECOND, 0.9)


class Pace:
    """A model each of whose batches lasts `ns`."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock, self.ns = clock, MILLISECOND

    def __call__(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        self.clock.advance(self.ns)
        return {"y": inputs["x"]}


@pytest.fixture
def pace() -> Pace:
    return Pace(VirtualClock())


@pytest.fixture
def engine(tmp_path: Path, pace: Pace) -> Iterator[Engine]:
    store = Store(tmp_path)
    store.add("m")
    store.add("other")
    backend = FakeBackend({"m": Script(compute=pace)})
    with Engine(tmp_path, backends={"fake": backend}, clock=pace.clock, objectives=[SOON, LATER]) as engine:
        yield engine


def ask(engine: Engine, pace: Pace, ns: int, seconds: int) -> None:
    """One request after the other for so long, each of which lasts `ns`. The loop has made a step in every second of it."""
    pace.ns = ns
    end = pace.clock.now() + seconds * SECOND
    while pace.clock.now() < end:
        second = pace.clock.now() // SECOND
        engine.infer("m", {"x": ROW})
        if pace.clock.now() // SECOND > second:
            until(lambda: engine.steering._states.get(("m", 1), State()).stepped_at // SECOND >= pace.clock.now() // SECOND)


def steering(engine: Engine, model: str = "m") -> Steering:
    (running,) = (each for each in engine.catalog.running() if each.opened.spec.name == model)
    return running.forecast.steering


def test_late_requests_make_it_careful_and_an_objective_that_is_met_does_not_matter(engine: Engine, pace: Pace) -> None:
    ask(engine, pace, 40 * MILLISECOND, 2)
    assert steering(engine) == Steering()
    ask(engine, pace, 60 * MILLISECOND, 3)
    assert steering(engine).quantile > 0.75
    assert steering(engine).margin_ns > 0
    assert steering(engine).patience < 1
    assert steering(engine, "other") == Steering(), "nobody has an objective for it"
    first = next(told for told in engine.steering.decisions.latest() if told["move"] == "takes")
    assert first["objective"] == "soon"


def test_a_version_that_takes_the_place_of_another_goes_on_where_that_was(engine: Engine, pace: Pace) -> None:
    ask(engine, pace, 60 * MILLISECOND, 4)
    before = steering(engine)
    assert before != Steering()
    (engine.repository.roots[0] / "m" / "1" / "weights").write_text("others")  # type: ignore[attr-defined]
    engine.load("m")
    until(lambda: len([each for each in engine.catalog.running() if each.opened.spec.name == "m"]) == 1)
    ask(engine, pace, 40 * MILLISECOND, 2)
    assert steering(engine) == before


def test_the_target_of_requests_is_the_strictest_objective(engine: Engine) -> None:
    (running,) = (each for each in engine.catalog.running() if each.opened.spec.name == "m")
    assert running.opened.spec.batching.objective_ns == 50 * MILLISECOND
    assert running.opened.config.parameters["objective_ms"].string_value == "50"


def test_what_a_model_says_itself_counts_more_than_an_objective(tmp_path: Path) -> None:
    Store(tmp_path).add("m", more='parameters { key: "objective_ms" value { string_value: "20" } }')
    with Engine(tmp_path, backends={"fake": FakeBackend()}, objectives=[SOON]) as engine:
        assert engine.routes.resolve("m").spec.batching.objective_ns == 20 * MILLISECOND


SEEN = Seen(10.7, 3.1, 0.96, 903, 93, 12, 0.01, 20 * MILLISECOND, has_variant=True)


def test_a_decision_in_words() -> None:
    decisions = Decisions()
    made = decide(State(Levers(variant=0.2), stepped_at=SECOND), SEEN, 2 * SECOND)
    assert decisions.add(("mid", 1), "soon", made, 0.0)
    (told,) = decisions.latest()
    line = in_words(told)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d mid/1 takes: the budget burns: more goes to the variant\. "
        r"Of 903 requests of the last second 93 were bad, 12 of them refused; "
        r"'soon' burns 10\.7 times as fast as it may \(5 s\), 3\.1 times \(30 s\), 96% of its budget is left\. "
        r"caution 0% → 8%, batches on the variant 20% → 24%",
        line,
    ), line
    assert told["seen"]["fast"] == 10.7
    assert told["steering"]["variant"] == made.steering.variant


def test_what_says_nothing_new_is_counted_and_not_remembered() -> None:
    decisions, calm = Decisions(), Seen(0, 0, 1, 10, 0, 0, 0.01, SECOND)
    state = State(stepped_at=SECOND)
    for second in range(2, 8):
        made = decide(state, calm, second * SECOND)
        state = made.state
        assert decisions.add(("m", 1), "soon", made, float(second)) is (second == 2)
    assert len(decisions.latest()) == decisions.count == 1
    known = decisions.steering(("m", 1))
    assert known is not None
    assert known[1] == {Move.NONE: 6}
    assert decisions.steering(("m", 2)) is None


def test_what_is_remembered_is_bounded() -> None:
    decisions = Decisions()
    made = decide(State(stepped_at=SECOND), SEEN, 2 * SECOND)
    for second in range(1000):
        decisions.add(("m", 1), "soon", made, float(second))
    assert len(decisions.latest()) == 256
    assert decisions.latest()[-1]["wall"] == 999
