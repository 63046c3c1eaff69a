"""What goes there and comes back: every kind of tensor, over the network and in shared memory, alone and in batches."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.transport.serving import Asked, Server
from tests.triton.far import Triton
from tests.triton.here import Here, named_memory, rows, session_of
from tests.triton.proxy import Proxy
from tests.waiting import until

WIDTH = 65536


def given(name: str, array: np.ndarray[Any, Any], datatype: str) -> triton.InferInput:
    return triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)


def direct(far: Triton, model: str, inputs: list[triton.InferInput]) -> Any:
    with far.client() as client:
        return client.infer(model, inputs)


KINDS = [
    given("bool", np.array([[True, False], [False, False]]), "BOOL"),
    given("fp16", np.arange(6, dtype=np.float16).reshape(2, 3), "FP16"),
    given("int64", np.array([[[1, -2]], [[2**40, 0]]]), "INT64"),
    given("uint8", np.array([[0], [255]], np.uint8), "UINT8"),
]
TEXT = [given("x", np.array([[b"abc", b""], ["ä".encode(), b"\0\xff z"]], np.object_), "BYTES")]


@pytest.mark.parametrize(("model", "inputs", "outputs"), [("kinds", KINDS, "bool_ fp16_ int64_ uint8_"), ("text", TEXT, "y")])
def test_answers_are_those_of_the_model_there(
    here: Here, far: Triton, transport: str, model: str, inputs: list[triton.InferInput], outputs: str
) -> None:
    here.add(model, far.url)
    server = here.serve(transport)
    answer, expected = server.client.infer(model, inputs), direct(far, model, inputs)
    assert answer is not None
    for name in outputs.split():
        mine, theirs = answer.as_numpy(name), expected.as_numpy(name)
        assert mine is not None
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs), name


def test_a_model_without_rows(here: Here, far: Triton, transport: str) -> None:
    here.add("sum", far.url, model="alone")
    server = here.serve(transport)
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    answer = server.client.infer("sum", [given("x", x, "FP32")])
    assert answer is not None
    assert np.array_equal(answer.as_numpy("y"), x.sum(axis=0))  # type: ignore[arg-type]


def test_what_is_not_said_is_that_of_the_model_there(here: Here, far: Triton, transport: str) -> None:
    here.add("doubles", far.url)
    here.add("fewer", far.url, config="max_batch_size: 2", model="doubles", version=1)
    server = here.serve(transport)
    config: Any = server.client.get_model_config("doubles")
    assert config.config.max_batch_size == 16
    assert config.config.HasField("dynamic_batching")
    assert [(each.name, list(each.dims)) for each in config.config.input] == [("x", [4])]
    config = server.client.get_model_config("fewer")
    assert config.config.max_batch_size == 2


def test_requests_share_a_batch_and_each_gets_its_own(here: Here, far: Triton, proxy: Proxy, transport: str) -> None:
    here.add("doubles", proxy.url)
    server = here.serve(transport)
    others = behind_one(server, far, proxy, [rows(*range(10 * n, 10 * n + n)) for n in (1, 2, 3, 4)])
    for n, asked in enumerate(others, 1):
        assert np.array_equal(asked.result().as_numpy("y"), 2 * rows(*range(10 * n, 10 * n + n)))  # type: ignore[operator]
    assert len(json.loads(far.runs("doubles")[-1])) == 10


def behind_one(server: Server, far: Triton, proxy: Proxy, arrays: list[np.ndarray[Any, Any]]) -> list[Asked]:
    """Requests that came while another one was under way, so that they share a batch; it has been let go."""
    proxy.hold()
    first = Asked(server, "doubles", [given("x", rows(-1), "FP32")])
    until(lambda: -1 in far.rows())
    others = [Asked(server, "doubles", [given("x", array, "FP32")]) for array in arrays]
    until(lambda: server.waiting("doubles") == len(arrays))
    proxy.let()
    first.result()
    return others


@pytest.mark.parametrize("sharing", ["auto", "off"])
def test_large_tensors_in_shared_memory_and_without(here: Here, far: Triton, transport: str, sharing: str) -> None:
    here.add("wide", far.url, shared_memory=sharing)
    server = here.serve(transport)
    random = np.random.default_rng(0)
    for count in (1, 4, 2):
        x = random.standard_normal((count, WIDTH), np.float32)
        answer: Any = server.client.infer("wide", [given("x", x, "FP32")])
        assert np.array_equal(answer.as_numpy("y"), x + 1)
        assert np.array_equal(answer.as_numpy("open"), x[:, ::2])
    client = session_of(server.engine, "wide")._client

    def nothing_is_outgrown() -> bool:
        """That Triton refuses to forget what a request still uses, and is told again."""
        client.forget_abandoned()
        return not client._abandoned

    until(nothing_is_outgrown)
    assert len(far.regions()) == (1 if sharing == "auto" else 0)
    # Nobody can find them by name any more, so that they go with the last who maps them.
    assert named_memory() == set()
    here.stack.close()
    assert far.regions() == []


def test_several_instances_have_each_their_own_line(here: Here, far: Triton, transport: str) -> None:
    three = "instance_group { count: 3 kind: KIND_CPU }"
    here.add("doubles", far.url, config=three)
    here.add("wide", far.url, config=f"max_batch_size: 1\n{three}")
    server = here.serve(transport)
    far.forget_runs()
    small = [Asked(server, "doubles", [given("x", rows(n), "FP32")]) for n in range(200)]
    large = [Asked(server, "wide", [given("x", np.full((1, WIDTH), n, np.float32), "FP32")]) for n in range(30)]
    assert [float(asked.result().as_numpy("y")[0, 0]) for asked in small] == [2 * n for n in range(200)]  # type: ignore[index]
    for n, asked in enumerate(large):
        assert (asked.result().as_numpy("y") == n + 1).all()  # type: ignore[union-attr]
    assert sorted(far.rows()) == list(range(200))
    assert 1 <= len(far.regions()) <= 3


def test_small_tensors_stay_out_of_shared_memory(here: Here, far: Triton) -> None:
    here.add("doubles", far.url)
    assert np.array_equal(here.engine().infer("doubles", {"x": rows(1)})["y"], 2 * rows(1))
    assert far.regions() == []


def test_answers_keep_their_memory(here: Here, far: Triton) -> None:
    here.add("wide", far.url)
    engine = here.engine()
    answers = [engine.infer("wide", {"x": np.full((1, WIDTH), n, np.float32)})["y"] for n in range(5)]
    assert all((answer == n + 1).all() for n, answer in enumerate(answers))


def test_a_server_that_forgets_the_memory_gets_other(here: Here, far: Triton) -> None:
    here.add("wide", far.url)
    engine = here.engine()
    x = np.ones((1, WIDTH), np.float32)
    engine.infer("wide", {"x": x})
    with far.client() as client:
        client.unregister_system_shared_memory()
    assert (engine.infer("wide", {"x": x})["y"] == 2).all()
    far.kill()
    far.start("wide")
    until(lambda: session_of(engine, "wide").is_healthy)
    assert (engine.infer("wide", {"x": x}, timeout=60)["y"] == 2).all()
    assert len(far.regions()) == 1
    assert named_memory() == set()


def test_more_rows_than_it_takes_run_in_slices(here: Here, far: Triton, transport: str) -> None:
    here.add("doubles", far.url, split_oversize="true")
    server = here.serve(transport)
    x = rows(*range(40))
    answer: Any = server.client.infer("doubles", [given("x", x, "FP32")])
    assert np.array_equal(answer.as_numpy("y"), 2 * x)
    assert far.rows()[-40:] == list(range(40))


def test_a_node_of_a_graph(here: Here, far: Triton, transport: str) -> None:
    here.add("doubles", far.url)
    (here.repository / "four").mkdir()
    (here.repository / "four/graph.yaml").write_text(
        """
