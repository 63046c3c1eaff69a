"""Every way to ask for inference wrongly: the code and the message, letter by letter, and a server that goes on."""

from __future__ import annotations

import struct

import grpc
import pytest

from tests.transport.asking import INPUTS, A, S, ask, is_well, mixed, outputs, parameter, region, shaped, text, typed, whole
from tests.transport.serving import PATIENCE, Server, fails

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED

RID = "[request id: r1] "
NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input shape. "
    "If you want to specify the full shape including the batch dim in your input dims config, try setting max_batch_size to "
    "zero. See the model configuration docs for more info on max_batch_size."
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
    "unset": (
        parameter("k"),
        INVALID,
        "invalid value type for 'k' parameter, expected int64_param, bool_param, or string_param.",
    ),
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
        f"{RID}expected 2 inputs but got 3 inputs for model 'm'. "
        f"Got input(s) ['a','s','z'], but missing required input(s) ]. {ALL}",
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
        "[request id: <id_unknown>] expected number of inputs between 1 and 2 but got 0 inputs for model 'optional'. "
        f"Got input(s) [], but missing required input(s) ['x']. {ALL}",
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
        f"{RID}incomplete string data for inference input 's' for model 'm', expecting string of length 4294967295 but only 2 "
        "bytes available.",
    ),
    "strings without number": (
        text(b"", 1, (1 << 63) - 1),
        INVALID,
        f"{RID}expected {(1 << 63) - 1} string elements for inference input 's' for model 'm', got 0",
    ),
}


@pytest.mark.parametrize("case", INFER)
def test_inference_refused(server: Server, case: str) -> None:
    request, code, told = INFER[case]
    with fails(code, told):
        server.stub.ModelInfer(request, timeout=PATIENCE)
    assert is_well(server)


def test_surplus_raw_entries_are_ignored(server: Server) -> None:
    answer = server.stub.ModelInfer(ask(raw=(A, S, b"surplus", b"")), timeout=PATIENCE)
    assert list(answer.raw_output_contents) == [A, S]
