"""Which models an engine holds when it is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import Engine
from headrace.cluster.holding import hold
from headrace.engine.engine import ModelControl
from headrace.model import State
from tests.build_models import add_model, mlp

VARIED = 'parameters { key: "variant" value { string_value: "b" } }'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        add_model(tmp_path, name, mlp())
    return tmp_path


@pytest.fixture
def engine(repository: Path) -> Iterator[Engine]:
    with Engine(repository, control=ModelControl("explicit"), strict_readiness=False) as engine:
        yield engine


def ready(engine: Engine) -> set[str]:
    return {status.model for status in engine.statuses() if status.state is State.READY}


def test_what_is_wanted_is_loaded_and_the_rest_unloaded(engine: Engine) -> None:
    assert hold(engine, ["a", "b"]) == []
    assert ready(engine) == {"a", "b"}
    assert hold(engine, ["b", "c"]) == []
    assert ready(engine) == {"b", "c"}
    assert hold(engine, ["*"]) == []
    assert ready(engine) == {"a", "b", "c"}


def test_what_has_not_changed_goes_on_as_it_is(engine: Engine, repository: Path) -> None:
    hold(engine, ["*"])
    before = {running.route.spec.name: running for running in engine.catalog.running()}
    add_model(repository, "a", mlp(width=16))
    hold(engine, ["*"])
    after = {running.route.spec.name: running for running in engine.catalog.running() if not running.is_leaving}
    assert {name for name in after if after[name] is not before[name]} == {"a"}


def test_what_does_not_load_is_told_and_takes_nothing_away(engine: Engine, repository: Path) -> None:
    hold(engine, ["*"])
    (repository / "a/1/model.onnx").write_bytes(b"no model")
    (repository / "broken/1").mkdir(parents=True)
    (repository / "broken/1/model.onnx").write_bytes(b"no model")
    problems = hold(engine, ["*", "missing"])
    assert len(problems) == 2
    assert all("version 1 is at UNAVAILABLE state" in problem for problem in problems)
    assert hold(engine, ["a", "b", "missing"])[1] == "failed to load 'missing', failed to poll from model repository"
    assert ready(engine) == {"a", "b"}


def test_what_a_held_model_runs_stays(engine: Engine, repository: Path) -> None:
    (repository / "a/config.pbtxt").write_text(VARIED)
    assert hold(engine, ["a"]) == []
    assert ready(engine) == {"a", "b"}
    assert hold(engine, ["a"]) == []
    assert ready(engine) == {"a", "b"}
