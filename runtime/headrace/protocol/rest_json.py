"""JSON as REST V2 has it: what a body says, and what a tensor or a message is in it.

Python's parser takes more than JSON is (NaN, any depth) and numpy more than a datatype holds; both are refused here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from headrace.errors import InvalidRequest
from headrace.protocol.pool import POOL
from headrace.protocol.validate import encode_bytes
from headrace.tensor import DTYPES, BytesTensor, Tensor, datatype_of, format_shape

MAX_DEPTH = 100
"""Objects and lists inside each other; as Triton."""

_RAW_ONLY = ("FP16", "BF16")
_INT64 = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def parse_object(body: bytes | memoryview) -> dict[str, Any]:
    """The JSON object that a body is; an empty body is an empty one.

    Raises:
        InvalidRequest: it is no JSON, no object, or too deep.
    """
    if not len(body):
        return {}
    try:
        value = json.loads(str(body, "utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        known = isinstance(error, (json.JSONDecodeError, UnicodeDecodeError, _NoConstant))
        told = str(error) if known else "a number has thousands of digits"
        raise InvalidRequest(f"failed to parse the request JSON buffer: {told}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"the request JSON must be an object, got {_told(value)}")
    _check_depth(value)
    return value


def encode_json(value: object) -> bytes:
    """JSON text, without blanks."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def elements_of(data: object, datatype: str, shape: Sequence[int], name: str, max_bytes: int) -> bytes:
    """The raw form of the JSON `data` of input `name`: nested as `shape`, or flat.

    Raises:
        InvalidRequest: the datatype has no JSON form, `data` is nested otherwise or has too few or too many elements, an
            element is of the wrong kind or out of range, or there are more than `max_bytes` bytes.
    """
    if datatype in _RAW_ONLY:
        raise InvalidRequest(
            f"receiving {datatype} data via JSON is not supported. Please use the binary data format for input {name}"
        )
    if datatype not in DTYPES and datatype != "BYTES":
        raise InvalidRequest(f"invalid datatype for input {name}")
    flat = _flat(data, shape, name)
    if datatype == "BYTES":
        _check_kinds(flat, {str}, datatype, name)
        raw = encode_bytes(BytesTensor.of(flat))
        _check_size(len(raw), name, max_bytes)
        return raw
    _check_size(len(flat) * DTYPES[datatype].itemsize, name, max_bytes)
    return _array(flat, datatype, name).tobytes()


def data_of(tensor: Tensor, name: str) -> list[Any]:
    """The elements of output `name` for JSON, row-major.

    Raises:
        InvalidRequest: JSON has no form for its datatype, or for one of its elements.
    """
    datatype = datatype_of(tensor)
    if isinstance(tensor, BytesTensor):
        try:
            return [element.decode() for element in tensor.objects().flat]
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"output '{name}' holds bytes that are not UTF-8, which JSON cannot carry. Please use the binary data format"
            ) from None
    if datatype in _RAW_ONLY:
        raise InvalidRequest(f"sending {datatype} data via JSON is not supported. Please use the binary data format for output")
    if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
        raise InvalidRequest(f"output '{name}' holds NaN or Infinity, which JSON cannot carry. Please use the binary data format")
    return tensor.reshape(-1).tolist()


def message_to_json(message: Message) -> dict[str, Any]:
    """A message with its fields' own names, every field without presence printed, and 64-bit numbers as numbers.

    protobuf prints those as strings; Triton does not, in metadata, statistics, and each 64-bit field that a `ModelConfig` has.
    """
    value = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, descriptor_pool=POOL
    )
    return _numbers(value, message.DESCRIPTOR)


def _numbers(value: dict[str, Any], of: Any) -> dict[str, Any]:
    return {name: _number(item, of.fields_by_name[name]) for name, item in value.items()}


def _number(value: Any, field: FieldDescriptor) -> Any:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return {key: _number(item, inner.fields_by_name["value"]) for key, item in value.items()}
    if isinstance(value, list):
        return [_number(item, field) for item in value]
    if inner is not None:
        return _numbers(value, inner) if isinstance(value, dict) else value
    return int(value) if field.cpp_type in _INT64 else value


def _flat(data: object, shape: Sequence[int], name: str) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidRequest(f"Unable to parse 'data': input '{name}' must have a list there, got {_told(data)}")
    flat: list[Any] = data
    if any(type(element) is list for element in data):
        level: list[Any] = [data]
        for depth, size in enumerate(shape):
            for element in level:
                if type(element) is not list or len(element) != size:
                    got = f"{len(element)} elements" if type(element) is list else _told(element)
                    raise InvalidRequest(
                        f"{_MISMATCH}; input '{name}' of shape {format_shape(shape)} must have lists of {size} at depth "
                        f"{depth + 1} or be flat, got {got}"
                    )
            level = list(chain.from_iterable(level))
        flat = level
    if len(flat) != math.prod(shape) and min(shape, default=0) >= 0:  # below 0 is for `validate`
        raise InvalidRequest(f"{_MISMATCH}; input '{name}' of shape {format_shape(shape)} got {len(flat)} elements")
    return flat


_MISMATCH = "Failed to parse 'data' field: shape does not match true shape"


def _array(flat: list[Any], datatype: str, name: str) -> np.ndarray[Any, Any]:
    dtype = DTYPES[datatype]
    if dtype.kind == "b":
        _check_kinds(flat, {bool}, datatype, name)
    elif dtype.kind in "iu":
        _check_kinds(flat, {int}, datatype, name)
        limits = np.iinfo(dtype)
        for extreme in (min(flat, default=0), max(flat, default=0)):
            if not limits.min <= extreme <= limits.max:
                raise _out_of_range(extreme, datatype, name)
    else:
        _check_kinds(flat, {int, float}, datatype, name)
        with np.errstate(over="ignore"):
            try:
                array = np.array(flat, np.float64).astype(dtype)
            except OverflowError:
                raise _out_of_range(max(flat, key=abs), datatype, name) from None
        if not np.isfinite(array).all():
            raise _out_of_range(flat[int(np.argmin(np.isfinite(array)))], datatype, name)
        return array
    return np.array(flat, dtype)


def _check_kinds(flat: list[Any], kinds: set[type], datatype: str, name: str) -> None:
    if not set(map(type, flat)) <= kinds:
        wrong = next(element for element in flat if type(element) not in kinds)
        raise InvalidRequest(f"Unable to parse 'data': input '{name}' of datatype {datatype} got {_told(wrong)}")


def _check_size(size: int, name: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise InvalidRequest(
            f"input '{name}' of {size} bytes exceeds the maximum allowed input size of {max_bytes} bytes. "
            "Use --http-max-input-size to increase the limit."
        )


def _out_of_range(value: float, datatype: str, name: str) -> InvalidRequest:
    told = _told(value) if isinstance(value, float) or abs(value) < 1e30 else f"a number of {len(str(abs(value)))} digits"
    return InvalidRequest(f"Unable to parse 'data': input '{name}' of datatype {datatype} got {told}, which is out of range")


def _check_depth(value: Mapping[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inside = chain.from_iterable(element.values() if type(element) is dict else element for element in level)
        level = [element for element in inside if type(element) in (dict, list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the request JSON is nested deeper than {MAX_DEPTH} levels")


class _NoConstant(ValueError):
    """NaN, Infinity or -Infinity, which Python's parser would take."""


def _refuse_constant(name: str) -> Any:
    raise _NoConstant(f"{name} is not JSON")


def _told(value: object) -> str:
    """A JSON value in a message: short, whatever it is."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
