"""Tensors to columns: the type of a column follows from what the graph declares alone, so that it is the same in every part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.errors import BackendFailed
from headrace.jobs.columns import LEAVES
from headrace.jobs.ragged import Ragged
from headrace.tensor import BytesTensor, Tensor, TensorSpec


def field(spec: TensorSpec, *, text: bool = False) -> pa.Field:
    """The column of an output.

    One element is a primitive, one fixed dimension a FixedSizeList, more of them an `arrow.fixed_shape_tensor`; where a dimension
    varies there are lists. BYTES are binary or, as the caller says, `text`. Offsets are of 64 bits: they need no copy, and
    no part is too large for them.
    """
    return pa.field(spec.name, _type(_dims(spec), _leaf(spec, text=text)))


def encode(spec: TensorSpec, rows: Tensor | Ragged | Sequence[Tensor], *, text: bool = False) -> pa.Array:
    """An output as the column that `field` says; what lies as Arrow wants it is not copied.

    Args:
        spec: the output.
        rows: [rows, *dims] where all dims are fixed; else `Ragged`, or a tensor of its own for each row.
        text: whether BYTES are text.

    Raises:
        BackendFailed: a row of text is not UTF-8.
    """
    if not isinstance(rows, np.ndarray | BytesTensor | Ragged):
        if not rows:
            return pa.array([], field(spec, text=text).type)
        rows = Ragged.of(rows)
    if isinstance(rows, Ragged):
        return _lists(spec.dims, rows, _elements(spec, rows.values, text=text))
    return _fixed(_dims(spec), _elements(spec, rows.reshape((rows.size,)), text=text))


def _dims(spec: TensorSpec) -> tuple[int, ...]:
    return () if all(size == 1 for size in spec.dims) else spec.dims


def _leaf(spec: TensorSpec, *, text: bool) -> pa.DataType:
    if spec.datatype == "BYTES":
        return pa.large_string() if text else pa.large_binary()
    return LEAVES[spec.datatype]


def _type(dims: tuple[int, ...], leaf: pa.DataType) -> pa.DataType:
    if len(dims) > 1 and min(dims) > 0 and pa.types.is_primitive(leaf) and not pa.types.is_boolean(leaf):
        return pa.fixed_shape_tensor(leaf, dims)
    kind = leaf
    for size in reversed(dims):
        kind = pa.large_list(kind) if size == -1 else pa.list_(kind, size)
    return kind


def _elements(spec: TensorSpec, values: Tensor, *, text: bool) -> pa.Array:
    if not isinstance(values, BytesTensor):
        return pa.array(values.astype(np.float32) if spec.datatype == "BF16" else values)
    buffers = [None, pa.py_buffer(np.ascontiguousarray(values.offsets)), pa.py_buffer(np.ascontiguousarray(values.data))]
    array = pa.Array.from_buffers(_leaf(spec, text=text), values.size, buffers)
    if text:
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            raise BackendFailed(f"output '{spec.name}' is declared to be text, and is not: {error}") from None
    return array


def _fixed(dims: tuple[int, ...], elements: pa.Array) -> pa.Array:
    kind = _type(dims, elements.type)
    if isinstance(kind, pa.FixedShapeTensorType):
        return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(elements, math.prod(dims)))
    for size in reversed(dims):
        elements = pa.FixedSizeListArray.from_arrays(elements, size)
    return elements


def _lists(dims: tuple[int, ...], rows: Ragged, elements: pa.Array) -> pa.Array:
    """Lists in lists, the innermost first."""
    items = [np.prod(rows.shapes[:, :depth], axis=1, dtype=np.int64) for depth in range(len(dims))]
    begin, end = rows.offsets[[0, -1]].tolist()
    array: Any = elements.slice(begin, end - begin)
    for depth in reversed(range(len(dims))):
        if dims[depth] == -1:
            array = pa.LargeListArray.from_arrays(_offsets(np.repeat(rows.shapes[:, depth], items[depth])), array)
        else:
            array = pa.FixedSizeListArray.from_arrays(array, dims[depth])
    return array


def _offsets(lengths: NDArray[np.int64]) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return pa.array(offsets)
