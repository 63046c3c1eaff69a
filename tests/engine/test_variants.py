"""A cheaper variant takes batches of its model, is checked when the model loads, and is accounted for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from headrace import Engine
from headrace.backends.fake import FakeBackend, Script
from headrace.engine.engine import ModelControl
from headrace.engine.observed import metrics_of
from headrace.errors import LoadFailed
from headrace.model import State
from headrace.scheduling.admission import SHARE_OF
from headrace.scheduling.steering import Steering
from tests.engine.conftest import CONFIG, Store
from tests.telemetry.test_traces import NODES

ROW = np.ones((1, 2), np.float32)
VARIANT = 'parameters {{ key: "variant" value {{ string_value: "{}" }} }}'


def scripts() -> dict[str, Script]:
    return {
        "m": Script(compute=lambda inputs: {"y": inputs["x"]}),
        "cheap": Script(compute=lambda inputs: {"y": -np.asarray(inputs["x"])}),
    }


def engine_on(store: Store, *load: str) -> Engine:
    control = ModelControl("explicit", load or ("m",))
    engine = Engine(store.root, backends={"fake": FakeBackend(scripts())}, control=control)
    engine.start()
    return engine


@pytest.fixture
def engine(store: Store) -> Iterator[Engine]:
    store.add("cheap")
    store.add("m", more=VARIANT.format("cheap"))
    with engine_on(store) as engine:
        yield engine


def steer(engine: Engine, share: float) -> None:
    engine.catalog._find("m", 0).forecast.steer(Steering(variant=round(share * SHARE_OF)))  # type: ignore[union-attr]


def signs(engine: Engine, count: int) -> list[int]:
    return [int(np.sign(engine.infer("m", {"x": ROW})["y"][0, 0])) for _ in range(count)]


def test_the_variant_runs_as_many_batches_as_it_is_told_to(engine: Engine) -> None:
    assert signs(engine, 4) == [1, 1, 1, 1]
    steer(engine, 1.0)
    assert signs(engine, 4) == [-1, -1, -1, -1]
    steer(engine, 0.25)
    assert sum(sign < 0 for sign in signs(engine, 16)) == 4
    steer(engine, 0.0)
    assert signs(engine, 4) == [1, 1, 1, 1]


def test_it_is_brought_in_with_the_model(engine: Engine) -> None:
    assert {(status.model, status.state) for status in engine.statuses()} == {("m", State.READY), ("cheap", State.READY)}
    assert engine.routes.resolve("m").config.parameters["variant"].string_value == "cheap"


def test_what_it_ran_is_in_the_ledger_and_in_the_metrics(engine: Engine) -> None:
    steer(engine, 1.0)
    signs(engine, 3)
    page = metrics_of(engine).render()[0].decode()
    assert 'headrace_variant_batches_total{model="m",variant="cheap",version="1"} 3.0' in page
    assert 'headrace_requests_total{model="m",outcome="answered",version="1"} 3.0' in page
    assert 'headrace_requests_total{model="cheap",outcome="answered",version="1"} 0.0' in page


def test_the_door_reckons_with_what_is_to_run(engine: Engine) -> None:
    running = engine.catalog._find("m", 0)
    assert running is not None
    own, variant = running.forecast.learned, running.opened.variant
    assert own is not None
    assert variant is not None
    for rows in (1, 2, 4, 8):
        for _ in range(3):
            running.forecast.ran(7, rows, 10_000_000)
            running.forecast.ran(7, rows, 2_000_000, on_variant=True)
    assert running.forecast._told[7].base_ns == pytest.approx(10_000_000, rel=0.1)
    steer(engine, 0.5)
    assert running.forecast._told[7].base_ns == pytest.approx(6_000_000, rel=0.1)
    steer(engine, 1.0)
    assert running.forecast._told[7].base_ns == pytest.approx(2_000_000, rel=0.1)


def test_a_variant_that_is_loaded_anew_takes_the_place_of_the_old_one(store: Store, engine: Engine) -> None:
    steer(engine, 1.0)
    store.add("cheap", content="other weights")
    engine.load("cheap")
    steer(engine, 1.0)
    assert signs(engine, 2) == [-1, -1]
    running = engine.catalog._find("m", 0)
    assert running is not None
    assert running.opened.variant is not None
    assert running.opened.variant.lent.running is engine.catalog._find("cheap", 0)


def test_a_model_outlives_its_variant(engine: Engine) -> None:
    steer(engine, 1.0)
    engine.unload("cheap")
    assert signs(engine, 2) == [-1, -1], "it was lent"
    (status,) = (status for status in engine.statuses() if status.model == "m")
    assert status.state is State.READY
    assert "as its variant it runs model 'cheap', which is not loaded: load it first" in status.reason


OTHER_SHAPE = CONFIG.replace("dims: [ -1 ] }} ]\noutput", "dims: [ 3 ] }} ]\noutput")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (OTHER_SHAPE.format(more=""), r"input 'x' is FP32\[-1\] here, and FP32\[3\] there"),
        (CONFIG.replace('"y"', '"z"').format(more=""), r"output 'y' is FP32\[-1\] here, and not there there"),
        (CONFIG.replace("size: 8", "size: 4").format(more=""), "max_batch_size is 8 here, and 4 there"),
        (CONFIG.format(more="model_transaction_policy { decoupled: true }"), "it does not answer each request once"),
    ],
)
def test_what_is_no_variant_is_told_at_load(store: Store, config: str, why: str) -> None:
    store.add("cheap", config=config)
    store.add("m", more=VARIANT.format("cheap"))
    with engine_on(store, "cheap") as engine, pytest.raises(LoadFailed, match=why):
        engine.load("m")


def test_a_variant_that_is_not_there_is_told_at_load(store: Store) -> None:
    store.add("m", more=VARIANT.format("cheap"))
    store.add("other")
    with engine_on(store, "other") as engine, pytest.raises(LoadFailed, match="as its variant it runs model 'cheap'"):
        engine.load("m")


def test_no_model_is_its_own_variant(store: Store) -> None:
    store.add("a", more=VARIANT.format("b"))
    store.add("b", more=VARIANT.format("a"))
    store.add("c", more=VARIANT.format("c"))
    store.add("other")
    with engine_on(store, "other") as engine:
        with pytest.raises(LoadFailed, match="as its variant it runs model 'b', which is not loaded"):
            engine.load("a")
        with pytest.raises(LoadFailed, match="contain itself"):
            engine.load("c")


def test_a_decoupled_model_has_no_variant(store: Store) -> None:
    store.add("cheap")
    store.add("m", more=VARIANT.format("cheap") + "model_transaction_policy { decoupled: true }")
    with engine_on(store, "cheap") as engine, pytest.raises(LoadFailed, match="answers a request several times; leave it out"):
        engine.load("m")


GRAPH = """
max_batch_size: 8
inputs: {{X: "FP32[2]"}}
outputs: {{Y: "FP32[-1]"}}
parameters: {{variant: {variant}}}
nodes:
  run: {{model: {model}, inputs: {{x: X}}, outputs: {{y: Y}}}}
