"""What lies in the cells of an Arrow array: its elements without a copy, and the shape of each row.

Lists nest: a cell of `list<fixed_size_list<float>[3]>` has two dimensions, of which the first varies. Whatever an array wraps
them in – dictionaries, views, run ends, extension types – is taken off on the way down.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.tensor import BytesTensor


class Cells(NamedTuple):
    """The elements of a column: row i is `leaf[bounds[i]:bounds[i + 1]]`.

    Attributes:
        leaf: all elements, nulls among them.
        bounds: int64 [rows + 1].
        sizes: int64 [rows], one for each dimension of a cell; -1 where there is nothing to measure, in an empty list of lists.
        is_null: bool [rows], which hold a list that is null, or are null themselves.
        is_uneven: bool [rows], which hold lists of different lengths where a tensor has one.
    """

    leaf: pa.Array
    bounds: NDArray[np.int64]
    sizes: list[NDArray[np.int64]]
    is_null: NDArray[np.bool_]
    is_uneven: NDArray[np.bool_]


def shape_of(kind: pa.DataType) -> tuple[tuple[int, ...], pa.DataType]:
    """The shape of a cell of this type, -1 where it varies, and the type of its elements."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return tuple(kind.shape[place] for place in _order(kind)), kind.value_type
    if isinstance(kind, pa.BaseExtensionType):
        return shape_of(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return shape_of(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        shape, leaf = shape_of(kind.value_type)
        return (kind.list_size, *shape), leaf
    if is_list(kind):
        shape, leaf = shape_of(kind.value_type)
        return (-1, *shape), leaf
    return (), kind


def is_list(kind: pa.DataType) -> bool:
    """Whether its cells are lists of different lengths."""
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_list_view(kind) or types.is_large_list_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether its elements are text or bytes."""
    types = pa.types
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def unwrapped(array: pa.Array) -> pa.Array:
    """The same cells without dictionary, run ends or views, in lists too: as everything can take, write and read them."""
    types, kind = pa.types, array.type
    if types.is_dictionary(kind):
        return unwrapped(array.dictionary_decode())
    if types.is_run_end_encoded(kind):
        return unwrapped(pc.call_function("run_end_decode", [array]))
    if types.is_string_view(kind):
        return array.cast(pa.large_string())
    if types.is_binary_view(kind):
        return array.cast(pa.large_binary())
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        return _one_behind_the_other(array)
    if types.is_fixed_size_list(kind) and _is_wrapped(kind.value_type):
        return pa.FixedSizeListArray.from_arrays(unwrapped(_below(array)), kind.list_size, mask=array.is_null())
    if is_list(kind) and _is_wrapped(kind.value_type):
        offsets = array.offsets.to_numpy().astype(np.int64)
        values = unwrapped(array.values.slice(offsets[0], offsets[-1] - offsets[0]))
        return pa.LargeListArray.from_arrays(pa.array(offsets - offsets[0]), values, mask=array.is_null())
    return array


def plain(array: pa.Array) -> pa.Array:
    """The same cells as primitives, bytes with offsets, or lists; what is inside a list stays as it is."""
    if isinstance(array.type, pa.FixedShapeTensorType):
        return _nested(array)
    if isinstance(array.type, pa.BaseExtensionType):
        return plain(array.storage)
    return unwrapped(array.cast(pa.binary()) if pa.types.is_fixed_size_binary(array.type) else array)


def unnest(array: pa.Array) -> Cells:
    """The elements of a column, and how they lie in its rows; nothing is copied that lies as a tensor does."""
    rows = len(array)
    bounds = np.arange(rows + 1)
    sizes: list[NDArray[np.int64]] = []
    is_null = np.zeros(rows, np.bool_)
    is_uneven = np.zeros(rows, np.bool_)
    array = plain(array)
    while pa.types.is_nested(array.type):
        if array.null_count:
            is_null |= any_in(null_places(array), bounds)
        items = np.diff(bounds)
        if pa.types.is_fixed_size_list(array.type):
            size = array.type.list_size
            array = _below(array)
            sizes.append(np.where(items > 0, size, -1))
            bounds = bounds * size
        else:
            offsets = array.offsets.to_numpy().astype(np.int64, copy=False)
            lengths = np.diff(offsets)
            first = np.full(rows, -1)
            first[items > 0] = lengths[bounds[:-1][items > 0]]
            is_uneven |= any_in(lengths != np.repeat(first, items), bounds)
            array = array.values.slice(offsets[0], offsets[-1] - offsets[0])
            sizes.append(first)
            bounds = (offsets - offsets[0])[bounds]
        array = plain(array)
    return Cells(array, bounds, sizes, is_null, is_uneven)


def null_places(array: pa.Array) -> NDArray[np.bool_]:
    """Which are null."""
    return array.is_null().to_numpy(zero_copy_only=False)


def any_in(flags: NDArray[np.bool_], bounds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of each row, whether one of its elements is flagged."""
    counts = np.zeros(len(flags) + 1, np.int64)
    np.cumsum(flags, out=counts[1:])
    return counts[bounds[1:]] > counts[bounds[:-1]]


def numbers(leaf: pa.Array) -> NDArray[Any]:
    """Numbers as they lie in memory, whatever is where they are null; booleans are unpacked."""
    data = leaf.buffers()[1]
    if pa.types.is_boolean(leaf.type):
        if data is None:
            return np.zeros(len(leaf), np.bool_)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=leaf.offset + len(leaf), bitorder="little")
        return bits[leaf.offset :].view(np.bool_)
    dtype = np.dtype(leaf.type.to_pandas_dtype())
    return np.zeros(len(leaf), dtype) if data is None else np.frombuffer(data, dtype, len(leaf), leaf.offset * dtype.itemsize)


def texts(leaf: pa.Array) -> BytesTensor:
    """Text or bytes as they lie in memory; offsets of 32 bits are widened."""
    is_large = pa.types.is_large_string(leaf.type) or pa.types.is_large_binary(leaf.type)
    dtype = np.dtype(np.int64 if is_large else np.int32)
    _, offsets, data = leaf.buffers()
    if offsets is None or not len(leaf):
        return BytesTensor((0,), np.zeros(1, np.int64), np.zeros(0, np.uint8))
    at = np.frombuffer(offsets, dtype, len(leaf) + 1, leaf.offset * dtype.itemsize).astype(np.int64, copy=False)
    return BytesTensor((len(leaf),), at, np.frombuffer(b"" if data is None else data, np.uint8))


def cell_bytes(array: pa.Array) -> NDArray[np.int64]:
    """How many bytes each cell has; 0 for those of types that no tensor is made of."""
    if pa.types.is_dictionary(array.type):
        sizes = np.append(cell_bytes(array.dictionary), 0)
        return sizes[array.indices.fill_null(len(array.dictionary)).to_numpy()]
    kind = shape_of(array.type)[1]
    if is_bytes(kind):
        cells = unnest(array)
        offsets = texts(cells.leaf).offsets if len(cells.leaf) else np.zeros(1, np.int64)
        return offsets[cells.bounds[1:]] - offsets[cells.bounds[:-1]]
    if pa.types.is_primitive(kind):
        return np.diff(unnest(array).bounds) * kind.bit_width // 8
    return np.zeros(len(array), np.int64)


def _order(kind: pa.FixedShapeTensorType) -> list[int]:
    return list(range(len(kind.shape))) if kind.permutation is None else list(kind.permutation)


def _nested(array: pa.FixedShapeTensorArray) -> pa.Array:
    """A tensor column as fixed-size lists in each other, in the order in which its dimensions are meant."""
    kind, storage = array.type, array.storage
    values = _below(storage)
    order = _order(kind)
    if order != sorted(order):
        places = np.arange(len(values)).reshape(len(storage), *kind.shape)
        values = values.take(pa.array(places.transpose(0, *(place + 1 for place in order)).reshape(-1)))
    shape, _ = shape_of(kind)
    for length in reversed(shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    return pa.FixedSizeListArray.from_arrays(values, shape[0], mask=storage.is_null() if storage.null_count else None)


def _below(array: pa.FixedSizeListArray) -> pa.Array:
    """What is in fixed-size lists."""
    return array.values.slice(array.offset * array.type.list_size, len(array) * array.type.list_size)


def _is_wrapped(kind: pa.DataType) -> bool:
    return unwrapped(pa.nulls(0, kind)).type != kind


def _one_behind_the_other(array: pa.ListViewArray | pa.LargeListViewArray) -> pa.LargeListArray:
    """Lists that lie anywhere; Arrow's own cast goes wrong where such an array is a slice."""
    sizes = np.where(null_places(array), 0, array.sizes.to_numpy()).astype(np.int64)
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    places = np.arange(offsets[-1]) + np.repeat(array.offsets.to_numpy() - offsets[:-1], sizes)
    values = unwrapped(array.values).take(pa.array(places))
    return pa.LargeListArray.from_arrays(pa.array(offsets), values, mask=array.is_null())
