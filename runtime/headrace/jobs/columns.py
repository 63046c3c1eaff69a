"""Columns to tensors, and tensors to columns.

What lies in memory as the model wants it is not copied: primitives, fixed-size lists and `arrow.fixed_shape_tensor` without
nulls, the elements of lists, the bytes of text. A row is rejected, with a reason, where no tensor can hold it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace.errors import InvalidJob
from headrace.jobs.cells import any_in, is_bytes, is_list, null_places, numbers, plain, shape_of, texts, unnest
from headrace.jobs.ragged import Ragged
from headrace.tensor import DTYPES, Tensor, TensorSpec, format_shape

LEAVES: dict[str, pa.DataType] = {
    "BOOL": pa.bool_(), "UINT8": pa.uint8(), "UINT16": pa.uint16(), "UINT32": pa.uint32(), "UINT64": pa.uint64(),
    "INT8": pa.int8(), "INT16": pa.int16(), "INT32": pa.int32(), "INT64": pa.int64(),
    "FP16": pa.float16(), "FP32": pa.float32(), "FP64": pa.float64(), "BF16": pa.float32(), "BYTES": pa.string(),
}  # fmt: skip
"""Arrow's type for an element of each datatype. Arrow has no BF16; every one of its values is an FP32."""


class Rejected(NamedTuple):
    """A row that is left out: its place in the record batch, the column if it is one's fault, and why."""

    place: int
    column: str
    reason: str