"""


def add_graph(store: Store, name: str, model: str, variant: str) -> None:
    (store.root / name).mkdir()
    (store.root / name / "graph.yaml").write_text(GRAPH.format(model=model, variant=variant))


def test_a_graph_goes_to_another_graph(store: Store) -> None:
    for name in ("m", "cheap"):
        store.add(name)
    add_graph(store, "g", "m", "short")
    add_graph(store, "short", "cheap", "''")
    with engine_on(store, "g") as engine:
        running = engine.catalog._find("g", 0)
        assert running is not None

        def sign() -> float:
            return float(np.sign(engine.infer("g", {"X": ROW})["Y"][0, 0]))

        assert sign() == 1
        running.forecast.steer(Steering(variant=SHARE_OF))
        assert sign() == -1
        page = metrics_of(engine).render()[0].decode()
        assert 'headrace_variant_batches_total{model="g",variant="short",version="1"} 1.0' in page
        store.add("cheap", content="other weights")
        engine.load("cheap")
        assert engine.catalog._find("g", 0) is not running, "what it runs was loaded anew"


def test_a_graph_whose_rows_go_on_has_no_variant(store: Store) -> None:
    for name in ("m", "cheap"):
        store.add(name)
    add_graph(store, "g", "m", "cheap")
    file = store.root / "g" / "graph.yaml"
    text = file.read_text()
    for old, new in (("{x: X}", "{x: part}"), ('"FP32[2]"', '"FP32[1]"'), ('"FP32[-1]"', '"FP32[-1,-1]"')):
        text = text.replace(old, new)
    file.write_text(text + '  split: {run: "nodes.py:Split", inputs: {number: X}, outputs: {part: part}}\n')
    (store.root / "g" / "nodes.py").write_text(NODES)
    with engine_on(store, "m", "cheap") as engine, pytest.raises(LoadFailed, match="a graph whose rows go on from one queue"):
        engine.load("g")
