"""The one judge of inference requests: what a version declares against what a request brings.

Every way in goes through it, and kernels/ is tested against it. The order of the checks and the messages are Triton's.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.errors import InvalidRequest, request_prefix
from headrace.model import ModelSpec
from headrace.protocol.classification import check_classes
from headrace.protocol.padding import Lengths, Shape
from headrace.request import Request
from headrace.tensor import DTYPES, BytesTensor, RawTensor, Tensor, TensorSpec, bytes_of, datatype_of, format_shape

_BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input "
    "shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)
_LENGTH = struct.Struct("<I")
_ADDRESSABLE = 1 << 47
"""Bytes that a process can address on the machines there are."""
_FNV_BASIS, _FNV_PRIME = 0xCBF2_9CE4_8422_2325, 0x100_0000_01B3
_WORD = _LEFT_OUT = (1 << 64) - 1


@lru_cache(4096)
def bucket_of(shapes: tuple[Shape | None, ...]) -> int:
    """The number of a bucket: the same here, in kernels/ and in profiles on disk.

    FNV-1a (Fowler, Noll, Vo) over 64-bit words: of each declared input its rank and its sizes without the batch dimension, or
    all ones for an optional input that was left out.
    """
    number = _FNV_BASIS
    for shape in shapes:
        for word in (_LEFT_OUT,) if shape is None else (len(shape), *shape):
            number = (number ^ word) * _FNV_PRIME & _WORD
    return number


class Admitted(NamedTuple):
    """A request that its model can run.

    `inputs` are in the model's order, as the model sees them (reshaped). `rows` is the size of the batch dimension, 1 without
    one. Requests with equal `shapes` may share a batch; `bucket` is their number. `outputs` are in the order of the answer.
    `length` is that of padded inputs, and `padded` what they are padded to, which `shapes` has instead; both 0 without padding.
    """

    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    rows: int
    shapes: tuple[Shape | None, ...]
    nbytes: int
    length: int = 0
    padded: int = 0

    @property
    def bucket(self) -> int:
        """See `bucket_of`."""
        return bucket_of(self.shapes)


class Validator:
    """Judges the requests for one version."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._inputs = {i.name: i for i in spec.inputs}
        self._outputs = {o.name: o for o in spec.outputs}
        self._all_outputs = tuple(self._outputs)
        self._required = tuple(i.name for i in spec.inputs if not i.optional)
        self._batches = spec.max_batch_size > 0
        self._lengths = Lengths(spec) if spec.padding is not None else None

    def admit(self, request: Request) -> Admitted:
        """Check a request and decode its tensors.

        Raises:
            InvalidRequest: with Triton's message, which names the tensor and both values.
        """
        for name in request.outputs:
            if name not in self._outputs:
                raise InvalidRequest(f"unexpected inference output '{name}' for model '{self._spec.name}'")
        for name in request.classes:
            check_classes(self._outputs[name].datatype)
        self._check_names(request)
        rows = self._check_batch(request) if self._batches else 1
        inputs: dict[str, Tensor] = {}
        shapes: list[Shape | None] = []
        nbytes = 0
        for spec in self._spec.inputs:
            given = request.inputs.get(spec.name)
            if given is None:
                shapes.append(None)
                continue
            tensor = self._admit_input(request, spec, given)
            inputs[spec.name] = tensor
            shapes.append(tensor.shape[1:] if self._batches else tensor.shape)
            nbytes += tensor.nbytes
        outputs = request.outputs or self._all_outputs
        if self._lengths is None:
            return Admitted(inputs, outputs, rows, tuple(shapes), nbytes)
        length, padded = self._lengths.judge(request.id, inputs)
        seen = self._lengths.seen(tuple(shapes), padded) if padded else tuple(shapes)
        return Admitted(inputs, outputs, rows, seen, nbytes, length, padded)

    def _check_names(self, request: Request) -> None:
        given = request.inputs
        if given.keys() == self._inputs.keys():
            return
        if not len(self._required) <= len(given) <= len(self._inputs):
            raise self._wrong_inputs(request)
        for name in given:
            if name not in self._inputs:
                raise InvalidRequest(f"unexpected inference input '{name}' for model '{self._spec.name}'")
        # Optional inputs can make up the number; Triton leaves those requests to the backend.
        if not all(name in given for name in self._required):
            raise self._wrong_inputs(request)

    def _wrong_inputs(self, request: Request) -> InvalidRequest:
        given = request.inputs
        missing = [name for name in self._required if name not in given]
        expected = (
            f"expected {len(self._inputs)} inputs"
            if len(self._required) == len(self._inputs)
            else f"expected number of inputs between {len(self._required)} and {len(self._inputs)}"
        )
        # Triton's list loses its opening bracket when nothing is missing; clients match on the text as it is.
        lacking = f"[{_quoted(missing)}]" if missing else "]"
        return InvalidRequest(
            f"{request_prefix(request.id)}{expected} but got {len(given)} inputs for model '{self._spec.name}'. "
            f"Got input(s) [{_quoted(given)}], but missing required input(s) {lacking}. "
            "Please provide all required input(s)."
        )

    def _check_batch(self, request: Request) -> int:
        prefix, model = request_prefix, self._spec.name
        rows: int | None = None
        for name, tensor in request.inputs.items():
            if not tensor.shape:
                raise InvalidRequest(
                    f"{prefix(request.id)}input '{name}' has no shape but model requires batch dimension for '{model}'"
                )
            if rows is not None and tensor.shape[0] != rows:
                raise InvalidRequest(f"{prefix(request.id)}input '{name}' batch size does not match other inputs for '{model}'")
            rows = tensor.shape[0]
        if rows is not None and rows > self._spec.max_batch_size and not self._splits(request):
            raise InvalidRequest(
                f"{prefix(request.id)}inference request batch-size must be <= {self._spec.max_batch_size} for '{model}'"
            )
        return 1 if rows is None else rows

    def _splits(self, request: Request) -> bool:
        """Whether rows that do not fit into a batch may be taken.

        Rows without a single element cost their sender nothing, and would be as many pieces as he likes.
        """
        return self._spec.batching.splits_oversize and any(0 not in tensor.shape for tensor in request.inputs.values())

    def _admit_input(self, request: Request, spec: TensorSpec, given: Tensor | RawTensor) -> Tensor:
        prefix, model = request_prefix, self._spec.name
        datatype = given.datatype if isinstance(given, RawTensor) else datatype_of(given)
        if datatype != spec.datatype:
            raise InvalidRequest(
                f"{prefix(request.id)}inference input '{spec.name}' data-type is '{datatype}', but model '{model}' expects "
                f"'{spec.datatype}'"
            )
        shape = given.shape
        if shape and min(shape) < 0:
            raise InvalidRequest(
                f"{prefix(request.id)}All input dimensions should be specified for input '{spec.name}' for model '{model}', "
                f"got {format_shape(shape)}"
            )
        declared = (-1, *spec.dims) if self._batches else spec.dims
        if len(shape) != len(declared) or any(d not in (-1, size) for d, size in zip(declared, shape, strict=True)):
            note = _BATCH_NOTE if self._batches else ""
            raise InvalidRequest(
                f"{prefix(request.id)}unexpected shape for input '{spec.name}' for model '{model}'. "
                f"Expected {format_shape(declared)}, got {format_shape(shape)}. {note}"
            )
        if spec.reshape is not None:
            batch = shape[:1] if self._batches else ()
            shape = (*batch, *resolve_reshape(shape[len(batch) :], spec.dims, spec.reshape))
        if isinstance(given, RawTensor):
            return self._decode(request, spec, given, shape)
        return given.reshape(shape) if shape != given.shape else given

    def _decode(self, request: Request, spec: TensorSpec, raw: RawTensor, shape: tuple[int, ...]) -> Tensor:
        what = f"input '{spec.name}' for model '{self._spec.name}'"
        if 0 in shape and math.prod(size or 1 for size in shape) > _ADDRESSABLE:
            # No data, so no size gives it away; but backends multiply the other dimensions all the same.
            raise InvalidRequest(f"{request_prefix(request.id)}{what} has the impossible shape {format_shape(shape)}")
        if raw.datatype == "BYTES":
            return decode_bytes(raw.data, shape, f"inference {what}", request.id)
        dtype = DTYPES[raw.datatype]
        expected = math.prod(shape) * dtype.itemsize
        if len(raw.data) != expected:
            raise InvalidRequest(
                f"{request_prefix(request.id)}input byte size mismatch for {what}. Expected {expected}, got {len(raw.data)}"
            )
        return np.frombuffer(raw.data, dtype).reshape(shape)


