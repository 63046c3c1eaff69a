"""What comes over the wire: it is read back as it was written, or refused as an invalid request, never anything else."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError, InvalidRequest
from headrace.model import ModelSpec
from headrace.protocol.codec import decode_request, decode_version, encode_response
from headrace.protocol.headrace_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from headrace.protocol.validate import Validator, decode_bytes, encode_bytes
from headrace.request import Request, Response
from headrace.tensor import DTYPES, BytesTensor, RawTensor, TensorSpec
from tests.oracle import bits

QUICK = settings(max_examples=150, deadline=None)
DATATYPES = [*DTYPES, "BYTES"]
WORDS = st.lists(st.binary(max_size=12), max_size=20)


def wire(words: list[bytes]) -> bytes:
    """The form on the wire, written down a second time."""
    return b"".join(struct.pack("<I", len(word)) + word for word in words)


# -- strings ------------------------------------------------------------------------------------------------------------


@QUICK
@given(WORDS)
def test_strings_go_and_come_back(words: list[bytes]) -> None:
    tensor = BytesTensor.of(words)
    assert encode_bytes(tensor) == wire(words)
    back = decode_bytes(wire(words), (len(words),), "t", "")
    assert back == tensor
    assert back.objects().tolist() == words


@QUICK
@given(WORDS, st.data())
def test_rows_of_strings_are_written_like_strings_of_their_own(words: list[bytes], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(words)))
    stop = data.draw(st.integers(start, len(words)))
    assert encode_bytes(BytesTensor.of(words).rows(start, stop)) == wire(words[start:stop])


def parse(buffer: bytes) -> list[bytes] | None:
    """The words in a buffer, by an independent reading; None if it is malformed."""
    words: list[bytes] = []
    while buffer:
        length = int.from_bytes(buffer[:4], "little")
        if len(buffer) < 4 or len(buffer) < 4 + length:
            return None
        words.append(buffer[4 : 4 + length])
        buffer = buffer[4 + length :]
    return words


BUFFERS = st.one_of(
    st.binary(max_size=40),
    st.tuples(WORDS, st.binary(max_size=6)).map(lambda both: wire(both[0]) + both[1]),
    st.tuples(WORDS, st.integers(0, 20)).map(lambda both: wire(both[0])[: -both[1] or None]),
)


@QUICK
@given(BUFFERS, st.integers(0, 21))
def test_any_buffer_is_read_or_refused(buffer: bytes, count: int) -> None:
    words = parse(buffer)
    if words is not None and len(words) == count:
        assert decode_bytes(buffer, (count,), "t", "").objects().tolist() == words
    else:
        with pytest.raises(InvalidRequest, match=r"^\[request id: r\] .* for t,"):
            decode_bytes(buffer, (count,), "t", "r")


# -- the validator against an oracle ------------------------------------------------------------------------------------

DIMS = st.lists(st.sampled_from([-1, 1, 2, 3]), max_size=3).map(tuple)
SIZES = st.integers(-1, 4)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    names = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
    batch = draw(st.sampled_from([0, 1, 3]))
    inputs = tuple(
        TensorSpec(name, draw(st.sampled_from(DATATYPES)), draw(DIMS), optional=not batch and draw(st.booleans()))
        for name in names
    )
    return ModelSpec("m", 1, "", "fake", "", batch, inputs, (TensorSpec("y", "FP32", (1,)),))


@st.composite
def tensors(draw: st.DrawFn, spec: TensorSpec, batch: int, rows: int) -> RawTensor:
    """Mostly what the spec wants, now and then something else."""
    shape = [draw(st.integers(0, 3)) if size == -1 else size for size in spec.dims]
    shape = [rows, *shape] if batch else shape
    if draw(st.integers(0, 9)) == 0:
        shape = draw(st.lists(SIZES, max_size=4))
    datatype = spec.datatype if draw(st.integers(0, 9)) else draw(st.sampled_from([*DATATYPES, "", "FLOAT"]))
    count = max(0, math.prod(shape))
    content = wire([b"w"] * count) if datatype == "BYTES" else bytes(count * DTYPES.get(datatype, DTYPES["INT8"]).itemsize)
    if draw(st.integers(0, 9)) == 0:
        content = draw(st.sampled_from([content[:-1], content + b"\0", b""]))
    return RawTensor(datatype, tuple(shape), content)


@st.composite
def requests(draw: st.DrawFn) -> tuple[ModelSpec, Request]:
    spec = draw(specs())
    rows = draw(st.integers(0, 4))
    inputs = {i.name: draw(tensors(i, spec.max_batch_size, rows)) for i in spec.inputs if draw(st.integers(0, 9))}
    if draw(st.integers(0, 19)) == 0:
        inputs["z"] = RawTensor("INT8", (1,), b"\0")
    return spec, Request("m", inputs, outputs=draw(st.sampled_from([(), ("y",), ("y",), ("n",)])), id="r")


def fits(spec: ModelSpec, request: Request) -> bool:
    """Whether the request suits the model: what validation means, in a few lines."""
    given_by_name: dict[str, Any] = dict(request.inputs)
    known = {i.name: i for i in spec.inputs}
    if not set(request.outputs) <= {"y"} or not set(given_by_name) <= set(known):
        return False
    if any(not i.optional and i.name not in given_by_name for i in spec.inputs):
        return False
    batch = spec.max_batch_size > 0
    if batch:
        rows = {tensor.shape[0] if tensor.shape else None for tensor in given_by_name.values()}
        if len(rows) > 1 or None in rows or any(row > spec.max_batch_size for row in rows):  # type: ignore[operator]
            return False
    for name, tensor in given_by_name.items():
        dims = ((-1, *known[name].dims) if batch else known[name].dims, tensor.shape)
        if tensor.datatype != known[name].datatype or len(dims[0]) != len(dims[1]):
            return False
        if any(size < 0 or size != dim != -1 for dim, size in zip(*dims, strict=True)):
            return False
        if tensor.datatype == "BYTES":
            if (words := parse(bytes(tensor.data))) is None or len(words) != math.prod(tensor.shape):
                return False
        elif len(tensor.data) != math.prod(tensor.shape) * DTYPES[tensor.datatype].itemsize:
            return False
    return True


@settings(max_examples=300, deadline=None)
@given(requests())
def test_the_validator_admits_what_fits_and_nothing_else(case: tuple[ModelSpec, Request]) -> None:
    spec, request = case
    validator = Validator(spec)
    if not fits(spec, request):
        with pytest.raises(InvalidRequest, match=r"'m'|for model|'[abcnz]'"):
            validator.admit(request)
        return
    admitted = validator.admit(request)
    assert list(admitted.inputs) == [i.name for i in spec.inputs if i.name in request.inputs]
    assert {name: tensor.shape for name, tensor in admitted.inputs.items()} == {n: t.shape for n, t in request.inputs.items()}
    assert admitted.outputs == ("y",)
    batch = spec.max_batch_size > 0
    assert admitted.rows == (next(iter(request.inputs.values())).shape[0] if batch else 1)
    assert len(admitted.shapes) == len(spec.inputs)


# -- messages -----------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES: st.SearchStrategy[bool | int | float | str] = st.one_of(
    st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False), TEXT
)
SHAPES = st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=4).map(tuple)
KINDS: dict[type, str] = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


@QUICK
@given(
    model=TEXT,
    request_id=TEXT,
    version=st.integers(0, (1 << 63) - 1),
    inputs=st.dictionaries(TEXT, st.tuples(st.sampled_from(DATATYPES), SHAPES, st.binary(max_size=9)), max_size=4),
    outputs=st.lists(TEXT, max_size=3, unique=True),
    parameters=st.dictionaries(TEXT.map(lambda key: f"own_{key}"), VALUES, max_size=3),
    timeout=st.integers(0, (1 << 63) // 1000 - 1),
    priority=st.integers(0, (1 << 64) - 1),
)
def test_requests_are_read_as_they_were_written(
    model: str,
    request_id: str,
    version: int,
    inputs: dict[str, tuple[str, tuple[int, ...], bytes]],
    outputs: list[str],
    parameters: dict[str, bool | int | float | str],
    timeout: int,
    priority: int,
) -> None:
    message = ModelInferRequest(model_name=model, id=request_id, model_version=str(version) if version else "")
    for name, (datatype, shape, data) in inputs.items():
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(data)
    for name in outputs:
        message.outputs.add(name=name)
    for key, value in parameters.items():
        message.parameters[key].CopyFrom(InferParameter(**{KINDS[type(value)]: value}))
    message.parameters["timeout"].int64_param = timeout
    message.parameters["priority"].uint64_param = priority

    request = decode_request(message.SerializeToString())

    assert (request.model, request.id, request.version) == (model, request_id, version)
    assert {n: (t.datatype, t.shape, bytes(t.data)) for n, t in request.inputs.items() if isinstance(t, RawTensor)} == inputs
    assert list(request.inputs) == list(inputs)
    assert request.outputs == tuple(outputs)
    assert request.parameters == parameters
    assert (request.timeout_ns, request.priority) == (1000 * timeout, priority)


@QUICK
@given(st.sampled_from(DATATYPES), st.lists(st.integers(0, 3), max_size=3).map(tuple), st.integers(0, 99))
def test_responses_are_read_as_they_were_written(datatype: str, shape: tuple[int, ...], seed: int) -> None:
    random = np.random.default_rng(seed)
    count = math.prod(shape)
    words = [random.bytes(int(random.integers(0, 5))) for _ in range(count)]
    array = None if datatype == "BYTES" else np.frombuffer(random.bytes(count * DTYPES[datatype].itemsize), DTYPES[datatype])
    tensor = BytesTensor.of(words, shape) if array is None else array.reshape(shape)
    told = ModelInferResponse.FromString(encode_response(Response("m", 3, "r", {"y": tensor, "other": np.zeros(1, np.int8)})))
    assert (told.model_name, told.model_version, told.id) == ("m", "3", "r")
    assert [(o.name, o.datatype, tuple(o.shape)) for o in told.outputs] == [("y", datatype, shape), ("other", "INT8", (1,))]
    raw, other = told.raw_output_contents
    assert other == b"\0"
    if array is None:
        assert parse(raw) == words
    else:
        assert bits(np.frombuffer(raw, DTYPES[datatype])) == bits(array)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_message_with_damage_is_read_or_refused(data: st.DataObject) -> None:
    message = ModelInferRequest(model_name="m", model_version="1", id="r", raw_input_contents=[b"\1\2", wire([b"word"])])
    message.inputs.add(name="a", datatype="INT8", shape=[2]).parameters["shared_memory_offset"].int64_param = 3
    message.inputs.add(name="b", datatype="BYTES", shape=[1])
    message.inputs.add(name="c", datatype="INT16", shape=[1]).contents.int_contents.append(7)
    message.parameters["priority"].int64_param = 3
    payload = bytearray(message.SerializeToString())
    for at in data.draw(st.lists(st.integers(0, len(payload) - 1), max_size=4)):
        payload[at] = data.draw(st.integers(0, 255))
    try:
        decode_request(bytes(payload[: data.draw(st.integers(0, len(payload)))]))
    except HeadraceError as error:
        assert error.message


@QUICK
@given(st.one_of(TEXT, st.integers().map(str), st.text("0123456789 +-x", max_size=24)))
def test_any_version_is_read_or_refused(text: str) -> None:
    try:
        assert 0 <= decode_version(text) < 1 << 63
    except InvalidRequest as error:
        assert text in error.message
