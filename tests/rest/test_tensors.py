"""Values in, values out: REST answers what gRPC answers, in either form and in every datatype."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from tests.build_models import DATATYPES, add_model, sums, twice
from tests.oracle import bits, sample
from tests.rest.resting import GOOD, LENGTH, Reply, Rest, resting
from tests.transport.serving import message

IN_JSON = [datatype for datatype in DATATYPES if datatype not in ("FP16", "BF16")]
SHAPES = [(3, 5), (2, 0), (0, 3)]
FLAT, NESTED = "flat", "nested"


@pytest.fixture(scope="module")
def models(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    repository = tmp_path_factory.mktemp("repository")
    add_model(repository, "sums", sums())
    for datatype in DATATYPES:
        add_model(repository, f"twice_{datatype}", twice(datatype))
    with resting(transport, repository) as started:
        yield started


def encoded(datatype: str, array: Any) -> bytes:
    if datatype != "BYTES":
        return array.tobytes()
    words = [word.encode() for word in array.reshape(-1)]
    return b"".join(len(word).to_bytes(4, "little") + word for word in words)


def finite(datatype: str, shape: tuple[int, ...]) -> Any:
    """A sample that JSON can carry."""
    x = sample(datatype, shape)
    return np.nan_to_num(x, posinf=1.5, neginf=-2.5) if datatype in ("FP32", "FP64") else x


def over_grpc(models: Rest, datatype: str, x: Any) -> list[tuple[str, str, list[int], bytes]]:
    request = message(f"twice_{datatype}", [("x", datatype, x.shape)], [encoded(datatype, x)])
    answer = models.grpc.stub.ModelInfer(request)
    pairs = zip(answer.outputs, answer.raw_output_contents, strict=True)
    return [(output.name, output.datatype, list(output.shape), raw) for output, raw in pairs]


def binary_outputs(reply: Reply) -> list[tuple[str, str, list[int], bytes]]:
    """The outputs of a body whose tensors are all binary, read by hand."""
    at = int(reply.headers[LENGTH.lower()])
    told, outputs = json.loads(reply.body[:at]), []
    assert reply.headers["content-type"] == "application/octet-stream"
    for output in told["outputs"]:
        assert "data" not in output
        size = output["parameters"]["binary_data_size"]
        outputs.append((output["name"], output["datatype"], output["shape"], reply.body[at : at + size]))
        at += size
    assert at == len(reply.body)
    return outputs


def binary_request(datatype: str, x: Any, **members: Any) -> tuple[bytes, dict[str, str]]:
    raw = encoded(datatype, x)
    given = {"name": "x", "datatype": datatype, "shape": x.shape, "parameters": {"binary_data_size": len(raw)}}
    header = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}, **members}).encode()
    return header + raw, {LENGTH: str(len(header))}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("datatype", DATATYPES)
def test_binary_as_over_grpc(models: Rest, datatype: str, shape: tuple[int, ...]) -> None:
    x = sample(datatype, shape)
    body, headers = binary_request(datatype, x)
    reply = models.infer(f"twice_{datatype}", body, **headers)
    assert reply.status == 200, reply.body
    assert binary_outputs(reply) == over_grpc(models, datatype, x)


@pytest.mark.parametrize("form", [FLAT, NESTED])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("datatype", IN_JSON)
def test_json_as_over_grpc(models: Rest, datatype: str, shape: tuple[int, ...], form: str) -> None:
    x = finite(datatype, shape)
    data = (x if form == NESTED else x.reshape(-1)).tolist()
    reply = models.infer(f"twice_{datatype}", {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data}]})
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "application/json"
    told = [
        (o["name"], o["datatype"], o["shape"], encoded(datatype, np.array(o["data"], x.dtype).reshape(o["shape"])))
        for o in reply.json["outputs"]
    ]
    assert told == over_grpc(models, datatype, x)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_tritonclient(models: Rest, datatype: str) -> None:
    x = sample(datatype, (2, 3))
    array = np.array([e.encode() for e in x.reshape(-1)], np.object_).reshape(x.shape) if datatype == "BYTES" else x
    given = triton.InferInput("x", list(x.shape), datatype).set_data_from_numpy(array)
    result = models.client.infer(f"twice_{datatype}", [given], request_id="7")
    over = {name: raw for name, _, _, raw in over_grpc(models, datatype, x)}
    for name, raw in over.items():
        got = result.as_numpy(name)
        assert got is not None
        if datatype == "BYTES":
            assert encoded(datatype, np.array([e.decode() for e in got.reshape(-1)], np.object_)) == raw
        else:
            assert got.tobytes() == raw
    assert result.get_response()["id"] == "7"


@pytest.mark.parametrize("datatype", IN_JSON)
def test_tritonclient_without_the_binary_extension(models: Rest, datatype: str) -> None:
    x = finite(datatype, (2, 3))
    array = np.array([e.encode() for e in x.reshape(-1)], np.object_).reshape(x.shape) if datatype == "BYTES" else x
    given = triton.InferInput("x", list(x.shape), datatype).set_data_from_numpy(array, binary_data=False)
    asked = [triton.InferRequestedOutput("same", binary_data=False)]
    result = models.client.infer(f"twice_{datatype}", [given], outputs=asked)
    got = result.as_numpy("same")
    assert got is not None
    assert bits(got) == bits(x)


@pytest.mark.parametrize("answered", ["gzip", "deflate", None])
@pytest.mark.parametrize("asked", ["gzip", "deflate", None])
def test_compressed(models: Rest, asked: str | None, answered: str | None) -> None:
    x = np.tile(sample("FP32", (4, 7)), (1, 400))
    given = triton.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)
    result = models.client.infer(
        "twice_FP32", [given], request_compression_algorithm=asked, response_compression_algorithm=answered
    )
    same = result.as_numpy("same")
    assert same is not None
    assert bits(same) == bits(x)


@pytest.mark.parametrize(("coding", "undo"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_what_is_compressed_says_so(rest: Rest, coding: str, undo: Any) -> None:
    reply = rest.infer("m", GOOD, Accept_Encoding=coding)
    assert reply.headers["content-encoding"] == coding
    assert json.loads(undo(reply.body)) == rest.infer("m", GOOD).json


def test_outputs_in_both_forms_and_in_the_order_asked(models: Rest) -> None:
    inputs = [{"name": name, "datatype": "FP32", "shape": [1, 2], "data": [3, 5]} for name in ("b", "a")]
    outputs = [{"name": "sum", "parameters": {"binary_data": True}}, {"name": "difference"}]
    reply = models.infer("sums", {"inputs": inputs, "outputs": outputs})
    at = int(reply.headers[LENGTH.lower()])
    assert json.loads(reply.body[:at]) == {
        "model_name": "sums",
        "model_version": "1",
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
            {"name": "difference", "datatype": "FP32", "shape": [1, 2], "data": [0.0, 0.0]},
        ],
    }
    assert np.frombuffer(reply.body[at:], np.float32).tolist() == [6, 10]


def test_an_output_may_say_otherwise_than_the_request(models: Rest) -> None:
    body, headers = binary_request("INT8", np.int8([[1, 2]]), outputs=[{"name": "same", "parameters": {"binary_data": False}}])
    assert models.infer("twice_INT8", body, **headers).json["outputs"][0]["data"] == [1, 2]


def test_json_and_binary_inputs_together(rest: Rest) -> None:
    inputs = [GOOD["inputs"][0], {**GOOD["inputs"][1], "parameters": {"binary_data_size": 6}}]
    del inputs[1]["data"]
    header = json.dumps({"inputs": inputs[::-1]}).encode()
    reply = rest.infer("m", header + b"\2\0\0\0yo", **{LENGTH: str(len(header))})
    assert [output["data"] for output in reply.json["outputs"]] == [[1, 2, 3], ["yo"]]


def test_a_raw_body_is_the_only_input(rest: Rest) -> None:
    x = np.arange(6, dtype=np.float32)
    reply = rest.infer("raw", x.tobytes(), **{LENGTH: "0"})
    assert binary_outputs(reply) == [("y", "FP32", [1, 2, 3], x.tobytes())]
    assert binary_outputs(rest.infer("word", "naïve".encode(), **{LENGTH: "0"}))[0][3] == b"\6\0\0\0na\xc3\xafve"


@pytest.mark.parametrize("request_id", ["", "7", "ид-7", 'a"b\\'])
def test_what_is_echoed(rest: Rest, request_id: str) -> None:
    for path in ("m", "m/versions/1"):
        told = rest.infer(path, {**GOOD, "id": request_id}).json
        assert told.get("id", "") == request_id
        assert ("id" in told) == bool(request_id)
        assert (told["model_name"], told["model_version"]) == ("m", "1")


def test_parameters_that_are_fine(rest: Rest) -> None:
    special = {"sequence_id": "s", "sequence_start": True, "sequence_end": True, "priority": 3, "timeout": 10_000_000}
    own = {"text": "yes", "flag": True, "count": -5, "share": 0.5}
    assert rest.infer("m", {**GOOD, "parameters": {**special, **own}}).status == 200


def test_messages_of_megabytes(models: Rest) -> None:
    x = sample("FP32", (4, 80_000))
    body, headers = binary_request("FP32", x)
    assert binary_outputs(models.infer("twice_FP32", body, **headers)) == over_grpc(models, "FP32", x)
