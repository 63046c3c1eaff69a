"""Tensors as a `model.py` has them, and what they are to this process."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import sentence
from headrace.tensor import DTYPES, BytesTensor
from headrace.tensor import Tensor as Value

_LENGTH = struct.Struct("<I")
_CPU = 1
"""The kind of device in DLPack that numpy reads; pinned memory (3) is the host's, too."""
_HOST = (_CPU, 3)


class TritonModelException(Exception):
    """What this module raises where Triton's does."""


class Tensor:
    """A named tensor. `Tensor(name, array)` makes one; those of requests are views of the memory that the server wrote."""

    __slots__ = ("_array", "_name", "_value")

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise TypeError(
                f"Tensor takes a name and a numpy array, and got {type(name).__name__} and {type(array).__name__}; "
                "use numpy.array(...)"
            )
        if array.dtype not in _NUMBERS or not array.flags.c_contiguous:
            array = _plain(array)
        self._name = name
        self._array: NDArray[Any] | None = array
        self._value: Value | None = None

    @classmethod
    def of(cls, name: str, value: Value) -> Tensor:
        """The tensor of a request."""
        made = cls.__new__(cls)
        made._name, made._value, made._array = name, value, None
        if not isinstance(value, BytesTensor):
            made._array = value
        return made

    def name(self) -> str:
        """Its name."""
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        """Its values, the same array each time. BYTES are objects of type `bytes`."""
        if self._array is None:
            assert isinstance(self._value, BytesTensor)
            self._array = self._value.objects()
        return self._array

    def shape(self) -> list[int]:
        """Its shape."""
        return list(self.value().shape if self._array is None else self._array.shape)

    def triton_dtype(self) -> int:
        """The number of its datatype in a configuration: 11 is TYPE_FP32."""
        if self._array is None:
            return _NUMBERS[np.dtype(np.object_)]
        return _NUMBERS[np.dtype(np.object_) if self._array.dtype.kind in "OS" else self._array.dtype]

    def is_cpu(self) -> bool:
        """Whether it is in the memory of the host. It always is."""
        return True

    def to_dlpack(self) -> Any:
        """A DLPack capsule of its memory."""
        return self.as_numpy().__dlpack__()

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CPU, 0)

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """A tensor of the memory that a DLPack capsule, or something that gives one, is about.

        Raises:
            TritonModelException: it is no such thing, or its memory is that of a GPU.
        """
        device: Callable[[], tuple[int, int]] | None = getattr(tensor, "__dlpack_device__", None)
        if device is not None and device()[0] not in _HOST:
            raise TritonModelException(
                f"tensor '{name}' is in the memory of a GPU, which this server does not pass on; copy it to the host, "
                "as in tensor.cpu()"
            )
        try:
            return Tensor(name, np.from_dlpack(tensor if device is not None else _Capsule(tensor)))
        except TritonModelException:
            raise
        except Exception as error:
            raise TritonModelException(f"tensor '{name}' cannot be had by DLPack: {sentence(error)}") from error

    def value(self) -> Value:
        """The tensor as it goes to the server."""
        if self._array is None:
            assert self._value is not None
            return self._value
        if self._array.dtype.kind not in "OS":
            return self._array
        return BytesTensor.of(map(_encoded, self._array.reshape(-1).tolist()), self._array.shape)


class _Capsule:
    """A bare capsule, as numpy wants it. What it is about is believed to be in the memory of the host."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CPU, 0)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != "S" and array.dtype.newbyteorder("=") not in _NUMBERS:
        raise TritonModelException("NumPy dtype is not supported.")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)


def _encoded(element: object) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()


_TYPES: dict[str, tuple[int, Any]] = {
    "TYPE_BOOL": (1, np.bool_),
    "TYPE_UINT8": (2, np.uint8),
    "TYPE_UINT16": (3, np.uint16),
    "TYPE_UINT32": (4, np.uint32),
    "TYPE_UINT64": (5, np.uint64),
    "TYPE_INT8": (6, np.int8),
    "TYPE_INT16": (7, np.int16),
    "TYPE_INT32": (8, np.int32),
    "TYPE_INT64": (9, np.int64),
    "TYPE_FP16": (10, np.float16),
    "TYPE_FP32": (11, np.float32),
    "TYPE_FP64": (12, np.float64),
    "TYPE_STRING": (13, np.object_),
}
_NUMBERS = {np.dtype(dtype): number for number, dtype in _TYPES.values()}
_NUMBERS[DTYPES["BF16"]] = 14
"""Which Triton gives to no `model.py`."""
_DTYPES = dict(_TYPES.values())

TRITON_STRING_TO_NUMPY = {name: bool if dtype is np.bool_ else dtype for name, (_, dtype) in _TYPES.items()}


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """The numpy type of `TYPE_FP32`."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: int) -> Any:
    """The numpy type of the number of a datatype in a configuration; None when there is none."""
    return _DTYPES.get(data_type)


def numpy_to_triton_type(data_type: Any) -> int | None:
    """The number in a configuration of a numpy type; None when there is none."""
    return 13 if data_type == np.bytes_ else _NUMBERS.get(np.dtype(data_type))


def serialize_byte_tensor(input_tensor: NDArray[Any]) -> bytes | tuple[()] | None:
    """The elements of a BYTES array, each behind its length; nothing for an array of another type."""
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    encoded = [_encoded(element) for element in input_tensor.reshape(-1).tolist()]
    return b"".join(part for element in encoded for part in (_LENGTH.pack(len(element)), element))


def deserialize_bytes_tensor(encoded_tensor: bytes) -> NDArray[Any]:
    """The elements that `serialize_byte_tensor` wrote, in one dimension."""
    elements: list[bytes] = []
    at = 0
    while at < len(encoded_tensor):
        (length,) = _LENGTH.unpack_from(encoded_tensor, at)
        at += _LENGTH.size
        elements.append(bytes(encoded_tensor[at : at + length]))
        at += length
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array