def resolve_reshape(actual: Sequence[int], dims: Sequence[int], reshape: Sequence[int]) -> tuple[int, ...]:
    """`reshape` with its variable dimensions filled from `actual`, which matches `dims`: the n-th -1 of both is the same."""
    variable = iter([size for size, declared in zip(actual, dims, strict=True) if declared == -1])
    return tuple(next(variable) if size == -1 else size for size in reshape)


def decode_bytes(data: bytes | memoryview, shape: tuple[int, ...], what: str, request_id: str) -> BytesTensor:
    """Elements from the wire: each a little-endian uint32 length, then that many bytes.

    Raises:
        InvalidRequest: too few or too many elements, or a length that runs past the end.
    """
    expected, total = math.prod(shape), len(data)
    starts: list[int] = []
    lengths: list[int] = []
    at = 0
    while at < total:
        left = total - at
        if left < 4:
            raise InvalidRequest(
                f"{request_prefix(request_id)}incomplete string length indicator for {what}, expecting 4 bytes but only {left} "
                "bytes available. Please make sure the string length indicator is in one buffer."
            )
        if len(starts) == expected:
            raise InvalidRequest(
                f"{request_prefix(request_id)}unexpected number of string elements {expected + 1} for {what}, "
                f"expecting {expected}"
            )
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        if length > total - at:
            # Triton leaves this one to the backend; a length that lies must not get that far.
            raise InvalidRequest(
                f"{request_prefix(request_id)}incomplete string data for {what}, expecting string of length {length} but only "
                f"{total - at} bytes available."
            )
        starts.append(at)
        lengths.append(length)
        at += length
    if len(starts) != expected:
        raise InvalidRequest(f"{request_prefix(request_id)}expected {expected} string elements for {what}, got {len(starts)}")
    offsets = np.zeros(expected + 1, np.int64)
    np.cumsum(np.array(lengths, np.int64), out=offsets[1:])
    wire = np.frombuffer(data, np.uint8)
    return BytesTensor(shape, offsets, wire[~_length_bytes(offsets, total)] if expected else wire)