max_batch_size: 16
inputs: {x: "FP32[4]"}
outputs: {z: "FP32[4]"}
nodes:
  first: {model: doubles, inputs: {x: x}, outputs: {y: y}}
  second: {model: doubles, inputs: {x: y}, outputs: {y: z}}
"""
    )
    server = here.serve(transport)
    answer: Any = server.client.infer("four", [given("x", rows(1, 2), "FP32")])
    assert np.array_equal(answer.as_numpy("z"), 4 * rows(1, 2))


def test_from_this_process(here: Here, far: Triton) -> None:
    here.add("text", far.url)
    answer = here.engine().infer("text", {"x": [["a", "b"]]})["y"]
    assert answer.tolist() == [[b"A", b"B"]]


def test_statistics_tell_what_is_counted_there(here: Here, far: Triton, transport: str) -> None:
    here.add("doubles", far.url)
    server = here.serve(transport)
    for _ in range(3):
        server.client.infer("doubles", [given("x", np.ones((2, 4), np.float32), "FP32")])
    server.wait_settled("doubles")
    told: Any = server.client.get_inference_statistics("doubles")
    mine, theirs = told.model_stats
    assert (mine.name, mine.inference_count) == ("doubles", 6)
    assert theirs.name == f"doubles@{far.url}"
    assert theirs.inference_count >= 6
    assert theirs.inference_stats.compute_infer.ns > 0
    told = server.client.get_inference_statistics()
    assert [each.name for each in told.model_stats] == ["doubles"]
    far.kill()
    told = server.client.get_inference_statistics("doubles")
    assert [each.name for each in told.model_stats] == ["doubles"]
