"""What plain ONNX Runtime answers, without a line of Headrace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": ml_dtypes.bfloat16,
    "BYTES": np.object_,
}
WORDS = ("", "word", "naïve – 水車", "nul\0inside", "\0", " ", "x" * 300)
"""Strings that go wrong easily."""

_BFLOAT16 = 16
Array = np.ndarray[Any, Any]


def plain(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs of the model at `path`. Strings are `str`."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def plain_bfloat16(path: Path, x: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """`plain` for one BF16 input `x` and outputs of these shapes: ONNX Runtime writes the bits where it is told to."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, _BFLOAT16, x.shape, x.ctypes.data)
    outputs = {name: np.zeros(shape, ml_dtypes.bfloat16) for name, shape in shapes.items()}
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, _BFLOAT16, array.shape, array.ctypes.data)
    session.run_with_iobinding(binding)
    return outputs


def sample(datatype: str, shape: tuple[int, ...], seed: int = 1) -> Array:
    """Values of a datatype, the odd ones included: any bits there are, NaNs of all kinds too."""
    random = np.random.default_rng(seed)
    if datatype == "BYTES":
        array = np.empty(int(np.prod(shape)), np.object_)
        array[:] = [WORDS[i % len(WORDS)] for i in range(seed, seed + array.size)]
        return array.reshape(shape)
    dtype = np.dtype(DTYPES[datatype])
    if datatype == "BOOL":
        return random.integers(0, 2, shape).astype(np.bool_)
    return np.frombuffer(random.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape).copy()


def bits(array: Array) -> tuple[tuple[int, ...], object]:
    """Shape and exact content: equal for arrays that are equal bit by bit. Text counts as its UTF-8 bytes."""
    if array.dtype.kind == "O":
        return array.shape, [e.encode() if isinstance(e, str) else bytes(e) for e in array.reshape(-1)]
    return array.shape, (array.dtype.name, array.tobytes())
