"""Tensors: the V2 datatypes, what a model declares, and values in memory.

A tensor is a C-contiguous numpy array or, for BYTES, a `BytesTensor`: elements stay offsets + data, as in Arrow, and become
Python objects only inside a backend that needs them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from headrace.errors import InvalidRequest

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Fixed-size datatypes by their V2 name. BYTES is the one that is missing."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model declares of one input or output.

    `dims` is what clients send or get, without the batch dimension, -1 where the size varies; `reshape` is what the model
    itself sees instead, where it differs.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    optional: bool = False
    labels: tuple[str, ...] = ()


class BytesTensor:
    """Elements of varying length: element i is `data[offsets[i]:offsets[i + 1]]`.

    `offsets` is int64 of n + 1 entries and may start above 0; `data` is uint8; `shape` has n elements, row-major.
    """

    __slots__ = ("data", "offsets", "shape")

    def __init__(self, shape: Sequence[int], offsets: NDArray[np.int64], data: NDArray[np.uint8]) -> None:
        self.shape = tuple(shape)
        self.offsets = offsets
        self.data = data

    @classmethod
    def of(cls, elements: Iterable[bytes | str], shape: Sequence[int] | None = None) -> BytesTensor:
        """From Python objects; text becomes UTF-8. `shape` defaults to one dimension."""
        encoded = [e.encode() if isinstance(e, str) else bytes(e) for e in elements]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(e) for e in encoded], out=offsets[1:])
        return cls((len(encoded),) if shape is None else shape, offsets, np.frombuffer(b"".join(encoded), np.uint8))

    @property
    def size(self) -> int:
        """How many elements."""
        return len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Bytes in memory: data and offsets."""
        return int(self.offsets[-1] - self.offsets[0]) + self.offsets.nbytes

    def reshape(self, shape: Sequence[int]) -> BytesTensor:
        """The same elements under another shape."""
        return BytesTensor(shape, self.offsets, self.data)

    def rows(self, start: int, stop: int) -> BytesTensor:
        """Rows `start` to `stop` of the first dimension, without copying."""
        width = math.prod(self.shape[1:])
        return BytesTensor((stop - start, *self.shape[1:]), self.offsets[start * width : stop * width + 1], self.data)

    def take(self, places: NDArray[np.intp]) -> BytesTensor:
        """The elements at these places, in the shape of `places`."""
        chosen = places.reshape(-1)
        begins, lengths = self.offsets[:-1][chosen], np.diff(self.offsets)[chosen]
        offsets = np.zeros(len(chosen) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        # Of each byte: how far its element has moved.
        moved = np.repeat(begins - offsets[:-1], lengths)
        return BytesTensor(places.shape, offsets, self.data[np.arange(offsets[-1]) + moved])

    def objects(self) -> NDArray[Any]:
        """The elements as Python `bytes`, in an object array of `shape`."""
        # Of some rows of a large tensor, only those.
        data = self.data[self.offsets[0] : self.offsets[-1]].tobytes()
        at = (self.offsets - self.offsets[0]).tolist()
        array = np.empty(self.size, np.object_)
        array[:] = [data[a:b] for a, b in pairwise(at)]
        return array.reshape(self.shape)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BytesTensor)
            and self.shape == other.shape
            and list(self.objects().flat) == list(other.objects().flat)
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays, like numpy's own

    def __repr__(self) -> str:
        return f"<BytesTensor {list(self.shape)}, {self.nbytes} bytes>"


class RawTensor(NamedTuple):
    """A tensor as it came over the wire: nothing checked, `data` little-endian and row-major, BYTES length-prefixed."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return len(self.data)


Tensor: TypeAlias = "NDArray[Any] | BytesTensor"


def datatype_of(tensor: Tensor) -> str:
    """The V2 name of a tensor's datatype.

    Raises:
        InvalidRequest: numpy has the dtype, V2 does not.
    """
    if isinstance(tensor, BytesTensor):
        return "BYTES"
    name = _NAMES.get(tensor.dtype)
    if name is None:
        raise InvalidRequest(f"numpy dtype '{tensor.dtype}' is no V2 datatype; the datatypes are {', '.join((*DTYPES, 'BYTES'))}")
    return name


def as_tensor(value: object) -> Tensor:
    """What `Engine.infer` accepts as one input: a tensor, or anything numpy makes an array of; text and bytes become BYTES.

    Raises:
        InvalidRequest: an object array holds something that is neither text nor bytes.
    """
    if isinstance(value, BytesTensor):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
        array = np.asarray(value, np.object_)  # numpy's own texts end at the last that is not zero
    if array.dtype.kind in "OSU":
        elements: list[Any] = array.reshape(-1).tolist()
        wrong = next((e for e in elements if not isinstance(e, (str, bytes))), None)
        if array.dtype.kind == "O" and (wrong is not None or None in elements):
            raise InvalidRequest(f"an element of a BYTES tensor is {wrong!r}; elements must be text or bytes")
        return BytesTensor.of(elements, array.shape)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)


def bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of an array: of any datatype, for some that numpy knows by courtesy only have no buffer of their own."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def rows_of(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of the first dimension, without copying."""
    return tensor.rows(start, stop) if isinstance(tensor, BytesTensor) else tensor[start:stop]


def concatenate(tensors: Sequence[Tensor]) -> Tensor:
    """Stack along the first dimension into one new, aligned buffer; one tensor is passed through as it is."""
    if len(tensors) == 1:
        return tensors[0]
    if isinstance(tensors[0], BytesTensor):
        return _concatenate_bytes([t for t in tensors if isinstance(t, BytesTensor)])
    return np.concatenate([t for t in tensors if not isinstance(t, BytesTensor)])


def _concatenate_bytes(tensors: Sequence[BytesTensor]) -> BytesTensor:
    lengths = np.concatenate([np.diff(t.offsets) for t in tensors])
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    data = np.concatenate([t.data[t.offsets[0] : t.offsets[-1]] for t in tensors])
    return BytesTensor((sum(t.shape[0] for t in tensors), *tensors[0].shape[1:]), offsets, data)


def format_shape(shape: Iterable[int]) -> str:
    """A shape the way messages print it: `[1,2048]`."""
    return "[" + ",".join(map(str, shape)) + "]"