class Nulls(BaseModel):
    """What becomes of rows in which an input is null, as a whole or in one of its elements: rejected, unless it says otherwise.

    Attributes:
        fill: what stands for null, by input: a number or, for BYTES, text.
        masks: inputs that are told what was null, by the input they tell of: 1 for what is there, 0 for what was null, in which
            place there is `fill`, or 0 or nothing. A mask has the dims of its input, or is one element a row.
        reject_nan: whether a row with NaN in it is rejected too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fill: Mapping[str, float | str] = {}
    masks: Mapping[str, str] = {}
    reject_nan: bool = False

    def keeps(self, name: str) -> bool:
        """Whether rows in which this input is null are kept."""
        return name in self.fill or name in self.masks


class Decoded(NamedTuple):
    """The rows of a record batch that are left, at `places` of it, as tensors by input: `Ragged` where dims vary."""

    places: NDArray[np.intp]
    tensors: dict[str, Tensor | Ragged]
    rejected: list[Rejected]


def sources(inputs: Sequence[TensorSpec], columns: Mapping[str, str], nulls: Nulls) -> dict[str, str]:
    """Which column each input comes from: the one that `columns` names for it, or that of its own name.

    An optional input comes from a column only where `columns` says so; a mask of `nulls` comes from none.

    Raises:
        InvalidJob: `columns` or `nulls` name something else than the inputs, or what they say of them cannot be.
    """
    known = {spec.name: spec for spec in inputs}
    for name in (*columns, *nulls.fill, *nulls.masks, *nulls.masks.values()):
        if name not in known:
            raise InvalidJob(f"'{name}' is no input of the graph; its inputs are {', '.join(known)}")
    masks = set(nulls.masks.values())
    for name in masks & (columns.keys() | nulls.fill.keys() | nulls.masks.keys()):
        raise InvalidJob(f"input '{name}' is told what is null, so it cannot come from a column, be filled or have a mask itself")
    for name, mask in nulls.masks.items():
        dims = known[mask].dims
        if known[mask].datatype == "BYTES" or (dims != known[name].dims and any(size != 1 for size in dims)):
            raise InvalidJob(
                f"input '{mask}' is {_told(known[mask])}: to be told what is null in '{name}', it must be numbers of dims "
                f"{format_shape(known[name].dims)} or [1]"
            )
    for name, value in nulls.fill.items():
        _filling(known[name], value)
    return {
        name: columns.get(name, name)
        for name, spec in known.items()
        if name not in masks and (name in columns or not spec.optional)
    }


def leaf_types(inputs: Sequence[TensorSpec], columns: Mapping[str, str]) -> dict[str, pa.DataType]:
    """What an element of each column is to be read as, where a format says of numbers only that they are numbers."""
    # No text is parsed to FP16.
    leaves = {**LEAVES, "FP16": pa.float32()}
    return {columns[spec.name]: leaves[spec.datatype] for spec in inputs if spec.name in columns}


def check(schema: pa.Schema, inputs: Sequence[TensorSpec], columns: Mapping[str, str]) -> None:
    """Raise if a column of a data set can never be the input it is for. `columns` is of `sources`.

    Raises:
        InvalidJob: a column is missing, or is there twice, or its type does not suit.
    """
    for spec in inputs:
        if spec.name not in columns:
            continue
        column = columns[spec.name]
        if schema.names.count(column) != 1:
            how = "has no column" if column not in schema.names else "has more than one column"
            raise InvalidJob(
                f"the input {how} '{column}', for '{spec.name}' of the graph; its columns are {', '.join(schema.names)}"
            )
        kind = schema.field(column).type
        shape, leaf = shape_of(kind)
        if not _fits(shape, spec.dims) or not _suits(leaf, spec.datatype):
            hint = (
                f": convert it to {_wanted(spec)}"
                if _fits(shape, spec.dims)
                else f"; a cell of it has the dims {format_shape(shape)}"
            )
            raise InvalidJob(f"column '{column}' is {kind}, which cannot be input '{spec.name}', {_told(spec)}{hint}")


def decode(
    batch: pa.RecordBatch,
    inputs: Sequence[TensorSpec],
    columns: Mapping[str, str],
    nulls: Nulls,
    rejected: Sequence[Rejected] = (),
) -> Decoded:
    """The rows of a record batch as tensors.

    Args:
        batch: the rows; `check` has seen its schema.
        inputs: what the graph takes.
        columns: the column of each, of `sources`.
        nulls: what becomes of nulls.
        rejected: rows that are not to be had anyway.

    Fixed dims give an array [rows, *dims], a `BytesTensor` for BYTES; dims of which one is -1 give a `Ragged`. A scalar is
    one element. Integers are narrowed, and made floats, only where nothing is lost; floats are rounded.
    """
    wanted = [spec for spec in inputs if spec.name in columns]
    arrays = {spec.name: plain(batch.column(columns[spec.name])) for spec in wanted}
    found = [_Column(arrays[spec.name], spec, nulls) for spec in wanted]
    reasons = {row.place: row for row in rejected}
    for spec, column in zip(wanted, found, strict=True):
        for place, reason in column.faults():
            reasons.setdefault(place, Rejected(place, columns[spec.name], reason))
    places = np.arange(batch.num_rows)
    if reasons:
        places = np.delete(places, list(reasons))
        found = [_Column(arrays[spec.name].take(pa.array(places)), spec, nulls) for spec in wanted]
    tensors: dict[str, Tensor | Ragged] = {}
    for column in found:
        tensors[column.spec.name] = column.tensor()
        if mask := nulls.masks.get(column.spec.name):
            tensors[mask] = column.mask(next(spec for spec in inputs if spec.name == mask))
    return Decoded(places, tensors, [reasons[place] for place in sorted(reasons)])


_Fault: TypeAlias = "tuple[NDArray[np.bool_], str]"
"""Rows that are flagged, and what is wrong with them."""


class _Column:
    """A column on its way to be an input: its elements as the input has them, and what is wrong with which rows."""

    def __init__(self, array: pa.Array, spec: TensorSpec, rules: Nulls) -> None:
        self.spec = spec
        self._rows = len(array)
        is_null = null_places(array) if array.null_count else None
        if is_null is not None and rules.keeps(spec.name) and is_list(array.type):
            array = _with_cells(array, spec)
        self._cells = unnest(array)
        self._faults: list[_Fault] = []
        self._holes = self._holes_in(is_null, is_kept=rules.keeps(spec.name))
        self._values = self._read(rules)
        self._judge_shapes()

    def faults(self) -> list[tuple[int, str]]:
        """Rows that cannot be had, and why; a row may be there more than once."""
        told = [(place, why) for flags, why in self._faults for place in np.flatnonzero(flags).tolist()]
        return told + [(place, self._shape_fault(place)) for place in np.flatnonzero(self._misshapen).tolist()]

    def tensor(self) -> Tensor | Ragged:
        """All rows, of which none is at fault."""
        return self._shaped(self._values)

    def mask(self, spec: TensorSpec) -> Tensor | Ragged:
        """What was not null: of each element, or of each row, as the mask's dims are."""
        is_there = np.ones(len(self._cells.leaf), np.bool_) if self._holes is None else ~self._holes
        dtype = DTYPES[spec.datatype]
        if spec.dims == self.spec.dims:
            return self._shaped(is_there.astype(dtype))
        return (~any_in(~is_there, self._cells.bounds)).astype(dtype).reshape(self._rows, *spec.dims)

    def _holes_in(self, is_null: NDArray[np.bool_] | None, *, is_kept: bool) -> NDArray[np.bool_] | None:
        """Which elements are null or in a row that is; what is not kept is a fault."""
        leaf, bounds = self._cells.leaf, self._cells.bounds
        in_lists = self._cells.is_null
        holes = null_places(leaf) if leaf.null_count else None
        if not is_kept:
            self._faults.append((in_lists if holes is None else in_lists | any_in(holes, bounds), "is null"))
            return None
        self._faults.append((in_lists if is_null is None else in_lists & ~is_null, "holds a list that is null"))
        if is_null is None:
            return holes
        whole = np.repeat(is_null, np.diff(bounds))
        return whole if holes is None else holes | whole

    def _read(self, rules: Nulls) -> Tensor:
        leaf, spec = self._cells.leaf, self.spec
        filling = _filling(spec, rules.fill.get(spec.name, "" if spec.datatype == "BYTES" else 0))
        if spec.datatype == "BYTES":
            if self._holes is not None:
                kept = leaf.cast(pa.large_binary())
                leaf = pc.call_function("if_else", [pa.array(self._holes), pa.scalar(filling, pa.large_binary()), kept])
            return texts(leaf)
        values = numbers(leaf)
        if self._holes is not None:
            values = np.where(self._holes, np.zeros((), values.dtype), values)
        is_nan = np.isnan(values) if rules.reject_nan and values.dtype.kind == "f" else None
        values, is_lost = converted(values, spec.datatype)
        if is_lost is not None:
            self._fault(is_lost, f"holds a number that {spec.datatype} cannot hold")
        if is_nan is not None:
            self._fault(is_nan, "holds NaN")
        if self._holes is not None and filling != 0:
            values = np.where(self._holes, np.array(filling, values.dtype), values)
        return values

    def _fault(self, elements: NDArray[np.bool_], why: str) -> None:
        if elements.any():
            self._faults.append((any_in(elements, self._cells.bounds), why))

    def _judge_shapes(self) -> None:
        """Sizes as the input counts dimensions, and the rows whose sizes are others."""
        dims, sizes = self.spec.dims, self._cells.sizes
        if not sizes:
            sizes, wanted = [np.ones(self._rows, np.int64)] * len(dims), [1] * len(dims)
        elif len(sizes) != len(dims):
            wanted = [math.prod(dims)]
        else:
            wanted = list(dims)
        self._misshapen = self._cells.is_uneven.copy()
        for size, want in zip(sizes, wanted, strict=True):
            self._misshapen |= (size != want) & (size != -1) & (want != -1)
        self._sizes, self._dims = sizes, wanted

    def _shape_fault(self, place: int) -> str:
        if self._cells.is_uneven[place]:
            return "holds lists of different lengths where a tensor has one"
        shape = format_shape(int(size[place]) for size in self._sizes)
        return f"has the dims {shape}, not {format_shape(self._dims)}"

    def _shaped(self, values: Tensor) -> Tensor | Ragged:
        dims = self.spec.dims
        if -1 not in dims:
            return values.reshape((self._rows, *dims))
        # Of an empty list of lists nobody knows how long the inner ones are.
        shapes = [np.where(size < 0, max(want, 0), size) for size, want in zip(self._sizes, dims, strict=True)]
        return Ragged(values, self._cells.bounds, np.stack(shapes, axis=1))


