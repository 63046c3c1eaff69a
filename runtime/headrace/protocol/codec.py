"""Messages to requests, responses to messages. Reads what is written; whether it suits the model is for `validate`.

Messages are Triton's; those of the front end carry no request id.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from headrace.errors import InvalidRequest, RegionFailed, RegionNotFound, request_prefix
from headrace.protocol.headrace_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from headrace.protocol.placement import Placement, placement_of
from headrace.protocol.validate import encode_bytes, encode_tensor
from headrace.request import Parameter, Request, Response, Window, Windows
from headrace.request import Sequence as SequencePlace
from headrace.tensor import BytesTensor, RawTensor, Tensor, datatype_of

MAX_MESSAGE_BYTES = (1 << 31) - 1

_MAX_INT64 = (1 << 63) - 1
_EMPTY_FINAL = "triton_enable_empty_final_response"


class _Typed(NamedTuple):
    """A field of typed contents: its datatype in messages, the datatypes it may carry, and how each is laid out."""

    told: str
    layouts: Mapping[str, str]


_TYPED = {
    "bool_contents": _Typed("BOOL", {"BOOL": "?"}),
    "int_contents": _Typed("INT32", {"INT8": "<i4", "INT16": "<i4", "INT32": "<i4"}),
    "int64_contents": _Typed("INT64", {"INT64": "<i8"}),
    "uint_contents": _Typed("UINT32", {"UINT8": "<u4", "UINT16": "<u4", "UINT32": "<u4"}),
    "uint64_contents": _Typed("UINT64", {"UINT64": "<u8"}),
    "fp32_contents": _Typed("FP32", {"FP32": "<f4"}),
    "fp64_contents": _Typed("FP64", {"FP64": "<f8"}),
    "bytes_contents": _Typed("BYTES", {"BYTES": ""}),
}
_NARROW = {"INT8": "<i1", "INT16": "<i2", "UINT8": "u1", "UINT16": "<u2"}


def decode_request(payload: bytes, windows: Windows | None = None, forwarded: Mapping[str, str] | None = None) -> Request:
    """A `ModelInferRequest`; stamps and deadline are left to the transport.

    Args:
        payload: the message.
        windows: shared memory. Inputs that are there are copied, once and now; without it, there is none.
        forwarded: parameters out of the call's headers. They win: whoever sets headers on the way is trusted more.

    Raises:
        InvalidRequest: it is not one, or contradicts itself; the message names what and where.
        RegionNotFound: a tensor is to be in a region that nobody registered.
    """
    try:
        message = ModelInferRequest.FromString(payload)
    except DecodeError:
        raise InvalidRequest(f"the {len(payload)} bytes received are not a ModelInferRequest message") from None
    return read_request(message, message.raw_input_contents, windows, forwarded)


def read_request(
    message: ModelInferRequest,
    raw: Sequence[bytes],
    windows: Windows | None = None,
    forwarded: Mapping[str, str] | None = None,
) -> Request:
    """`decode_request` for a message that is there already; its raw contents may be somewhere else.

    Raises:
        InvalidRequest, RegionNotFound: see `decode_request`.
    """
    model, request_id = message.model_name, message.id
    version = decode_version(message.model_version)
    # Most requests have neither parameters nor a choice of outputs; protobuf tells that for less than it reads them.
    special, parameters = _decode_parameters(message.parameters) if message.parameters else ({}, {})
    inputs = _decode_inputs(message, raw, windows)
    outputs = _decode_outputs(message, windows) if message.outputs else _Outputs((), {}, {})
    return Request(
        model,
        inputs,
        version,
        outputs.names,
        request_id,
        {**parameters, **forwarded} if forwarded else parameters,
        timeout_ns=special.get("timeout", 0) * 1000,
        priority=special.get("priority", 0),
        sequence=_sequence(special),
        wants_empty_final=special.get(_EMPTY_FINAL, False),
        classes=outputs.classes,
        placed=outputs.placed,
    )


def decode_version(text: str) -> int:
    """A version as the protocol writes it; empty is 0, the default.

    Raises:
        InvalidRequest: it is no number, or none of a version.
    """
    if not text:
        return 0
    found = re.match(r"\s*([+-]?\d{1,20})(?!\d)", text)
    if found is None or abs(int(found[1])) > _MAX_INT64:
        raise InvalidRequest(
            f"failed to get model version from specified version string '{text}' (details: stol), "
            "version should be an integral value > 0"
        )
    if int(found[1]) <= 0:
        raise InvalidRequest(f"invalid model version specified '{text}' , version should be an integral value > 0")
    return int(found[1])


def encode_response(response: Response) -> bytes:
    """A `ModelInferResponse`: always raw contents, one entry an output, in the same order; empty for one in shared memory.

    Raises:
        InvalidRequest: it would be larger than gRPC can carry, or shared memory is not there any more.
        RegionFailed: an output does not fit into its shared memory.
    """
    message = ModelInferResponse(model_name=response.model, model_version=str(response.version), id=response.id)
    size = 0
    for name, tensor in response.outputs.items():
        message.outputs.add(name=name, datatype=datatype_of(tensor), shape=tensor.shape)
        if name in response.placed:
            place_output(name, tensor, response.placed[name])
            message.raw_output_contents.append(b"")
            continue
        size += tensor.nbytes
        if size > MAX_MESSAGE_BYTES:
            raise InvalidRequest(f"Response has byte size {size} which exceeds gRPC's byte size limit {MAX_MESSAGE_BYTES}.")
        message.raw_output_contents.append(encode_tensor(tensor))
    return message.SerializeToString()


def place_output(name: str, tensor: Tensor, window: Window) -> None:
    """Write an output to shared memory, in the form it has on the wire.

    Raises:
        RegionFailed: it does not fit.
        InvalidRequest: the memory is not there any more.
    """
    if isinstance(tensor, BytesTensor):
        data: bytes | memoryview = encode_bytes(tensor)
    else:
        data = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
    if len(data) > window.byte_size:
        raise RegionFailed(
            f"shared memory size specified with the request for output '{name}' ({window.byte_size} bytes) should be at least "
            f"{len(data)} bytes to hold the results"
        )
    window.write(data)


def read_inputs(placed: Mapping[str, Window]) -> dict[str, memoryview]:
    """Copies of the inputs of one request that are in shared memory.

    Raises:
        InvalidRequest: they are larger than a message may be, or not there any more.
    """
    size = sum(window.byte_size for window in placed.values())
    if size > MAX_MESSAGE_BYTES:
        raise InvalidRequest(f"the inputs in shared memory have {size} bytes, a request may have {MAX_MESSAGE_BYTES}")
    return {name: window.read() for name, window in placed.items()}


def _decode_inputs(message: ModelInferRequest, raw: Sequence[bytes], windows: Windows | None) -> dict[str, RawTensor]:
    inputs: dict[str, RawTensor] = {}
    placed: dict[str, Window] = {}
    contents = iter(raw)
    for tensor in message.inputs:
        name = tensor.name
        if name in inputs:
            raise InvalidRequest(f"{request_prefix(message.id)}input '{name}' already exists in request")
        if tensor.parameters and (placement := placement_of(tensor.parameters, name)) is not None:
            if tensor.HasField("contents"):
                told = f"unexpected 'content' provided when using shared memory for input tensor {_what(name, message)}"
                raise InvalidRequest(told)
            placed[name] = _window(windows, placement)
            data = b""
        elif not tensor.HasField("contents"):
            data = next(contents, None)
            if data is None:
                raise InvalidRequest(f"unable to find data for input tensor {_what(name, message)} in request.")
        elif raw:
            told = f"contents field must not be specified when using raw_input_contents for {_what(name, message)}"
            raise InvalidRequest(told)
        else:
            data = _typed_contents(tensor.contents, tensor.datatype, _what(name, message))
        inputs[name] = RawTensor(tensor.datatype, tuple(tensor.shape), data)
    if placed:
        for name, copy in read_inputs(placed).items():
            inputs[name] = inputs[name]._replace(data=copy)
    return inputs


def _what(name: str, message: ModelInferRequest) -> str:
    return f"'{name}' for model '{message.model_name}'"


def _window(windows: Windows | None, placement: Placement) -> Window:
    if windows is None:
        raise RegionNotFound(placement.region)
    return windows.window(*placement)


def _typed_contents(contents: Any, datatype: str, what: str) -> bytes:
    """Typed contents in their raw form, so that everything after this line knows one form only."""
    given = [field.name for field, _ in contents.ListFields()]
    if not given:
        return b""
    if len(given) > 1:
        raise InvalidRequest(f"unexpected explicit tensor data for input tensor {what}, binary data was already supplied.")
    field = _TYPED[given[0]]
    if datatype not in field.layouts:
        raise InvalidRequest(
            f"unexpected explicit tensor data for input tensor {what} of type '{field.told}', expected datatype '{datatype}'"
        )
    values = getattr(contents, given[0])
    if datatype == "BYTES":
        return encode_bytes(BytesTensor.of(values))
    array = np.array(values, field.layouts[datatype])
    return (array.astype(_NARROW[datatype]) if datatype in _NARROW else array).tobytes()


class _Outputs(NamedTuple):
    """What is wanted: names, and by name how many classes, and where to write it."""

    names: tuple[str, ...]
    classes: dict[str, int]
    placed: dict[str, Window]


def _decode_outputs(message: ModelInferRequest, windows: Windows | None) -> _Outputs:
    names: dict[str, None] = {}
    classes: dict[str, int] = {}
    placed: dict[str, Window] = {}
    for output in message.outputs:
        name = output.name
        if name in names:
            raise InvalidRequest(f"{request_prefix(message.id)}output '{name}' already exists in request")
        names[name] = None
        if not output.parameters:
            continue
        placement = placement_of(output.parameters, name)
        count = _classes(output.parameters)
        if placement is not None and count is not None:
            raise InvalidRequest("output can't set both 'shared_memory_region' and 'classification'")
        if count is not None:
            classes[name] = count
        if placement is not None:
            placed[name] = _window(windows, placement)
    if len(placed) > 1:
        check_apart(placed)
    return _Outputs(tuple(names), classes, placed)


def check_apart(placed: Mapping[str, Window]) -> None:
    """Two outputs in the same bytes would be the half of one and the half of the other.

    Raises:
        InvalidRequest: they overlap.
    """
    for (one, first), (other, second) in itertools.combinations(placed.items(), 2):
        if first.overlaps(second):
            raise InvalidRequest(f"outputs '{one}' and '{other}' overlap in shared memory")


def _classes(parameters: Mapping[str, InferParameter]) -> int | None:
    parameter = parameters.get("classification")
    if parameter is None:
        return None
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        raise InvalidRequest("invalid value type for 'classification' parameter, expected int64_param")
    if parameter.int64_param <= 0:
        raise InvalidRequest("invalid value for 'classification' parameter, expected >= 0")
    return parameter.int64_param


def _decode_parameters(given: Mapping[str, InferParameter]) -> tuple[dict[str, Any], dict[str, Parameter]]:
    """Those with a meaning of their own, and those for the model."""
    special: dict[str, Any] = {}
    others: dict[str, Parameter] = {}
    for key in given:  # `items` of a protobuf map goes through the abstract base classes, and costs as much as all the rest
        parameter = given[key]
        kind = parameter.WhichOneof("parameter_choice")
        if key in _SPECIAL:
            allowed, told = _SPECIAL[key]
            if kind not in allowed:
                raise InvalidRequest(f"invalid value type for '{key}' parameter, expected {told}.")
            special[key] = getattr(parameter, kind)
        elif key.startswith("triton_"):
            raise InvalidRequest(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with "
                f"'triton_' are allowed: {_EMPTY_FINAL}"
            )
        elif kind in ("bool_param", "int64_param", "string_param", "double_param"):
            others[key] = getattr(parameter, kind)
        else:
            raise InvalidRequest(f"invalid value type for '{key}' parameter, expected int64_param, bool_param, or string_param.")
    if special.get("priority", 0) < 0:
        raise InvalidRequest("invalid value for 'priority', expected value >= 0.")
    if not 0 <= special.get("timeout", 0) <= _MAX_INT64 // 1000:
        raise InvalidRequest(f"invalid value for 'timeout', expected microseconds >= 0, got {special['timeout']}.")
    return special, others


_SPECIAL: Mapping[str, tuple[Sequence[str], str]] = {
    "sequence_id": (("int64_param", "string_param"), "int64_param or string_param"),
    "sequence_start": (("bool_param",), "bool_param"),
    "sequence_end": (("bool_param",), "bool_param"),
    "priority": (("int64_param", "uint64_param"), "int64_param or uint64_param"),
    "timeout": (("int64_param",), "int64_param"),
    _EMPTY_FINAL: (("bool_param",), "bool_param"),
}


def _sequence(special: Mapping[str, Any]) -> SequencePlace | None:
    sequence_id = special.get("sequence_id", 0)
    if not sequence_id:
        return None
    return SequencePlace(sequence_id, special.get("sequence_start", False), special.get("sequence_end", False))
