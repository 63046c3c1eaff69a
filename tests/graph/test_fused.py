"""Graphs whose rows stay what they are: nodes back to back, as one model to clients."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToJson
from tritonclient.grpc import InferRequestedOutput
from tritonclient.utils import InferenceServerException

from headrace.backends.base import Batch
from headrace.backends.fake import Gate, Script
from headrace.engine.engine import ModelControl
from headrace.errors import BackendFailed, HeadraceError
from headrace.model import State
from headrace.models.graphs import Graph
from headrace.models.pbtxt import parse
from tests.graph.conftest import Home, Serve, statistics
from tests.transport.serving import Asked, tensor
from tests.waiting import until

ADD = """
max_batch_size: 8
inputs: {IN: "FP32[3]"}
outputs: {OUT: "FP32[3]"}
nodes:
  double: {model: double, inputs: {x: IN}, outputs: {y: t}}
  add: {run: "nodes.py:Add", with: {more: 1}, inputs: {x: t}, outputs: {y: OUT}}
"""
NODES = """
class Add(Node):
    inputs = {"x": "FP32[3]"}
    outputs = {"y": "FP32[3]"}

    def run(self, tensors):
        if (tensors["x"] < 0).any():
            raise ValueError("below zero")
        return {"y": tensors["x"] + np.float32(self.context.parameters["more"])}
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input { name: "IN" data_type: TYPE_FP32 dims: 3 }
output { name: "OUT" data_type: TYPE_FP32 dims: 3 }
ensemble_scheduling {
  step { model_name: "double" model_version: -1 input_map { key: "x" value: "IN" } output_map { key: "y" value: "t" } }
  step { model_name: "double" model_version: -1 input_map { key: "x" value: "t" } output_map { key: "y" value: "OUT" } }
}
"""
ROW = np.array([[1, 2, 3]], np.float32)


def double() -> Script:
    return Script(compute=lambda tensors: {"y": 2 * np.asarray(tensors["x"])}, replayable=True)


def change(home: Home, name: str) -> None:
    """Other weights: three times instead of twice."""
    (home.root / name / "1/weights").write_text("others")
    home.scripts[name].compute = lambda tensors: {"y": 3 * np.asarray(tensors["x"])}


@pytest.fixture
def added(home: Home) -> Home:
    home.model("double", double())
    home.graph("g", ADD, NODES)
    return home


def test_a_graph_is_a_model_to_clients(added: Home, serve: Serve) -> None:
    server = serve()
    assert (server.engine.infer("g", {"IN": ROW})["OUT"] == 2 * ROW + 1).all()
    metadata: Any = server.client.get_model_metadata("g")
    assert (metadata.platform, metadata.inputs[0].shape, metadata.outputs[0].datatype) == ("headrace_graph", [-1, 3], "FP32")
    config: Any = server.client.get_model_config("g")
    assert config.config.max_batch_size == 8


@pytest.mark.parametrize(("replayable", "ran"), [(True, [1, 2, 1, 1]), (False, [1, 2])])
def test_a_failed_batch_runs_again_only_where_all_nodes_may(home: Home, serve: Serve, replayable: bool, ran: list[int]) -> None:
    gate = Gate()
    script = double()
    script.replayable = replayable
    home.model("double", script)
    home.graph("g", ADD, NODES)
    server = serve()
    script.batches.clear()
    script.gate = gate

    def fail(batch: Batch) -> None:
        raise BackendFailed("it cannot")

    first = Asked(server, "g", [tensor("IN", ROW, "FP32")])
    gate.wait_for(1)
    script.fail = fail
    others = [Asked(server, "g", [tensor("IN", ROW, "FP32")]) for _ in range(2)]
    until(lambda: server.waiting("g") == 2)
    gate.open()
    for asked in (first, *others):
        with pytest.raises(InferenceServerException, match="it cannot"):
            asked.result()
    # The first was before the gate, and alone.
    assert script.batches == ran


def test_requests_share_the_batches_of_a_graph(added: Home, serve: Serve) -> None:
    server = serve()
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    assert (server.engine.infer("g", {"IN": rows})["OUT"] == 2 * rows + 1).all()
    assert added.scripts["double"].batches == [5]


def test_each_node_has_statistics_of_its_own(added: Home, serve: Serve) -> None:
    server = serve()
    server.engine.infer("g", {"IN": np.repeat(ROW, 4, axis=0)})
    server.wait_settled("g")
    stats = {each.name: each for each in statistics(server)}
    for name in ("g", "double"):
        assert (stats[name].inference_count, stats[name].execution_count) == (4, 1)
        assert stats[name].inference_stats.success.count == 1
        assert [each.batch_size for each in stats[name].batch_stats] == [4]
    assert stats["double"].inference_stats.queue.ns == 0


def test_one_row_that_a_node_cannot_stand_fails_its_request_only(added: Home, serve: Serve) -> None:
    server = serve()
    script = added.scripts["double"]
    script.gate = Gate()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(server.engine.infer, "g", {"IN": ROW})
        script.gate.wait_for(1)
        asked = [pool.submit(server.engine.infer, "g", {"IN": row}) for row in (ROW, -ROW, ROW)]
        until(lambda: server.waiting("g") == 3)
        script.gate.open()
        assert all((future.result()["OUT"] == 2 * ROW + 1).all() for future in (first, asked[0], asked[2]))
        with pytest.raises(HeadraceError, match="below zero"):
            asked[1].result()


def test_an_ensemble_of_triton_runs(home: Home, serve: Serve) -> None:
    home.model("double", double())
    home.config("e", ENSEMBLE)
    server = serve()
    assert (server.engine.infer("e", {"IN": ROW})["OUT"] == 4 * ROW).all()
    server.wait_settled("e")
    (stats,) = statistics(server, "double")
    assert (stats.inference_count, stats.execution_count) == (2, 2)


def test_a_graph_runs_a_graph(added: Home, serve: Serve) -> None:
    added.config("e", ENSEMBLE.replace('"double"', '"g"').replace('key: "x"', 'key: "IN"').replace('key: "y"', 'key: "OUT"'))
    server = serve()
    assert (server.engine.infer("e", {"IN": ROW})["OUT"] == 2 * (2 * ROW + 1) + 1).all()


def test_a_graph_that_contains_itself_is_not_loaded(added: Home, serve: Serve) -> None:
    loop = ENSEMBLE.replace('key: "x"', 'key: "IN"').replace('key: "y"', 'key: "OUT"')
    added.config("a", loop.replace('"double"', '"b"'))
    added.config("b", loop.replace('"double"', '"a"'))
    added.config("self", loop.replace('"double"', '"self"'))
    server = serve()
    reasons = {status.model: status.reason for status in server.engine.statuses() if status.state is not State.READY}
    assert set(reasons) == {"a", "b", "self"}
    assert "no graph can contain itself" in reasons["self"]
    assert any("no graph can contain itself" in reasons[name] for name in "ab")
    assert (server.engine.infer("g", {"IN": ROW})["OUT"] == 2 * ROW + 1).all()


def test_a_model_that_is_not_there_is_named(home: Home, serve: Serve) -> None:
    home.graph("g", ADD, NODES)
    server = serve()
    (status,) = server.engine.statuses()
    assert status.reason == (
        "graph 'g': node 'double' runs model 'double', which is not loaded: failed to load 'double', failed to poll from model "
        "repository"
    )


def test_loading_a_graph_loads_what_it_runs(added: Home, serve: Serve) -> None:
    server = serve(control=ModelControl("explicit"))
    server.client.load_model("g")
    assert (server.engine.infer("g", {"IN": ROW})["OUT"] == 2 * ROW + 1).all()
    assert server.client.is_model_ready("double")


def test_without_its_model_a_graph_is_not_ready_and_with_it_it_is_again(added: Home, serve: Serve) -> None:
    server = serve(control=ModelControl("explicit", ("g",)))
    server.client.unload_model("double")
    assert server.engine.routes.find("g") is None
    with pytest.raises(HeadraceError, match="has no available versions"):
        server.engine.infer("g", {"IN": ROW})
    (status,) = [status for status in server.engine.statuses() if status.model == "g"]
    assert "node 'double' runs model 'double', which is not loaded: load it first" in status.reason
    server.client.load_model("double")
    assert (server.engine.infer("g", {"IN": ROW})["OUT"] == 2 * ROW + 1).all()


def test_a_model_that_is_reloaded_is_so_for_its_graphs(added: Home, serve: Serve) -> None:
    server = serve(control=ModelControl("explicit", ("g",)))
    before = server.engine.routes.resolve("g").spec.digest
    change(added, "double")
    server.client.load_model("double")
    assert (server.engine.infer("g", {"IN": ROW})["OUT"] == 3 * ROW + 1).all()
    assert server.engine.routes.resolve("g").spec.digest != before


def test_a_graph_brought_up_anew_is_still_what_its_load_request_said(home: Home, serve: Serve) -> None:
    home.model("double", double())
    server = serve(control=ModelControl("explicit", ("double",)))
    override = parse(ENSEMBLE.replace("max_batch_size: 8", "max_batch_size: 4"), "e")
    server.client.load_model("e", config=MessageToJson(override), files={"file:1/kept": b""})
    change(home, "double")
    server.client.load_model("double")
    route = server.engine.routes.resolve("e")
    assert route.spec.max_batch_size == 4
    assert (server.engine.infer("e", {"IN": ROW})["OUT"] == 9 * ROW).all()


def test_a_graph_that_cannot_be_read_does_not_go_on_with_the_model_that_was(added: Home, serve: Serve) -> None:
    server = serve(control=ModelControl("explicit", ("g",)))
    added.graph("g", ADD.replace("nodes:", "nods:"), NODES)
    change(added, "double")
    server.client.load_model("double")
    (status,) = [status for status in server.engine.statuses() if status.model == "g"]
    assert status.state is State.UNAVAILABLE
    assert "'nods' is unknown" in status.reason
    added.graph("g", ADD, NODES)
    server.client.load_model("g")
    assert (server.engine.infer("g", {"IN": ROW})["OUT"] == 3 * ROW + 1).all()


def test_classes_of_a_graph_have_the_labels_of_the_model_that_gives_them(home: Home, serve: Serve) -> None:
    home.model("double", double())
    labelled = (home.root / "double/config.pbtxt").read_text().replace('name: "y"', 'name: "y" label_filename: "labels"')
    home.config("double", labelled)
    (home.root / "double/labels").write_text("one\ntwo\nthree\n")
    home.config("e", ENSEMBLE)
    asked = Asked(serve(), "e", [tensor("IN", ROW, "FP32")], outputs=[InferRequestedOutput("OUT", class_count=1)])
    assert asked.result().as_numpy("OUT").tolist() == [[b"12.000000:2:three"]]


def test_a_graph_can_be_written_in_python(home: Home, serve: Serve) -> None:
    home.model("double", double())
    graph = Graph.of(
        "twice",
        inputs={"IN": "FP32[3]"},
        outputs={"OUT": "FP32[3]"},
        nodes={
            "one": {"model": "double", "inputs": {"x": "IN"}, "outputs": {"y": "t"}},
            "two": {"model": "double", "inputs": {"x": "t"}, "outputs": {"y": "OUT"}},
        },
        max_batch_size=4,
    )
    server = serve(graphs=(graph,))
    assert (server.engine.infer("twice", {"IN": ROW})["OUT"] == 4 * ROW).all()


def test_a_graph_that_comes_to_contain_itself_is_refused(added: Home, serve: Serve) -> None:
    whole = ENSEMBLE.replace('key: "x"', 'key: "IN"').replace('key: "y"', 'key: "OUT"')
    added.config("e", whole.replace('"double"', '"g"'))
    server = serve(control=ModelControl("explicit", ("e",)))
    added.graph(
        "g",
        ADD.replace("model: double, inputs: {x: IN}, outputs: {y: t}", "model: e, inputs: {IN: IN}, outputs: {OUT: t}"),
        NODES,
    )
    with pytest.raises(HeadraceError, match="no graph can contain itself"):
        server.engine.load("g")
    added.graph("g", ADD, NODES)
    server.engine.load("g")
    assert (server.engine.infer("e", {"IN": ROW})["OUT"] == 2 * (2 * ROW + 1) + 1).all()


def test_rows_that_a_model_cannot_take_are_the_clients_fault(home: Home, serve: Serve) -> None:
    home.model("double", double())
    home.config("e", ENSEMBLE.replace("max_batch_size: 8", "max_batch_size: 0").replace("dims: 3", "dims: [ -1, 3 ]"))
    server = serve()
    assert (server.engine.infer("e", {"IN": ROW})["OUT"] == 4 * ROW).all()
    with pytest.raises(HeadraceError, match="its inputs have 9 rows; model 'double' takes up to 8, alike"):
        server.engine.infer("e", {"IN": np.repeat(ROW, 9, axis=0)})