def encode_bytes(tensor: BytesTensor) -> bytes:
    """Elements to the wire; the inverse of `decode_bytes`."""
    offsets = tensor.offsets - tensor.offsets[0]
    wire = np.empty(int(offsets[-1]) + 4 * tensor.size, np.uint8)
    prefixes = _length_bytes(offsets, len(wire))
    wire[prefixes] = np.diff(offsets).astype("<u4").view(np.uint8)
    wire[~prefixes] = tensor.data[tensor.offsets[0] : tensor.offsets[-1]]
    return wire.tobytes()


def encode_tensor(tensor: Tensor) -> bytes:
    """A tensor as raw contents: little-endian, row-major, BYTES length-prefixed."""
    return encode_bytes(tensor) if isinstance(tensor, BytesTensor) else tensor.tobytes()


def on_the_wire(tensor: Tensor) -> tuple[str, Sequence[int], Any]:
    """Datatype, shape, and raw contents as a buffer: those of an array are where they were, if they lie row by row."""
    if isinstance(tensor, BytesTensor):
        return "BYTES", tensor.shape, encode_bytes(tensor)
    return datatype_of(tensor), tensor.shape, bytes_of(tensor)


def _length_bytes(offsets: NDArray[np.int64], total: int) -> NDArray[np.bool_]:
    """Which bytes of the wire form belong to the length prefixes."""
    is_prefix = np.zeros(total, np.bool_)
    begins = offsets[:-1] + 4 * np.arange(len(offsets) - 1)
    is_prefix[(begins[:, None] + np.arange(4)).reshape(-1)] = True
    return is_prefix


def _quoted(names: Iterable[str]) -> str:
    return ",".join(f"'{name}'" for name in names)
