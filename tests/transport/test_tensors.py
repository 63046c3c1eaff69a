"""Values in, values out, bit by bit: every datatype, every form of contents, against plain ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2 as pb

from tests.build_models import DATATYPES, add_model, scalar, sums, twice
from tests.oracle import DTYPES, bits, plain, plain_bfloat16, sample
from tests.transport.serving import PATIENCE, Server, fails, message, serving

SHAPES = [(3, 5), (1, 1), (2, 0), (0, 3), (0, 0)]
TYPED = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of the models that are served."""
    repository = tmp_path_factory.mktemp("repository")
    models = {"sums": sums()}
    for datatype in DATATYPES:
        models |= {f"twice_{datatype}": twice(datatype), f"scalar_{datatype}": scalar(datatype)}
    return {name: add_model(repository, name, model) for name, model in models.items()}


@pytest.fixture(scope="module")
def server(transport: str, paths: dict[str, Path]) -> Iterator[Server]:
    with serving(transport, paths["sums"].parents[2]) as started:
        yield started


def given(name: str, datatype: str, array: Any) -> triton.InferInput:
    """An input for tritonclient, raw. It takes text as bytes only."""
    if datatype == "BYTES":
        array = np.array([e.encode() for e in array.reshape(-1)] + [None], np.object_)[:-1].reshape(array.shape)
    return triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)


def expected(paths: dict[str, Path], datatype: str, x: Any) -> dict[str, Any]:
    path = paths[f"twice_{datatype}"]
    if datatype == "BF16":
        return plain_bfloat16(path, x, {"same": x.shape, "twice": (x.shape[0], 2 * x.shape[1])})
    return plain(path, {"x": x})


def assert_equal(result: triton.InferResult, wanted: dict[str, Any]) -> None:
    response = result.get_response()
    assert [output.name for output in response.outputs] == list(wanted)
    assert len(response.raw_output_contents) == len(wanted)
    assert {name: bits(result.as_numpy(name)) for name in wanted} == {name: bits(array) for name, array in wanted.items()}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("datatype", DATATYPES)
def test_raw(server: Server, paths: dict[str, Path], datatype: str, shape: tuple[int, ...]) -> None:
    x = sample(datatype, shape)
    result = server.client.infer(f"twice_{datatype}", [given("x", datatype, x)])
    assert_equal(result, expected(paths, datatype, x))
    assert [output.datatype for output in result.get_response().outputs] == [datatype, datatype]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("datatype", TYPED)
def test_typed(server: Server, paths: dict[str, Path], datatype: str, shape: tuple[int, ...]) -> None:
    x = sample(datatype, shape)
    if datatype == "FP32":
        x = np.nan_to_num(x)  # NaNs do not keep their bits on the way through Python's floats
    values = [e.encode() for e in x.reshape(-1)] if datatype == "BYTES" else x.reshape(-1).tolist()
    request = message(f"twice_{datatype}", [("x", datatype, shape)])
    request.inputs[0].contents.CopyFrom(pb.InferTensorContents(**{TYPED[datatype]: values}))
    assert_equal(triton.InferResult(server.stub.ModelInfer(request)), expected(paths, datatype, x))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_compressed(server: Server, paths: dict[str, Path], datatype: str, algorithm: str) -> None:
    x = np.tile(sample(datatype, (4, 7)), (1, 400))
    result = server.client.infer(f"twice_{datatype}", [given("x", datatype, x)], compression_algorithm=algorithm)
    assert_equal(result, expected(paths, datatype, x))


def test_typed_integers_are_narrowed_as_triton_does(server: Server) -> None:
    request = message("twice_INT8", [("x", "INT8", (1, 3))])
    request.inputs[0].contents.int_contents.extend([257, -129, 511])
    answer = triton.InferResult(server.stub.ModelInfer(request))
    assert answer.as_numpy("same").tolist() == [[1, 127, -1]]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_scalars(server: Server, datatype: str) -> None:
    """The protocol has no rank 0 for models that do not batch: what the model sees as a scalar is [1] outside."""
    x = sample(datatype, (1,), seed=2)
    result = server.client.infer(f"scalar_{datatype}", [given("x", datatype, x)])
    assert_equal(result, {"same": x, "rank": np.int64([0])})


@pytest.mark.parametrize("width", [1, 3, 64])
def test_dimensions_that_vary_and_inputs_in_any_order(server: Server, paths: dict[str, Path], width: int) -> None:
    a, b = (np.random.default_rng(seed).standard_normal((2, width), np.float32) for seed in (1, 2))
    result = server.client.infer("sums", [given("b", "FP32", b), given("a", "FP32", a)])
    assert_equal(result, plain(paths["sums"], {"a": a, "b": b}))


