"""Every way to ask wrongly: the code and the message, letter by letter, and a server that goes on."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from headrace.backends.fake import Script
from tritonclient.grpc import service_pb2 as pb

from tests.build_models import add_model, optional_bias
from tests.transport.serving import ECHO, Server, fails, fill, message, serving

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
INTERNAL = grpc.StatusCode.INTERNAL

M = """
backend: "fake"
max_batch_size: 4
input { name: "a" data_type: TYPE_INT32 dims: 3 }
input { name: "s" data_type: TYPE_STRING dims: -1 }
output { name: "y" data_type: TYPE_INT32 dims: 3 }
output { name: "t" data_type: TYPE_STRING dims: -1 }
dynamic_batching {}
"""
WHOLE = """
backend: "fake"
input { name: "x" data_type: TYPE_INT32 dims: [2, -1] }
output { name: "y" data_type: TYPE_INT32 dims: [2, -1] }
"""
OPTIONAL = """
input { name: "x" data_type: TYPE_FP32 dims: 3 }
input { name: "bias" data_type: TYPE_FP32 dims: 3 optional: true }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
"""
DECOUPLED = ECHO + "model_transaction_policy { decoupled: true }"
BROKEN = ECHO + 'parameters { key: "answers" value { string_value: "many" } }'


@pytest.fixture(scope="module")
def server(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository: Path = tmp_path_factory.mktemp("repository")
    models = {name: (config, Script()) for name, config in (("m", M), ("whole", WHOLE), ("decoupled", DECOUPLED))}
    add_model(repository, "optional", optional_bias(), OPTIONAL)
    fake = fill(repository, models)
    fill(repository, {"broken": (BROKEN, Script())})
    with serving(transport, repository, {"fake": fake}) as started:
        yield started


A, S = np.arange(3, dtype=np.int32).tobytes(), b"\x02\x00\x00\x00hi"
INPUTS = (("a", "INT32", (1, 3)), ("s", "BYTES", (1, 1)))


def ask(inputs: Any = INPUTS, raw: Any = (A, S), model: str = "m", **fields: Any) -> pb.ModelInferRequest:
    fields.setdefault("id", "r1")
    return message(model, inputs, raw, **fields)


def shaped(*shape: int, raw: bytes = A, **fields: Any) -> pb.ModelInferRequest:
    """A request whose `a` has this shape."""
    return ask((("a", "INT32", shape), INPUTS[1]), (raw, S), **fields)


def text(raw: bytes, *shape: int, **fields: Any) -> pb.ModelInferRequest:
    """A request whose `s` has this content and shape."""
    return ask((INPUTS[0], ("s", "BYTES", shape)), (A, raw), **fields)


def whole(*shape: int, raw: bytes = b"") -> pb.ModelInferRequest:
    return ask((("x", "INT32", shape),), (raw,), "whole")


def typed(datatype: str, **contents: Any) -> pb.ModelInferRequest:
    request = ask((), ())
    request.inputs.add(name="a", datatype=datatype, shape=(1, 3), contents=pb.InferTensorContents(**contents))
    request.inputs.add(name="s", datatype="BYTES", shape=(1, 1), contents=pb.InferTensorContents(bytes_contents=[b"hi"]))
    return request


def mixed() -> pb.ModelInferRequest:
    request = ask(raw=(A,))
    request.inputs[1].contents.bytes_contents.append(b"hi")
    return request


def value(**choice: Any) -> pb.InferParameter:
    return pb.InferParameter(**choice)


def parameter(key: str, **choice: Any) -> pb.ModelInferRequest:
    return ask(parameters={key: value(**choice)})


def region(where: str = "input", contents: bool = False, **parameters: dict[str, Any]) -> pb.ModelInferRequest:
    request = ask(raw=(S,))
    target = request.inputs[0] if where == "input" else request.outputs.add(name="y")
    for key, choice in parameters.items():
        target.parameters[f"shared_memory_{key}"].CopyFrom(value(**choice))
    if where != "input":
        request.raw_input_contents[:] = (A, S)
    if contents:
        request.inputs[0].contents.int_contents.extend([1, 2, 3])
    return request


def outputs(*names: str, **fields: Any) -> pb.ModelInferRequest:
    return ask(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names], **fields)


RID = "[request id: r1] "
NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input shape. "
    "If you want to specify the full shape including the batch dim in your input dims config, try setting max_batch_size to zero. "
    "See the model configuration docs for more info on max_batch_size."
)
ALL = "Please provide all required input(s)."
IN_ONE_BUFFER = "Please make sure the string length indicator is in one buffer."
NAME = {"string_param": "r"}
RESERVED = (
    "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with 'triton_' are "
    "allowed: triton_enable_empty_final_response"
)

INFER = {
    # Models and versions.
    "unknown model": (ask(model="nope"), NOT_FOUND, "Request for unknown model: 'nope' is not found"),
    "no model": (ask(model=""), NOT_FOUND, "Request for unknown model: '' is not found"),
    "unknown version": (ask(model_version="9"), NOT_FOUND, "Request for unknown model: 'm' version 9 is not found"),
    "none ready": (ask(model="broken"), NOT_FOUND, "Request for unknown model: 'broken' has no available versions"),
    "not ready": (
        ask(model="broken", model_version="1"),
        UNAVAILABLE,
        "Request for unknown model: 'broken' version 1 is not at ready state",
    ),
    "version a word": (
        ask(model_version="x"),
        INVALID,
        "failed to get model version from specified version string 'x' (details: stol), version should be an integral value > 0",
    ),
    "version below 0": (
        ask(model_version="-1"),
        INVALID,
        "invalid model version specified '-1' , version should be an integral value > 0",
    ),
    "version too large": (
        ask(model_version="9" * 30),
        INVALID,
        f"failed to get model version from specified version string '{'9' * 30}' (details: stol), "
        "version should be an integral value > 0",
    ),
    "decoupled": (
        ask(model="decoupled"),
        UNIMPLEMENTED,
        "ModelInfer RPC doesn't support models with decoupled transaction policy",
    ),
    # Parameters.
    "sequence_id": (
        parameter("sequence_id", bool_param=True),
        INVALID,
        "invalid value type for 'sequence_id' parameter, expected int64_param or string_param.",
    ),
    "sequence_start": (
        parameter("sequence_start", int64_param=1),
        INVALID,
        "invalid value type for 'sequence_start' parameter, expected bool_param.",
    ),
    "sequence_end": (
        parameter("sequence_end", string_param="1"),
        INVALID,
        "invalid value type for 'sequence_end' parameter, expected bool_param.",
    ),
    "priority": (
        parameter("priority", string_param="1"),
        INVALID,
        "invalid value type for 'priority' parameter, expected int64_param or uint64_param.",
    ),
    "priority below 0": (
        parameter("priority", int64_param=-1),
        INVALID,
        "invalid value for 'priority', expected value >= 0.",
    ),
    "timeout": (
        parameter("timeout", uint64_param=1),
        INVALID,
        "invalid value type for 'timeout' parameter, expected int64_param.",
    ),
    "empty final": (
        parameter("triton_enable_empty_final_response", int64_param=1),
        INVALID,
        "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param.",
    ),
    "reserved": (parameter("triton_x", bool_param=True), INVALID, RESERVED),
    "uint64": (
        parameter("k", uint64_param=1),
        INVALID,
        "invalid value type for 'k' parameter, expected int64_param, bool_param, or string_param.",
    ),
    "unset": (parameter("k"), INVALID, "invalid value type for 'k' parameter, expected int64_param, bool_param, or string_param."),
    # What the request says twice, or from where.
    "input twice": (ask((INPUTS[0], INPUTS[0]), (A, A)), INVALID, f"{RID}input 'a' already exists in request"),
    "output twice": (outputs("y", "t", "y"), INVALID, f"{RID}output 'y' already exists in request"),
    "contents and raw": (
        mixed(),
        INVALID,
        "contents field must not be specified when using raw_input_contents for 's' for model 'm'",
    ),
    "no raw left": (ask(raw=(A,)), INVALID, "unable to find data for input tensor 's' for model 'm' in request."),
    "no data": (ask(raw=()), INVALID, "unable to find data for input tensor 'a' for model 'm' in request."),
    "two typed fields": (
        typed("INT32", int_contents=[1, 2, 3], fp32_contents=[1.0]),
        INVALID,
        "unexpected explicit tensor data for input tensor 'a' for model 'm', binary data was already supplied.",
    ),
    "typed for another": (
        typed("INT32", fp32_contents=[1, 2, 3]),
        INVALID,
        "unexpected explicit tensor data for input tensor 'a' for model 'm' of type 'FP32', expected datatype 'INT32'",
    ),
    "typed unsigned": (
        typed("INT32", uint_contents=[1, 2, 3]),
        INVALID,
        "unexpected explicit tensor data for input tensor 'a' for model 'm' of type 'UINT32', expected datatype 'INT32'",
    ),
    "typed FP16": (
        typed("FP16", fp32_contents=[1, 2, 3]),
        INVALID,
        "unexpected explicit tensor data for input tensor 'a' for model 'm' of type 'FP32', expected datatype 'FP16'",
    ),
    "typed BF16": (
        typed("BF16", fp32_contents=[1, 2, 3]),
        INVALID,
        "unexpected explicit tensor data for input tensor 'a' for model 'm' of type 'FP32', expected datatype 'BF16'",
    ),
    "typed too few": (
        typed("INT32", int_contents=[1, 2]),
        INVALID,
        f"{RID}input byte size mismatch for input 'a' for model 'm'. Expected 12, got 8",
    ),
    # Shared memory, which nobody can register here.
    "region": (
        region(region=NAME, byte_size={"int64_param": 12}),
        NOT_FOUND,
        "Unable to find shared memory region: 'r'",
    ),
    "output region": (
        region("output", region=NAME, byte_size={"int64_param": 12}),
        NOT_FOUND,
        "Unable to find shared memory region: 'r'",
    ),
    "region type": (
        region(region={"int64_param": 1}, byte_size={"int64_param": 12}),
        INVALID,
        "invalid value type for 'shared_memory_region' parameter for tensor 'a', expected string_param.",
    ),
    "region offset type": (
        region(region=NAME, offset={"string_param": "0"}, byte_size={"int64_param": 12}),
        INVALID,
        "invalid value type for 'shared_memory_offset' parameter for tensor 'a', expected int64_param.",
    ),
    "region size type": (
        region(region=NAME, byte_size={"uint64_param": 12}),
        INVALID,
        "invalid value type for 'shared_memory_byte_size' parameter for tensor 'a', expected int64_param.",
    ),
    "offset alone": (
        region(offset={"int64_param": 0}),
        INVALID,
        "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for tensor 'a'",
    ),
    "size alone": (
        region("output", byte_size={"int64_param": 1}),
        INVALID,
        "'shared_memory_byte_size' can not be specified without 'shared_memory_region' parameter for tensor 'y'",
    ),
    "region without size": (
        region(region=NAME),
        INVALID,
        "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'a'",
    ),
    "region and contents": (
        region(contents=True, region=NAME, byte_size={"int64_param": 12}),
        INVALID,
        "unexpected 'content' provided when using shared memory for input tensor 'a' for model 'm'",
    ),
    # Names.
    "unknown output": (outputs("y", "z"), INVALID, "unexpected inference output 'z' for model 'm'"),
    "no inputs": (
        ask((), ()),
        INVALID,
        f"{RID}expected 2 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing required input(s) ['a','s']. {ALL}",
    ),
    "one input short": (
        ask(INPUTS[:1], (A,)),
        INVALID,
        f"{RID}expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['a'], but missing required input(s) ['s']. {ALL}",
    ),
    "one input too many": (
        ask((*INPUTS, ("z", "INT32", (1, 1))), (A, S, A)),
        INVALID,
        f"{RID}expected 2 inputs but got 3 inputs for model 'm'. Got input(s) ['a','s','z'], but missing required input(s) ]. {ALL}",
    ),
    "unknown input": (
        ask((INPUTS[0], ("z", "BYTES", (1, 1)))),
        INVALID,
        "unexpected inference input 'z' for model 'm'",
    ),
    "optional only": (
        ask((("bias", "FP32", (3,)),), (A,), "optional"),
        INVALID,
        f"{RID}expected number of inputs between 1 and 2 but got 1 inputs for model 'optional'. Got input(s) ['bias'], "
        f"but missing required input(s) ['x']. {ALL}",
    ),
    "nothing where some are optional": (
        ask((), (), "optional", id=""),
        INVALID,
        "[request id: <id_unknown>] expected number of inputs between 1 and 2 but got 0 inputs for model 'optional'. Got input(s) [], "
        f"but missing required input(s) ['x']. {ALL}",
    ),
    # Shapes.
    "no batch dimension": (
        shaped(),
        INVALID,
        f"{RID}input 'a' has no shape but model requires batch dimension for 'm'",
    ),
    "unequal rows": (
        shaped(2, 3, raw=A * 2),
        INVALID,
        f"{RID}input 's' batch size does not match other inputs for 'm'",
    ),
    "too many rows": (
        ask((("a", "INT32", (5, 3)), ("s", "BYTES", (5, 1))), (A * 5, S * 5)),
        INVALID,
        f"{RID}inference request batch-size must be <= 4 for 'm'",
    ),
    "far too many rows": (
        ask((("a", "INT32", (1 << 62, 3)), ("s", "BYTES", (1 << 62, 1)))),
        INVALID,
        f"{RID}inference request batch-size must be <= 4 for 'm'",
    ),
    "datatype": (
        ask((("a", "FP32", (1, 3)), INPUTS[1])),
        INVALID,
        f"{RID}inference input 'a' data-type is 'FP32', but model 'm' expects 'INT32'",
    ),
    "no datatype": (
        ask((("a", "", (1, 3)), INPUTS[1])),
        INVALID,
        f"{RID}inference input 'a' data-type is '', but model 'm' expects 'INT32'",
    ),
    "-1 in a shape": (
        shaped(1, -1),
        INVALID,
        f"{RID}All input dimensions should be specified for input 'a' for model 'm', got [1,-1]",
    ),
    "far below 0": (
        whole(2, -(1 << 63)),
        INVALID,
        f"{RID}All input dimensions should be specified for input 'x' for model 'whole', got [2,-9223372036854775808]",
    ),
    "shape": (
        shaped(1, 2, raw=A[:8]),
        INVALID,
        f"{RID}unexpected shape for input 'a' for model 'm'. Expected [-1,3], got [1,2]. {NOTE}",
    ),
    "rank": (
        shaped(1, 3, 1),
        INVALID,
        f"{RID}unexpected shape for input 'a' for model 'm'. Expected [-1,3], got [1,3,1]. {NOTE}",
    ),
    "rank of a thousand": (
        whole(*[1] * 1000),
        INVALID,
        f"{RID}unexpected shape for input 'x' for model 'whole'. Expected [2,-1], got [{','.join('1' * 1000)}]. ",
    ),
    "shape without batching": (
        whole(3, 1),
        INVALID,
        f"{RID}unexpected shape for input 'x' for model 'whole'. Expected [2,-1], got [3,1]. ",
    ),
    # Sizes.
    "truncated": (
        shaped(1, 3, raw=A[:-1]),
        INVALID,
        f"{RID}input byte size mismatch for input 'a' for model 'm'. Expected 12, got 11",
    ),
    "oversized": (
        shaped(1, 3, raw=A + b"\0", id=""),
        INVALID,
        "[request id: <id_unknown>] input byte size mismatch for input 'a' for model 'm'. Expected 12, got 13",
    ),
    "empty": (
        shaped(1, 3, raw=b""),
        INVALID,
        f"{RID}input byte size mismatch for input 'a' for model 'm'. Expected 12, got 0",
    ),
    "more than there is memory": (
        whole(2, (1 << 63) - 1, raw=A[:8]),
        INVALID,
        f"{RID}input byte size mismatch for input 'x' for model 'whole'. Expected {8 * ((1 << 63) - 1)}, got 8",
    ),
    # Strings.
    "half a length": (
        text(S + b"\x01\x00\x00", 1, 2),
        INVALID,
        f"{RID}incomplete string length indicator for inference input 's' for model 'm', expecting 4 bytes but only 3 bytes "
        f"available. {IN_ONE_BUFFER}",
    ),
    "a string too many": (
        text(S * 3, 1, 1),
        INVALID,
        f"{RID}unexpected number of string elements 2 for inference input 's' for model 'm', expecting 1",
    ),
    "a string for none": (
        text(S, 1, 0),
        INVALID,
        f"{RID}unexpected number of string elements 1 for inference input 's' for model 'm', expecting 0",
    ),
    "strings missing": (
        text(S, 1, 3),
        INVALID,
        f"{RID}expected 3 string elements for inference input 's' for model 'm', got 1",
    ),
    "a length that lies": (
        text(struct.pack("<I", 0xFFFFFFFF) + b"hi", 1, 1),
        INVALID,
        f"{RID}incomplete string data for inference input 's' for model 'm', expecting string of length 4294967295 but only 2 bytes "
        "available.",
    ),
    "strings without number": (
        text(b"", 1, (1 << 63) - 1),
        INVALID,
        f"{RID}expected {(1 << 63) - 1} string elements for inference input 's' for model 'm', got 0",
    ),
}


def is_well(server: Server) -> bool:
    """Whether the server answers a good request rightly."""
    answer = server.stub.ModelInfer(ask(id="well"), timeout=20)
    return answer.id == "well" and list(answer.raw_output_contents) == [A, S]


@pytest.mark.parametrize("case", INFER)
def test_inference_refused(server: Server, case: str) -> None:
    request, code, told = INFER[case]
    with fails(code, told):
        server.stub.ModelInfer(request, timeout=20)
    assert is_well(server)


def test_surplus_raw_entries_are_ignored(server: Server) -> None:
    answer = server.stub.ModelInfer(ask(raw=(A, S, b"surplus", b"")), timeout=20)
    assert list(answer.raw_output_contents) == [A, S]


REQUESTS: dict[str, tuple[str, Any, grpc.StatusCode, str]] = {
    "metadata": ("ModelMetadata", pb.ModelMetadataRequest(name="z"), NOT_FOUND, "Request for unknown model: 'z' is not found"),
    "metadata, version": (
        "ModelMetadata",
        pb.ModelMetadataRequest(name="m", version="7"),
        NOT_FOUND,
        "Request for unknown model: 'm' version 7 is not found",
    ),
    "metadata, broken": (
        "ModelMetadata",
        pb.ModelMetadataRequest(name="broken"),
        NOT_FOUND,
        "Request for unknown model: 'broken' has no available versions",
    ),
    "config": ("ModelConfig", pb.ModelConfigRequest(name="z"), NOT_FOUND, "Request for unknown model: 'z' is not found"),
    "config, version": (
        "ModelConfig",
        pb.ModelConfigRequest(name="m", version="0x1 "),
        INVALID,
        "invalid model version specified '0x1 ' , version should be an integral value > 0",
    ),
    "ready": ("ModelReady", pb.ModelReadyRequest(name="z"), NOT_FOUND, "Request for unknown model: 'z' is not found"),
    "ready, version": (
        "ModelReady",
        pb.ModelReadyRequest(name="broken", version="1"),
        UNAVAILABLE,
        "Request for unknown model: 'broken' version 1 is not at ready state",
    ),
    "statistics": (
        "ModelStatistics",
        pb.ModelStatisticsRequest(name="z"),
        INVALID,
        "requested model 'z' is not available",
    ),
    "statistics, version": (
        "ModelStatistics",
        pb.ModelStatisticsRequest(name="m", version="7"),
        INVALID,
        "requested model version is not available for model 'm'",
    ),
    "index": (
        "RepositoryIndex",
        pb.RepositoryIndexRequest(repository_name="r"),
        UNIMPLEMENTED,
        "'repository_name' specification is not supported",
    ),
    "load": (
        "RepositoryModelLoad",
        pb.RepositoryModelLoadRequest(model_name="m"),
        UNAVAILABLE,
        "explicit model load / unload is not allowed if polling is enabled",
    ),
    "unload": (
        "RepositoryModelUnload",
        pb.RepositoryModelUnloadRequest(model_name="m"),
        UNAVAILABLE,
        "explicit model load / unload is not allowed if polling is enabled",
    ),
    "load, repository": (
        "RepositoryModelLoad",
        pb.RepositoryModelLoadRequest(repository_name="r", model_name="m"),
        UNIMPLEMENTED,
        "'repository_name' specification is not supported",
    ),
    **{
        f"not yet: {method}": (method, getattr(pb, f"{method}Request")(), UNIMPLEMENTED, f"{method} is not implemented by this server yet")
        for shared in ("System", "Cuda")
        for method in [f"{shared}SharedMemory{verb}" for verb in ("Status", "Register", "Unregister")]
    },
    "not yet: trace": ("TraceSetting", pb.TraceSettingRequest(), UNIMPLEMENTED, "TraceSetting is not implemented by this server yet"),
    "not yet: log": ("LogSettings", pb.LogSettingsRequest(), UNIMPLEMENTED, "LogSettings is not implemented by this server yet"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_control_refused(server: Server, case: str) -> None:
    method, request, code, told = REQUESTS[case]
    with fails(code, told):
        getattr(server.stub, method)(request, timeout=20)
    assert is_well(server)


def test_streams_are_not_implemented_yet(server: Server) -> None:
    with fails(UNIMPLEMENTED, "ModelStreamInfer is not implemented by this server yet; use ModelInfer"):
        next(server.stub.ModelStreamInfer(iter([ask()]), timeout=20))
    assert is_well(server)


@pytest.mark.parametrize("path", ["/inference.GRPCInferenceService/Nothing", "/no.Service/ModelInfer", "/grpc.health.v1.Health/Watch"])
def test_an_unknown_method(server: Server, path: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.call(path, b"")
    assert caught.value.code() is UNIMPLEMENTED
    assert is_well(server)


JUNK = {
    "noise": b"\xff\xfe\xfd" * 7,
    "cut short": ask().SerializeToString()[:-1],
    "text that is no UTF-8": b"\x0a\x02\xff\xfe",
    "endless varint": b"\x08" + b"\x80" * 20,
    "too deep": b"\x0b" * 300,
}


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex", "ModelReady"])
def test_junk_instead_of_a_message(server: Server, method: str, junk: str) -> None:
    payload = JUNK[junk]
    with fails(INVALID, f"the {len(payload)} bytes received are not a {method}Request message"):
        server.call(method, payload)
    assert is_well(server)


def test_an_unknown_field_is_no_junk(server: Server) -> None:
    payload = ask(id="well").SerializeToString() + b"\xc2\x3e\x03new"
    answer = pb.ModelInferResponse.FromString(server.call("ModelInfer", payload))
    assert answer.id == "well"
