"""Inference over REST V2: bodies to requests, responses to bodies, with the binary tensor extension.

A body becomes the same `ModelInferRequest` that gRPC brings, tensors in their raw form beside it, so that `codec` reads both
and says the same about them. Only what REST alone can get wrong is refused here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from headrace.errors import InvalidRequest
from headrace.model import ModelSpec
from headrace.protocol.codec import place_output, read_request
from headrace.protocol.headrace_pb2 import InferParameter, ModelInferRequest
from headrace.protocol.rest_json import data_of, elements_of, encode_json, parse_object
from headrace.protocol.validate import encode_tensor
from headrace.request import Request, Response, Windows
from headrace.tensor import DTYPES, datatype_of

MAX_INPUT_BYTES = 1 << 26
"""The default of `--http-max-input-size`."""

_FIELDS = ("data", "binary_data_size", "shared_memory_region")
_MISSING_HEADER = (
    "must specify valid 'Infer-Header-Content-Length' in request header and 'binary_data_size' when passing inputs in binary "
    "data format"
)
_MAX_INT64, _MAX_UINT64 = (1 << 63) - 1, (1 << 64) - 1


class Inference(NamedTuple):
    """A request, and in which form its outputs are wanted."""

    request: Request
    binary: Mapping[str, bool]
    binary_default: bool


class Encoded(NamedTuple):
    """The body of an answer. `json_bytes` is the length of its JSON where binary data follows, else None."""

    body: bytes
    json_bytes: int | None


def decode_header_length(given: str | None, size: int) -> int | None:
    """`Inference-Header-Content-Length` of a body of `size` bytes; None where it was not given.

    Raises:
        InvalidRequest: it is no number, or out of range.
    """
    if given is None:
        return None
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", given):
        raise InvalidRequest(f"Unable to parse Inference-Header-Content-Length, got: {given}")
    if not 0 <= int(given) <= size:
        raise InvalidRequest(f"inference header size should be in range (0, {size}), got: {int(given)}")
    return int(given)


def too_large(size: int, limit: int) -> InvalidRequest:
    """What is said about more JSON, or more raw body, than `limit` bytes."""
    return InvalidRequest(
        f"request JSON size of {size} bytes exceeds the maximum allowed input size of {limit} bytes. "
        "Use --http-max-input-size to increase the limit."
    )


def decode_inference(
    body: bytes, header: int | None, spec: ModelSpec, version: str, max_bytes: int, windows: Windows | None = None
) -> Inference:
    """The body of an `infer` call; stamps are left to the transport.

    Args:
        body: all of it, not compressed.
        header: how many bytes of it are JSON: None for all; 0 for none, it is then the one input of the model.
        spec: the version it is for; only a raw body needs it.
        version: as the path has it, empty for the default.
        max_bytes: of JSON, of each tensor in it, and of a raw body.
        windows: shared memory; without it, there is none.

    Raises:
        HeadraceError: it is none, or contradicts itself; the message names what and where.
    """
    json_bytes = len(body) if header is None else header
    if (json_bytes or len(body)) > max_bytes:
        raise too_large(json_bytes or len(body), max_bytes)
    message = ModelInferRequest(model_name=spec.name, model_version=version)
    if header == 0:
        raw, binary, default = [_raw_input(message, body, spec)], {}, True
        return Inference(read_request(message, raw, windows), binary, default)
    asked = parse_object(memoryview(body)[:json_bytes])
    try:
        message.id = _member(asked, "id", str, "the request", "")
        parameters = dict(_member(asked, "parameters", dict, "the request", {}))
        default = _flag(parameters, "binary_data_output", "the request")
        _fill_parameters(message.parameters, parameters)
        raw = _Tensors(memoryview(body)[json_bytes:], header is not None, spec.name, max_bytes).read(message, asked)
        binary = _fill_outputs(message, asked)
    except UnicodeEncodeError:
        raise InvalidRequest("the request JSON holds text that is not Unicode: half of a surrogate pair") from None
    return Inference(read_request(message, raw, windows), binary, default)


def encode_inference(response: Response, asked: Inference) -> Encoded:
    """The body that answers `asked`.

    Raises:
        InvalidRequest: JSON cannot carry what an output holds, or shared memory is not there any more.
        RegionFailed: an output does not fit into its shared memory.
    """
    answer: dict[str, Any] = {"id": response.id} if response.id else {}
    answer |= {"model_name": response.model, "model_version": str(response.version), "outputs": []}
    binary: list[bytes] = []
    for name, tensor in response.outputs.items():
        output: dict[str, Any] = {"name": name, "datatype": datatype_of(tensor), "shape": list(tensor.shape)}
        if name in response.placed:
            place_output(name, tensor, response.placed[name])
        elif asked.binary.get(name, asked.binary_default):
            binary.append(encode_tensor(tensor))
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            output["data"] = data_of(tensor, name)
        answer["outputs"].append(output)
    header = encode_json(answer)
    return Encoded(b"".join((header, *binary)), len(header) if binary else None)


class _Tensors:
    """Reads the inputs of a request, and the binary data that follows its JSON, once and in order."""

    def __init__(self, data: memoryview, has_header: bool, model: str, max_bytes: int) -> None:
        self._data, self._has_header, self._model, self._max_bytes = data, has_header, model, max_bytes

    def read(self, message: ModelInferRequest, asked: Mapping[str, Any]) -> list[bytes]:
        """Fill `message.inputs`; the contents of those that are not in shared memory, in order."""
        if "inputs" not in asked:
            raise InvalidRequest("Unable to parse 'inputs': the request has none")
        raw: list[bytes] = []
        for position, given in enumerate(_member(asked, "inputs", list, "the request", [])):
            where = f"inputs[{position}]"
            if not isinstance(given, dict):
                raise InvalidRequest(f"Unable to parse 'inputs': {where} must be an object")
            contents = self._input(message, given, where)
            if contents is not None:
                raw.append(contents)
        if len(self._data):
            raise InvalidRequest(f"unexpected additional input data for model '{self._model}'")
        return raw

    def _input(self, message: ModelInferRequest, given: Mapping[str, Any], where: str) -> bytes | None:
        name = _member(given, "name", str, where)
        datatype, shape = _member(given, "datatype", str, where), _shape(given, where)
        parameters = dict(_member(given, "parameters", dict, where, {}))
        _check_one_source(given, parameters)
        size = parameters.pop("binary_data_size", None)
        tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
        _fill_parameters(tensor.parameters, parameters)
        if size is not None:
            return self._binary(size, name)
        return elements_of(given["data"], datatype, shape, name, self._max_bytes) if "data" in given else None

    def _binary(self, size: object, name: str) -> bytes:
        if not self._has_header:
            raise InvalidRequest(_MISSING_HEADER)
        if type(size) is not int or size < 0:
            raise InvalidRequest(f"Unable to parse 'binary_data_size' of input '{name}': it must be a whole number of bytes")
        if size > len(self._data):
            missing = size - len(self._data)
            raise InvalidRequest(
                f"unexpected size for input '{name}', expecting {missing} additional bytes for model '{self._model}'"
            )
        # A copy, because JSON before it may be of any length, and backends need elements that are aligned.
        contents, self._data = bytes(self._data[:size]), self._data[size:]
        return contents


def _raw_input(message: ModelInferRequest, body: bytes, spec: ModelSpec) -> bytes:
    """A body without JSON is the one input of the model; its shape follows from its size."""
    if len(spec.inputs) != 1:
        raise InvalidRequest(
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(spec.inputs)} inputs in '{spec.name}' "
            "model configuration"
        )
    (given,) = spec.inputs
    shape = [1, *given.dims] if spec.max_batch_size > 0 else list(given.dims)
    variable = [axis for axis, size in enumerate(shape) if size == -1]
    if len(variable) > 1:
        raise InvalidRequest(
            f"Shape of the raw input '{given.name}' cannot be deduced: {len(variable)} of its dimensions vary in the model "
            f"configuration of '{spec.name}'"
        )
    contents = body
    if given.datatype == "BYTES":
        for axis in variable:
            shape[axis] = 1
        if math.prod(shape) != 1:
            raise InvalidRequest(f"For BYTES datatype raw input '{given.name}', the model must have input shape [1]")
        contents = len(body).to_bytes(4, "little") + body
    elif variable:
        row = math.prod(size for size in shape if size != -1) * DTYPES[given.datatype].itemsize
        shape[variable[0]] = len(body) // row if row else 0
    message.inputs.add(name=given.name, datatype=given.datatype, shape=shape)
    return contents


def _fill_outputs(message: ModelInferRequest, asked: Mapping[str, Any]) -> dict[str, bool]:
    """Fill `message.outputs`; which of them are to be binary, where the request says so."""
    binary: dict[str, bool] = {}
    for position, given in enumerate(_member(asked, "outputs", list, "the request", [])):
        where = f"outputs[{position}]"
        if not isinstance(given, dict):
            raise InvalidRequest(f"Unable to parse 'outputs': {where} must be an object")
        name = _member(given, "name", str, where)
        parameters = dict(_member(given, "parameters", dict, where, {}))
        if "shared_memory_region" in parameters:
            for other in ("classification", "binary_data"):
                if parameters.get(other):
                    raise InvalidRequest(f"Output can't set both 'shared_memory_region' and '{other}'")
        if "binary_data" in parameters:
            binary[name] = _flag(parameters, "binary_data", where)
        _fill_parameters(message.outputs.add(name=name).parameters, parameters)
    return binary


def _fill_parameters(target: Any, given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key.startswith("triton_"):
            raise InvalidRequest(
                "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
            )
        target[key].CopyFrom(_parameter(key, value))


def _parameter(key: str, value: object) -> InferParameter:
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, int) and -_MAX_INT64 - 1 <= value <= _MAX_UINT64:
        return InferParameter(int64_param=value) if value <= _MAX_INT64 else InferParameter(uint64_param=value)
    if isinstance(value, float) and math.isfinite(value):
        return InferParameter(double_param=value)
    if isinstance(value, str):
        return InferParameter(string_param=value)
    if isinstance(value, (int, float)):
        raise InvalidRequest(f"invalid value for '{key}' parameter: the number is out of range")
    raise InvalidRequest(f"invalid value type for '{key}' parameter, expected a number, true or false, or text.")


def _check_one_source(given: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    have = [f"'{field}'" for field in _FIELDS if field in (given if field == "data" else parameters)]
    if len(have) != 1:
        told = f" set {' '.join(have)}" if have else " But no field is set"
        raise InvalidRequest(
            "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
            f"'shared_memory_region' in 'parameters'.{told}"
        )


def _shape(given: Mapping[str, Any], where: str) -> Sequence[int]:
    shape = _member(given, "shape", list, where)
    if any(type(size) is not int or not -_MAX_INT64 - 1 <= size <= _MAX_INT64 for size in shape):
        raise InvalidRequest(f"Unable to parse 'shape' of {where}: it must be a list of whole numbers")
    return shape


def _flag(parameters: dict[str, Any], key: str, where: str) -> bool:
    """Take a parameter that is for REST, not for the model; False where it is not given."""
    value = parameters.pop(key, False)
    if type(value) is not bool:
        raise InvalidRequest(f"Unable to parse '{key}' of {where}: it must be true or false")
    return value


_NAMES = {str: "text", list: "a list", dict: "an object"}


def _member(value: Mapping[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    """`value[key]`, which must be there if there is no default, and of this kind."""
    found = value.get(key, default)
    if not isinstance(found, kind):
        problem = "must be" if key in value else "is missing; it must be"
        raise InvalidRequest(f"Unable to parse '{key}' of {where}: it {problem} {_NAMES[kind]}")
    return found
