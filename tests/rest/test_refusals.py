"""Every way to ask wrongly over REST: the status and the message, letter by letter, and a server that goes on."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest

from tests.rest.resting import GOOD, LENGTH, Rest

RID = "[request id: <id_unknown>] "
A = {"name": "a", "datatype": "INT32", "shape": [1, 3]}
S = GOOD["inputs"][1]
SIZED = {**A, "parameters": {"binary_data_size": 12}}
TAIL = "Use --http-max-input-size to increase the limit."
ONE_SOURCE = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', 'shared_memory_region' in "
    "'parameters'."
)
NO_HEADER = (
    "must specify valid 'Infer-Header-Content-Length' in request header and 'binary_data_size' when passing inputs in binary "
    "data format"
)
SHAPES = "Failed to parse 'data' field: shape does not match true shape"
UNPARSED = "failed to parse the request JSON buffer: "
DATA = "Unable to parse 'data': input 'a' of datatype INT32 got "
REGION = {"shared_memory_region": "r", "shared_memory_byte_size": 12}
SURROGATE = "the request JSON holds text that is not Unicode: half of a surrogate pair"
EXCLUSIVE = "Output can't set both 'shared_memory_region' and "
TRITON = "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
ITEMS = "which JSON cannot carry. Please use the binary data format"


def asking(a: Any = None, s: Any = S, **members: Any) -> dict[str, Any]:
    return {"inputs": [{**A, "data": [1, 2, 3]} if a is None else a, s], **members}


def data(value: Any, datatype: str = "INT32", shape: Any = (1, 3)) -> dict[str, Any]:
    return asking({**A, "datatype": datatype, "shape": shape, "data": value})


def split(tail: bytes, a: Any = SIZED, length: int | None = None) -> tuple[bytes, dict[str, str]]:
    """A body with binary data, and its header."""
    header = json.dumps(asking(a)).encode()
    return header + tail, {LENGTH: str(len(header) if length is None else length)}


def parameters(**given: Any) -> dict[str, Any]:
    return asking(parameters=given)


def output(**given: Any) -> dict[str, Any]:
    return asking(outputs=[{"name": "y", "parameters": given}])


GOOD_TEXT = json.dumps(GOOD)
LEN = len(GOOD_TEXT)

# what: (body, message), of requests to model `m` that are INVALID_ARGUMENT
BODIES: dict[str, tuple[Any, str]] = {
    # JSON.
    "no body": (b"", "Unable to parse 'inputs': the request has none"),
    "no JSON": (b"{", UNPARSED + "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    "no UTF-8": (b'{"a":"\xff"}', UNPARSED + "'utf-8' codec can't decode byte 0xff in position 6: invalid start byte"),
    "a list": (b"[1]", "the request JSON must be an object, got a list"),
    "NaN": (GOOD_TEXT.replace("3]", "NaN]"), UNPARSED + "NaN is not JSON"),
    "Infinity": (GOOD_TEXT.replace("3]", "-Infinity]"), UNPARSED + "-Infinity is not JSON"),
    "too deep": (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "the request JSON is nested deeper than 100 levels"),
    "far too deep": (b'{"a":' + b"[" * 40000 + b"]" * 40000 + b"}", "the request JSON is nested deeper than 100 levels"),
    "half a surrogate": ('{"id":"\\ud800","inputs":[]}', SURROGATE),
    "half a surrogate in a tensor": (asking(s={**S, "data": ["\ud800"]}), SURROGATE),
    "too large": (
        b" " * 100_001,
        f"request JSON size of 100001 bytes exceeds the maximum allowed input size of 100000 bytes. {TAIL}",
    ),
    # Members.
    "inputs no list": ({"inputs": 1}, "Unable to parse 'inputs' of the request: it must be a list"),
    "an input no object": ({"inputs": [1]}, "Unable to parse 'inputs': inputs[0] must be an object"),
    "no name": ({"inputs": [{}]}, "Unable to parse 'name' of inputs[0]: it is missing; it must be text"),
    "name a number": ({"inputs": [{"name": 1}]}, "Unable to parse 'name' of inputs[0]: it must be text"),
    "id a number": (asking(id=7), "Unable to parse 'id' of the request: it must be text"),
    "no shape": (
        asking({"name": "a", "datatype": "INT32", "data": []}),
        "Unable to parse 'shape' of inputs[0]: it is missing; it must be a list",
    ),
    "shape of fractions": (data([1], shape=[1.5]), "Unable to parse 'shape' of inputs[0]: it must be a list of whole numbers"),
    "shape beyond 64 bits": (
        data([1], shape=[1 << 63]),
        "Unable to parse 'shape' of inputs[0]: it must be a list of whole numbers",
    ),
    "outputs no list": (asking(outputs={}), "Unable to parse 'outputs' of the request: it must be a list"),
    "an output no object": (asking(outputs=["y"]), "Unable to parse 'outputs': outputs[0] must be an object"),
    "input twice": ({"inputs": GOOD["inputs"] * 2}, f"{RID}input 'a' already exists in request"),
    # Where the data is.
    "no source": (asking(A), f"{ONE_SOURCE} But no field is set"),
    "two sources": (asking({**SIZED, "data": [1, 2, 3]}), f"{ONE_SOURCE} set 'data' 'binary_data_size'"),
    "three sources": (
        asking({**A, "data": [], "parameters": {"binary_data_size": 12, **REGION}}),
        f"{ONE_SOURCE} set 'data' 'binary_data_size' 'shared_memory_region'",
    ),
    # The binary extension.
    "no header": (asking(SIZED), NO_HEADER),
    # Elements.
    "unknown datatype": (data([1, 2, 3], "INT4"), "invalid datatype for input a"),
    "another datatype": (data([1, 2, 3], "FP32"), f"{RID}inference input 'a' data-type is 'FP32', but model 'm' expects 'INT32'"),
    "FP16": (
        data([1, 2, 3], "FP16"),
        "receiving FP16 data via JSON is not supported. Please use the binary data format for input a",
    ),
    "BF16": (
        data([1, 2, 3], "BF16"),
        "receiving BF16 data via JSON is not supported. Please use the binary data format for input a",
    ),
    "too few": (data([1, 2]), f"{SHAPES}; input 'a' of shape [1,3] got 2 elements"),
    "nested elsewhere": (
        data([[1], [2], [3]]),
        f"{SHAPES}; input 'a' of shape [1,3] must have lists of 1 at depth 1 or be flat, got 3 elements",
    ),
    "half nested": (
        data([[1, 2], 3], shape=[2, 2]),
        f"{SHAPES}; input 'a' of shape [2,2] must have lists of 2 at depth 2 or be flat, got 3",
    ),
    "nested too deep": (data([[[1], [2], [3]]]), DATA + "a list"),
    "data a number": (data(1), "Unable to parse 'data': input 'a' must have a list there, got 1"),
    "data null": (data(None), "Unable to parse 'data': input 'a' must have a list there, got null"),
    "shape below 0": (
        data([1, 2, 3], shape=[1, -1]),
        f"{RID}All input dimensions should be specified for input 'a' for model 'm', got [1,-1]",
    ),
    "a fraction": (data([1, 2.5, 3]), DATA + "2.5"),
    "a text": (data([1, "2", 3]), DATA + '"2"'),
    "null": (data([1, None, 3]), DATA + "null"),
    "an object": (data([1, {}, 3]), DATA + "an object"),
    "true for a number": (data([1, True, 3]), DATA + "true"),
    "1 for true": (data([1, True, True], "BOOL"), "Unable to parse 'data': input 'a' of datatype BOOL got 1"),
    "bytes as a number": (asking(s={**S, "data": [1]}), "Unable to parse 'data': input 's' of datatype BYTES got 1"),
    "beyond INT32": (data([1, 2, 1 << 31]), DATA + "2147483648, which is out of range"),
    "below INT32": (data([1, 2, -(1 << 31) - 1]), DATA + "-2147483649, which is out of range"),
    "below UINT8": (
        data([1, 2, -1], "UINT8"),
        "Unable to parse 'data': input 'a' of datatype UINT8 got -1, which is out of range",
    ),
    "a number of 500 digits": (data([1, 2, 10**499]), DATA + "a number of 500 digits, which is out of range"),
    "a number of 5000 digits": (GOOD_TEXT.replace("3]", "9" * 5000 + "]"), UNPARSED + "a number has thousands of digits"),
    "beyond FP32": (
        data([1, 1e39, 3], "FP32"),
        "Unable to parse 'data': input 'a' of datatype FP32 got 1e+39, which is out of range",
    ),
    "whole beyond FP64": (
        data([1, 10**400, 3], "FP64"),
        "Unable to parse 'data': input 'a' of datatype FP64 got a number of 401 digits, which is out of range",
    ),
    "1e999": (
        GOOD_TEXT.replace("2, 3]", "2, 1e999]").replace("INT32", "FP64"),
        "Unable to parse 'data': input 'a' of datatype FP64 got Infinity, which is out of range",
    ),
    "a tensor too large": (
        data([1] * 20_000, "INT64", [1, 20_000]),
        f"input 'a' of 160000 bytes exceeds the maximum allowed input size of 100000 bytes. {TAIL}",
    ),
    # Parameters.
    "sequence_id": (
        parameters(sequence_id=True),
        "invalid value type for 'sequence_id' parameter, expected int64_param or string_param.",
    ),
    "priority": (parameters(priority="1"), "invalid value type for 'priority' parameter, expected int64_param or uint64_param."),
    "timeout": (parameters(timeout=1.5), "invalid value type for 'timeout' parameter, expected int64_param."),
    "reserved": (parameters(triton_x=1), TRITON),
    "reserved, and allowed over gRPC": (parameters(triton_enable_empty_final_response=True), TRITON),
    "a list as parameter": (parameters(k=[]), "invalid value type for 'k' parameter, expected a number, true or false, or text."),
    "a parameter beyond 64 bits": (parameters(k=1 << 64), "invalid value for 'k' parameter: the number is out of range"),
    "an infinite parameter": (
        '{"inputs":[],"parameters":{"k":1e999}}',
        "invalid value for 'k' parameter: the number is out of range",
    ),
    "parameters no object": (asking(parameters=[]), "Unable to parse 'parameters' of the request: it must be an object"),
    "binary_data_output a text": (
        parameters(binary_data_output="yes"),
        "Unable to parse 'binary_data_output' of the request: it must be true or false",
    ),
    # Outputs.
    "binary_data a number": (output(binary_data=1), "Unable to parse 'binary_data' of outputs[0]: it must be true or false"),
    "region and classification": (output(classification=1, **REGION), EXCLUSIVE + "'classification'"),
    "region and binary_data": (output(binary_data=True, **REGION), EXCLUSIVE + "'binary_data'"),
    "unknown output": (asking(outputs=[{"name": "z"}]), "unexpected inference output 'z' for model 'm'"),
    "output twice": (asking(outputs=[{"name": "y"}] * 2), f"{RID}output 'y' already exists in request"),
}

# what: (model, body, headers, status, message)
CASES: dict[str, tuple[str, Any, dict[str, str], int, str]] = {
    "unknown model": ("nope", GOOD, {}, 404, "Request for unknown model: 'nope' is not found"),
    "unknown version": ("m/versions/9", GOOD, {}, 404, "Request for unknown model: 'm' version 9 is not found"),
    "none ready": ("broken", GOOD, {}, 404, "Request for unknown model: 'broken' has no available versions"),
    "not ready": ("broken/versions/1", GOOD, {}, 503, "Request for unknown model: 'broken' version 1 is not at ready state"),
    "version a word": ("m/versions/x", GOOD, {}, 404, "Not Found"),
    "version of thousands of digits": (
        "m/versions/" + "9" * 5000,
        GOOD,
        {},
        400,
        "failed to get model version from specified "
        f"version string '{'9' * 5000}' (details: stol), version should be an integral value > 0",
    ),
    "version 0": ("m/versions/0", GOOD, {}, 400, "invalid model version specified '0' , version should be an integral value > 0"),
    "decoupled": ("decoupled", GOOD, {}, 501, "HTTP end point doesn't support models with decoupled transaction policy"),
    "a model that fails": ("fail", {"inputs": [{**S, "name": "x", "shape": [1]}]}, {}, 500, "it fell over"),
    "region": ("m", asking({**A, "parameters": REGION}), {}, 404, "Unable to find shared memory region: 'r'"),
    "output region": ("m", output(**REGION), {}, 404, "Unable to find shared memory region: 'r'"),
    "header a word": ("m", GOOD, {LENGTH: "x"}, 400, "Unable to parse Inference-Header-Content-Length, got: x"),
    "header too large": (
        "m",
        GOOD,
        {LENGTH: str(LEN + 1)},
        400,
        f"inference header size should be in range (0, {LEN}), got: {LEN + 1}",
    ),
    "header below 0": ("m", GOOD, {LENGTH: "-1"}, 400, f"inference header size should be in range (0, {LEN}), got: -1"),
    "header too short": ("m", *split(b"", length=5), 400, UNPARSED + "Unterminated string starting at: line 1 column 2 (char 1)"),
    "too little": ("m", *split(b"1234"), 400, "unexpected size for input 'a', expecting 8 additional bytes for model 'm'"),
    "too much": ("m", *split(b"1" * 13), 400, "unexpected additional input data for model 'm'"),
    "size below 0": (
        "m",
        *split(b"", {**A, "parameters": {"binary_data_size": -1}}),
        400,
        "Unable to parse 'binary_data_size' of input 'a': it must be a whole number of bytes",
    ),
    "size a text": (
        "m",
        *split(b"", {**A, "parameters": {"binary_data_size": "12"}}),
        400,
        "Unable to parse 'binary_data_size' of input 'a': it must be a whole number of bytes",
    ),
    "size not as the shape": (
        "m",
        *split(b"1234", {**A, "parameters": {"binary_data_size": 4}}),
        400,
        f"{RID}input byte size mismatch for input 'a' for model 'm'. Expected 12, got 4",
    ),
    "raw body, two inputs": (
        "m",
        b"1",
        {LENGTH: "0"},
        400,
        "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in 'm' model configuration",
    ),
    "raw body, two dimensions": (
        "varies",
        b"1234",
        {LENGTH: "0"},
        400,
        "Shape of the raw input 'x' cannot be deduced: 2 of its dimensions vary in the model configuration of 'varies'",
    ),
    "raw body, two words": (
        "words",
        b"hi",
        {LENGTH: "0"},
        400,
        "For BYTES datatype raw input 'x', the model must have input shape [1]",
    ),
    "raw body, odd": (
        "raw",
        b"1" * 9,
        {LENGTH: "0"},
        400,
        f"{RID}input byte size mismatch for input 'x' for model 'raw'. Expected 8, got 9",
    ),
    "raw body too large": (
        "raw",
        b"1" * 100_001,
        {LENGTH: "0"},
        400,
        f"request JSON size of 100001 bytes exceeds the maximum allowed input size of 100000 bytes. {TAIL}",
    ),
    "unknown coding": ("m", GOOD, {"Content-Encoding": "br"}, 501, "Unsupported compression type"),
    "two codings": ("m", GOOD, {"Content-Encoding": "gzip, deflate"}, 501, "Unsupported compression type"),
    "no gzip": (
        "m",
        GOOD,
        {"Content-Encoding": "gzip"},
        400,
        "the request body is not gzip: Error -3 while decompressing data: incorrect header check",
    ),
    "half a gzip": (
        "m",
        gzip.compress(GOOD_TEXT.encode())[:-9],
        {"Content-Encoding": "gzip"},
        400,
        "the request body is not gzip: it is cut short",
    ),
    "more than a deflate": (
        "m",
        zlib.compress(b"{}") + b"x",
        {"Content-Encoding": "deflate"},
        400,
        "the request body is not deflate: something follows it",
    ),
    "a bomb": (
        "m",
        gzip.compress(b" " * 50_000_000),
        {"Content-Encoding": "gzip", LENGTH: "10"},
        400,
        f"the decompressed request body exceeds the maximum allowed input size of 100000 bytes. {TAIL}",
    ),
}


@pytest.mark.parametrize("case", BODIES)
def test_bodies_that_are_no_good(rest: Rest, case: str) -> None:
    body, told = BODIES[case]
    assert rest.infer("m", body).error == (400, told)
    assert rest.is_well()


@pytest.mark.parametrize("case", CASES)
def test_inference_refused(rest: Rest, case: str) -> None:
    model, body, headers, status, told = CASES[case]
    if len(told) > 4096:
        told = f"{told[:4000]} … ({len(told)} characters)"
    assert rest.infer(model, body, **headers).error == (status, told)
    assert rest.is_well()


def test_an_unknown_coding_is_told_what_is_known(rest: Rest) -> None:
    reply = rest.infer("m", GOOD, Content_Encoding="br")
    assert reply.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("model", "datatype", "raw", "told"),
    [
        ("half", "FP16", b"\0\0", "sending FP16 data via JSON is not supported. Please use the binary data format for output"),
        ("word", "BYTES", b"\1\0\0\0\xff", f"output 'y' holds bytes that are not UTF-8, {ITEMS}"),
    ],
)
def test_outputs_that_json_cannot_carry(rest: Rest, model: str, datatype: str, raw: bytes, told: str) -> None:
    given = {"name": "x", "datatype": datatype, "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    for wanted in (True, False):
        header = json.dumps({"inputs": [given], "parameters": {"binary_data_output": wanted}}).encode()
        reply = rest.infer(model, header + raw, **{LENGTH: str(len(header))})
        if wanted:
            assert reply.body.endswith(raw)
        else:
            assert reply.error == (400, told)


@pytest.mark.parametrize("raw", [b"\0\0\xc0\x7f", b"\0\0\x80\xff"], ids=["NaN", "-Infinity"])
def test_numbers_that_json_cannot_carry(rest: Rest, raw: bytes) -> None:
    given = {"name": "x", "datatype": "FP32", "shape": [1, 2, 1], "parameters": {"binary_data_size": 8}}
    header = json.dumps({"inputs": [given]}).encode()
    reply = rest.infer("raw", header + raw * 2, **{LENGTH: str(len(header))})
    assert reply.error == (400, f"output 'y' holds NaN or Infinity, {ITEMS}")