def converted(values: NDArray[Any], datatype: str) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Numbers in the datatype, as they are if it is theirs, and which of them it cannot hold; None if it holds all."""
    dtype = DTYPES[datatype]
    if values.dtype == dtype:
        return values, None
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            rounded = values.astype(dtype)
        return rounded, np.isinf(rounded) & ~np.isinf(values)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        least, most = limits.min, limits.max
    else:
        # Above this, floats leave integers out.
        most = 2 ** (_MANTISSAS[datatype])
        least = -most
    own = np.iinfo(values.dtype)
    if own.min >= least and own.max <= most:
        return values.astype(dtype), None
    is_lost = (values < max(least, own.min)) | (values > min(most, own.max))
    return values.astype(dtype), is_lost


_MANTISSAS = {"FP16": 11, "BF16": 8, "FP32": 24, "FP64": 53}
"""Bits of a float's significand, the one that is not stored included."""


def _fits(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    """Whether cells of this shape can have these dims: as they are, as one element, or as a row-major list of all elements."""
    if not shape:
        return all(size in (1, -1) for size in dims)
    if len(shape) == 1 and len(dims) != 1 and -1 not in dims:
        return shape[0] in (-1, math.prod(dims))
    return len(shape) == len(dims) and all(a == b or -1 in (a, b) for a, b in zip(shape, dims, strict=True))


def _suits(leaf: pa.DataType, datatype: str) -> bool:
    if datatype == "BYTES":
        return is_bytes(leaf)
    if datatype == "BOOL":
        return pa.types.is_boolean(leaf)
    is_float = DTYPES[datatype].kind not in "iu"
    return pa.types.is_integer(leaf) or (is_float and pa.types.is_floating(leaf))


def _told(spec: TensorSpec) -> str:
    return f"{spec.datatype} {format_shape(spec.dims)}"


def _wanted(spec: TensorSpec) -> str:
    return "text or bytes" if spec.datatype == "BYTES" else f"{LEAVES[spec.datatype]} first"


def _filling(spec: TensorSpec, value: float | str) -> Any:
    """What stands for null, as an element of the input."""
    if spec.datatype == "BYTES":
        return str(value).encode()
    try:
        element = DTYPES[spec.datatype].type(float(value) if DTYPES[spec.datatype].kind not in "iu" else int(value))
    except (ValueError, OverflowError):
        raise InvalidJob(f"null of input '{spec.name}' is to be '{value}', which is no {spec.datatype}") from None
    return element


def _with_cells(array: pa.Array, spec: TensorSpec) -> pa.Array:
    """A list column with a cell of zeros, or of empty text, where it is null: of the input's size, 1 where that varies."""
    shape, leaf = shape_of(array.type)
    dims = (math.prod(spec.dims),) if len(shape) != len(spec.dims) else spec.dims
    cell: Any = b"" if is_bytes(leaf) else False if pa.types.is_boolean(leaf) else np.zeros((), leaf.to_pandas_dtype())[()]
    for have, want in zip(reversed(shape), reversed(dims), strict=True):
        cell = [cell] * (have if have >= 0 else max(want, 1) if want != 0 else 0)
    filler = pa.array([cell], array.type)
    rows = np.where(null_places(array), len(array), np.arange(len(array)))
    return pa.concat_arrays([array, filler]).take(pa.array(rows))