def test_raw_and_shape_only_inputs_are_matched_by_order(server: Server) -> None:
    """An empty input has an entry of its own; it must not take its neighbour's."""
    empty = np.zeros((0, 3), np.float32)
    answer = server.stub.ModelInfer(message("sums", [("a", "FP32", (0, 3)), ("b", "FP32", (0, 3))], [empty.tobytes()] * 2))
    assert [list(output.shape) for output in answer.outputs] == [[0, 3], [0, 3]]
    assert list(answer.raw_output_contents) == [b"", b""]


@pytest.mark.parametrize("names", [["difference"], ["sum"], ["difference", "sum"], ["sum", "difference"], []], ids=str)
def test_outputs_come_as_they_were_asked_for(server: Server, paths: dict[str, Path], names: list[str]) -> None:
    a, b = np.float32([[3, 5]]), np.float32([[1, 2]])
    asked = [triton.InferRequestedOutput(name) for name in names]
    result = server.client.infer("sums", [given("a", "FP32", a), given("b", "FP32", b)], outputs=asked)
    everything = plain(paths["sums"], {"a": a, "b": b})
    assert_equal(result, {name: everything[name] for name in names or everything})


@pytest.mark.parametrize(("asked", "told"), [("", "1"), ("1", "1")])
def test_what_is_echoed(server: Server, asked: str, told: str) -> None:
    one = given("a", "FP32", np.float32([[1]]))
    other = given("b", "FP32", np.float32([[1]]))
    for request_id in ("", "7", "ид-7"):
        response = server.client.infer("sums", [one, other], asked, request_id=request_id).get_response()
        assert (response.model_name, response.model_version, response.id) == ("sums", told, request_id)


def test_parameters_that_are_fine(server: Server) -> None:
    inputs = [given(name, "FP32", np.float32([[1]])) for name in ("a", "b")]
    result = server.client.infer(
        "sums",
        inputs,
        sequence_id="s",
        sequence_start=True,
        sequence_end=True,
        priority=3,
        timeout=10_000_000,
        client_timeout=20.0,
        parameters={"text": "yes", "flag": True, "count": -5, "share": 0.5},
    )
    assert result.as_numpy("sum").tolist() == [[2]]


def test_a_deadline_in_the_far_future(server: Server) -> None:
    inputs = [given(name, "FP32", np.float32([[1]])) for name in ("a", "b")]
    for seconds in (1e6, 1e9):
        assert server.client.infer("sums", inputs, client_timeout=seconds, timeout=(1 << 63) // 1000 - 1).as_numpy("sum") == 2


def test_messages_of_many_megabytes(server: Server, paths: dict[str, Path]) -> None:
    x = sample("FP32", (4, 400_000))
    result = server.client.infer("twice_FP32", [given("x", "FP32", x)])
    assert_equal(result, expected(paths, "FP32", x))


@pytest.mark.asyncio
async def test_the_asyncio_client(server: Server, paths: dict[str, Path]) -> None:
    async with triton_aio.InferenceServerClient(server.address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("sums")
        for datatype in DATATYPES:
            x = sample(datatype, (2, 3), seed=2)
            result = await client.infer(f"twice_{datatype}", [given("x", datatype, x)], request_id="7")
            assert_equal(result, expected(paths, datatype, x))
            assert result.get_response().id == "7"
        with pytest.raises(triton.InferenceServerException, match="unknown model: 'nope' is not found") as caught:
            await client.infer("nope", [given("x", "FP32", np.float32([[1]]))])
        assert caught.value.status() == str(grpc.StatusCode.NOT_FOUND)


@pytest.mark.part("unit")
def test_the_datatypes_are_all() -> None:
    assert set(DTYPES) == set(DATATYPES) == {*TYPED, "FP16", "BF16"}
    assert DTYPES["BF16"] is ml_dtypes.bfloat16


@pytest.mark.parametrize("datatype", ["BOOL", "INT32", "BYTES"])
@pytest.mark.parametrize("shape", [(0, 1 << 62), (0, (1 << 63) - 1)], ids=str)
def test_no_elements_beside_a_dimension_that_no_machine_can_address(
    server: Server, datatype: str, shape: tuple[int, int]
) -> None:
    told = f"[request id: r] input 'x' for model 'twice_{datatype}' has the impossible shape [0,{shape[1]}]"
    with fails(grpc.StatusCode.INVALID_ARGUMENT, told):
        server.stub.ModelInfer(message(f"twice_{datatype}", [("x", datatype, shape)], [b""], id="r"), timeout=PATIENCE)
