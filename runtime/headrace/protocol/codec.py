"""Messages to requests, responses to messages. Reads what is written; whether it suits the model is for `validate`.

Messages are Triton's; those of the front end carry no request id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from headrace.errors import InvalidRequest, RegionNotFound, Unsupported, request_prefix
from headrace.protocol.headrace_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from headrace.protocol.validate import encode_bytes
from headrace.request import Parameter, Request, Response
from headrace.request import Sequence as SequencePlace
from headrace.tensor import BytesTensor, RawTensor, datatype_of

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


def decode_request(payload: bytes) -> Request:
    """A `ModelInferRequest`; stamps and deadline are left to the transport.

    Raises:
        InvalidRequest: it is not one, or contradicts itself; the message names what and where.
        RegionNotFound, Unsupported: it asks for something this server cannot do.
    """
    try:
        message = ModelInferRequest.FromString(payload)
    except DecodeError:
        raise InvalidRequest(f"the {len(payload)} bytes received are not a ModelInferRequest message") from None
    return read_request(message, message.raw_input_contents)


def read_request(message: ModelInferRequest, raw: Sequence[bytes]) -> Request:
    """`decode_request` for a message that is there already; its raw contents may be somewhere else.

    Raises:
        InvalidRequest, RegionNotFound, Unsupported: see `decode_request`.
    """
    model, request_id = message.model_name, message.id
    version = decode_version(message.model_version)
    special, parameters = _decode_parameters(message.parameters)
    return Request(
        model,
        _decode_inputs(message, raw),
        version,
        _decode_outputs(message, request_id),
        request_id,
        parameters,
        timeout_ns=special.get("timeout", 0) * 1000,
        priority=special.get("priority", 0),
        sequence=_sequence(special),
        wants_empty_final=special.get(_EMPTY_FINAL, False),
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
    """A `ModelInferResponse`: always raw contents, one entry an output, in the same order.

    Raises:
        InvalidRequest: it would be larger than gRPC can carry.
    """
    message = ModelInferResponse(model_name=response.model, model_version=str(response.version), id=response.id)
    size = 0
    for name, tensor in response.outputs.items():
        message.outputs.add(name=name, datatype=datatype_of(tensor), shape=tensor.shape)
        size += tensor.nbytes
        if size > MAX_MESSAGE_BYTES:
            raise InvalidRequest(f"Response has byte size {size} which exceeds gRPC's byte size limit {MAX_MESSAGE_BYTES}.")
        message.raw_output_contents.append(encode_bytes(tensor) if isinstance(tensor, BytesTensor) else tensor.tobytes())
    return message.SerializeToString()


def _decode_inputs(message: ModelInferRequest, raw: Sequence[bytes]) -> dict[str, RawTensor]:
    inputs: dict[str, RawTensor] = {}
    contents = iter(raw)
    for tensor in message.inputs:
        name = tensor.name
        if name in inputs:
            raise InvalidRequest(f"{request_prefix(message.id)}input '{name}' already exists in request")
        what = f"'{name}' for model '{message.model_name}'"
        if tensor.parameters and (region := _region(tensor.parameters, name)) is not None:
            if tensor.HasField("contents"):
                raise InvalidRequest(f"unexpected 'content' provided when using shared memory for input tensor {what}")
            # Nobody can register one with this server.
            raise RegionNotFound(region)
        if not tensor.HasField("contents"):
            data = next(contents, None)
            if data is None:
                raise InvalidRequest(f"unable to find data for input tensor {what} in request.")
        elif raw:
            raise InvalidRequest(f"contents field must not be specified when using raw_input_contents for {what}")
        else:
            data = _typed_contents(tensor.contents, tensor.datatype, what)
        inputs[name] = RawTensor(tensor.datatype, tuple(tensor.shape), data)
    return inputs


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


def _decode_outputs(message: ModelInferRequest, request_id: str) -> tuple[str, ...]:
    names: list[str] = []
    for output in message.outputs:
        if output.name in names:
            raise InvalidRequest(f"{request_prefix(request_id)}output '{output.name}' already exists in request")
        if output.parameters:
            if (region := _region(output.parameters, output.name)) is not None:
                raise RegionNotFound(region)
            if "classification" in output.parameters:
                raise Unsupported(f"output '{output.name}' asks for classification, which this server does not do yet")
        names.append(output.name)
    return tuple(names)


def _region(parameters: Mapping[str, InferParameter], tensor: str) -> str | None:
    """The shared-memory region that a tensor is to be read from or written to."""
    region = _region_parameter(parameters, "region", "string_param", tensor)
    for key in ("offset", "byte_size"):
        if f"shared_memory_{key}" in parameters and region is None:
            raise InvalidRequest(
                f"'shared_memory_{key}' can not be specified without 'shared_memory_region' parameter for tensor '{tensor}'"
            )
        _region_parameter(parameters, key, "int64_param", tensor)
    if region is not None and "shared_memory_byte_size" not in parameters:
        raise InvalidRequest(
            f"'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor '{tensor}'"
        )
    return region


def _region_parameter(parameters: Mapping[str, InferParameter], key: str, kind: str, tensor: str) -> Any:
    parameter = parameters.get(f"shared_memory_{key}")
    if parameter is None:
        return None
    if parameter.WhichOneof("parameter_choice") != kind:
        raise InvalidRequest(f"invalid value type for 'shared_memory_{key}' parameter for tensor '{tensor}', expected {kind}.")
    return getattr(parameter, kind)


def _decode_parameters(given: Mapping[str, InferParameter]) -> tuple[dict[str, Any], dict[str, Parameter]]:
    """Those with a meaning of their own, and those for the model."""
    special: dict[str, Any] = {}
    others: dict[str, Parameter] = {}
    for key, parameter in given.items():
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
