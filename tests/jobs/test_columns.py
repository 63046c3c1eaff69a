"""Columns to tensors: every layout gives the same one, without a copy where that can be, and what cannot be one is rejected."""

from __future__ import annotations

import datetime
import math
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from headrace.errors import BackendFailed, InvalidJob
from headrace.jobs.columns import LEAVES, Decoded, Nulls, Rejected, check, decode, leaf_types, sources
from headrace.jobs.encoding import encode, field
from headrace.jobs.ragged import Ragged
from headrace.tensor import DTYPES, BytesTensor, Tensor, TensorSpec

DIMS = st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 3), (-1,), (-1, 2), (2, -1), (-1, -1), (-1, 3, -1)])
SPECS = st.builds(TensorSpec, st.just("x"), st.sampled_from([*DTYPES, "BYTES"]), DIMS)


def one(array: pa.Array, spec: TensorSpec, nulls: Nulls | None = None, *others: TensorSpec) -> Decoded:
    batch = pa.RecordBatch.from_arrays([array], ["x"])
    check(batch.schema, [spec], {"x": "x"})
    return decode(batch, [spec, *others], {"x": "x"}, nulls or Nulls())


def elements(rng: np.random.Generator, datatype: str, shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape)
    if datatype == "BYTES":
        return BytesTensor.of([rng.bytes(int(rng.integers(0, 5))) for _ in range(size)], shape)
    dtype = DTYPES[datatype]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, size, dtype, endpoint=True).reshape(shape)
    if dtype.kind == "b":
        return rng.integers(0, 2, size).astype(dtype).reshape(shape)
    return rng.normal(0, 100, size).astype(dtype).reshape(shape)


@st.composite
def rows_of(draw: st.DrawFn, spec: TensorSpec) -> list[Tensor]:
    """A tensor of the spec for each of some rows."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    count = draw(st.integers(0, 5))
    return [
        elements(rng, spec.datatype, tuple(int(rng.integers(0, 4)) if size == -1 else size for size in spec.dims))
        for _ in range(count)
    ]


def same(found: Tensor | Ragged, expected: list[Tensor], spec: TensorSpec) -> None:
    assert isinstance(found, Ragged) == (-1 in spec.dims)
    for place, row in enumerate(expected):
        own = (
            found.row(place)
            if isinstance(found, Ragged)
            else found[place]
            if isinstance(found, np.ndarray)
            else found.rows(place, place + 1)
        )
        if isinstance(row, BytesTensor):
            assert isinstance(own, BytesTensor)
            assert own.objects().reshape(row.shape).tolist() == row.objects().tolist()
        else:
            own = np.asarray(own)
            assert own.dtype == DTYPES[spec.datatype]
            # An empty list of lists does not say how long those would be.
            assert own.shape == row.shape or (own.size == row.size == 0 and -1 in spec.dims)
            assert_array_equal(own.reshape(row.shape), row)


@st.composite
def laid_out(draw: st.DrawFn, spec: TensorSpec, rows: list[Tensor]) -> pa.Array:
    """The rows as a column of some type that means the same."""
    if spec.datatype == "BYTES":
        leaf = draw(st.sampled_from([pa.binary(), pa.large_binary(), pa.binary_view()]))
    elif spec.datatype.startswith(("INT", "UINT")):
        wider = [LEAVES[spec.datatype], pa.int64() if spec.datatype != "UINT64" else pa.uint64()]
        leaf = draw(st.sampled_from(wider))
    else:
        leaf = draw(st.sampled_from([LEAVES[spec.datatype], pa.float64()])) if spec.datatype != "BOOL" else pa.bool_()
    kind = leaf
    for size in reversed(spec.dims if spec.dims != (1,) else draw(st.sampled_from([(), (1,)]))):
        lists = [pa.list_(kind), pa.large_list(kind), pa.list_view(kind), pa.large_list_view(kind)]
        kind = draw(st.sampled_from(lists if size == -1 else [pa.list_(kind, size), pa.list_(kind, size), *lists]))
    is_scalar = not pa.types.is_nested(kind)
    before = draw(st.integers(0, 2))
    values = [row.objects() if isinstance(row, BytesTensor) else row.astype(leaf.to_pandas_dtype()) for row in rows]
    cells: list[Any] = [value.reshape(()).item() if is_scalar else _listed(value) for value in values]
    filler = [cells[0] if cells else None] * before
    array = pa.array(filler + cells, kind).slice(before)
    how = draw(st.sampled_from(["plain", "dictionary", "run ends"])) if is_scalar and not pa.types.is_float16(leaf) else "plain"
    if how == "dictionary" and not pa.types.is_binary_view(leaf):
        return array.dictionary_encode()
    if how == "run ends" and not pa.types.is_binary_view(leaf) and len(array):
        return pa.compute.run_end_encode(array)
    return array


def _listed(value: np.ndarray[Any, Any]) -> Any:
    """Nested lists; float16 has no Python scalar of its own."""
    return [_listed(inner) for inner in value] if value.ndim > 1 else list(value)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_layout_is_the_same_tensor(data: st.DataObject) -> None:
    spec = data.draw(SPECS)
    rows = data.draw(rows_of(spec))
    found = one(data.draw(laid_out(spec, rows)), spec)
    assert not found.rejected
    assert_array_equal(found.places, np.arange(len(rows)))
    same(found.tensors["x"], rows, spec)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_is_encoded_is_decoded(data: st.DataObject) -> None:
    spec = data.draw(SPECS)
    rows = data.draw(rows_of(spec))
    given_as: Any = rows
    if -1 not in spec.dims:
        stacked = [row.reshape((1, *spec.dims)) for row in rows]
        empty = elements(np.random.default_rng(0), spec.datatype, (0, *spec.dims))
        given_as = empty if not rows else stacked[0] if len(rows) == 1 else _stack(stacked)
    column = encode(spec, given_as)
    column.validate(full=True)
    assert column.type == field(spec).type
    found = one(column, spec)
    assert not found.rejected
    same(found.tensors["x"], rows, spec)


def _stack(rows: list[Tensor]) -> Tensor:
    from headrace.tensor import concatenate

    return concatenate(rows)


def addresses(array: pa.Array) -> list[tuple[int, int]]:
    return [(buffer.address, buffer.address + buffer.size) for buffer in array.buffers() if buffer is not None]


def is_shared(tensor: Tensor | Ragged, array: pa.Array) -> bool:
    values = tensor.values if isinstance(tensor, Ragged) else tensor
    data = values.data if isinstance(values, BytesTensor) else values
    at = np.asarray(data).__array_interface__["data"][0]
    return any(first <= at < last for first, last in addresses(array))


FLAT = pa.array(np.arange(24, dtype=np.float32))
LISTS = pa.ListArray.from_arrays(pa.array([0, 4, 5, 24], pa.int32()), FLAT)
ZERO_COPY = {
    "primitive": (FLAT, TensorSpec("x", "FP32", (1,))),
    "primitive, sliced": (FLAT.slice(3, 5), TensorSpec("x", "FP32", ())),
    "fixed-size list": (pa.FixedSizeListArray.from_arrays(FLAT, 6).slice(1), TensorSpec("x", "FP32", (6,))),
    "flat list as two dimensions": (pa.FixedSizeListArray.from_arrays(FLAT, 6), TensorSpec("x", "FP32", (2, 3))),
    "fixed-shape tensor": (
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(24, dtype=np.int64).reshape(4, 2, 3)).slice(1, 2),
        TensorSpec("x", "INT64", (2, 3)),
    ),
    "list": (LISTS.slice(1), TensorSpec("x", "FP32", (-1,))),
    "lists that are equally long": (
        pa.ListArray.from_arrays(pa.array([0, 8, 16, 24], pa.int32()), FLAT), TensorSpec("x", "FP32", (8,)),
    ),
    "text": (pa.array(["ab", "c", "defg"]).slice(1), TensorSpec("x", "BYTES", (1,))),
    "large binary": (pa.array([b"ab", b"c"], pa.large_binary()), TensorSpec("x", "BYTES", (1,))),
}  # fmt: skip


@pytest.mark.parametrize("name", ZERO_COPY)
def test_what_lies_as_a_tensor_does_is_not_copied(name: str) -> None:
    array, spec = ZERO_COPY[name]
    found = one(array, spec).tensors["x"]
    assert is_shared(found, array)
    expected = array.to_pylist() if not isinstance(array, pa.FixedShapeTensorArray) else array.to_numpy_ndarray().tolist()
    for place, row in enumerate(expected):
        own = (
            found.row(place)
            if isinstance(found, Ragged)
            else found[place]
            if isinstance(found, np.ndarray)
            else found.objects()[place]
        )
        flat = np.asarray(own).reshape(-1).tolist()
        assert flat == (
            [row.encode() if isinstance(row, str) else row] if not isinstance(row, list) else np.asarray(row).reshape(-1).tolist()
        )


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        (TensorSpec("y", "FP32", (1,)), np.ones((4, 1), np.float32)),
        (TensorSpec("y", "FP32", (8,)), np.ones((4, 8), np.float32)),
        (TensorSpec("y", "FP16", (2, 4)), np.ones((4, 2, 4), np.float16)),
        (TensorSpec("y", "BYTES", (1,)), BytesTensor.of(["a", "bc"], (2, 1))),
        (TensorSpec("y", "INT64", (-1,)), Ragged.of([np.arange(3), np.arange(2)])),
    ],
)
def test_outputs_are_not_copied(spec: TensorSpec, values: Tensor | Ragged) -> None:
    assert is_shared(values, encode(spec, values))


def test_permuted_tensors_are_put_in_order() -> None:
    logical = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    kind = pa.fixed_shape_tensor(pa.int32(), (4, 3), permutation=[1, 0])
    flat = pa.array(logical.transpose(0, 2, 1).reshape(-1))
    array = pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, 12))
    assert_array_equal(one(array, TensorSpec("x", "INT32", (3, 4))).tensors["x"], logical)


BROKEN = [
    (pa.array([1, None, 3]), TensorSpec("x", "INT64", (1,)), {1: "is null"}),
    (pa.array([[1, 2], None, [3, None]]), TensorSpec("x", "INT64", (2,)), {1: "is null", 2: "is null"}),
    (pa.array([[1, 2], None, [3, None]], pa.list_(pa.int64(), 2)), TensorSpec("x", "INT64", (2,)), {1: "is null", 2: "is null"}),
    (pa.array([[1, 2], [3], []]), TensorSpec("x", "INT64", (2,)),
     {1: "has the dims [1], not [2]", 2: "has the dims [0], not [2]"}),
    (pa.array([[[1], [2]], [[3], [4, 5]], [[6], None]]), TensorSpec("x", "INT64", (2, 1)),
     {1: "holds lists of different lengths where a tensor has one", 2: "is null"}),
    (pa.array([1, 300, -1]), TensorSpec("x", "UINT8", ()),
     {1: "holds a number that UINT8 cannot hold", 2: "holds a number that UINT8 cannot hold"}),
    (pa.array([2**24, 2**24 + 1]), TensorSpec("x", "FP32", ()), {1: "holds a number that FP32 cannot hold"}),
    (pa.array([1.0, 1e6, math.inf]), TensorSpec("x", "FP16", ()), {1: "holds a number that FP16 cannot hold"}),
    (pa.array(["a", None, "b"]), TensorSpec("x", "BYTES", (1,)), {1: "is null"}),
]  # fmt: skip


@pytest.mark.parametrize(("array", "spec", "faults"), BROKEN)
def test_rows_that_no_tensor_holds_are_rejected_and_the_others_are_as_alone(
    array: pa.Array, spec: TensorSpec, faults: dict[int, str]
) -> None:
    found = one(array, spec)
    assert found.rejected == [Rejected(place, "x", why) for place, why in faults.items()]
    left = [place for place in range(len(array)) if place not in faults]
    assert found.places.tolist() == left
    alone = one(array.take(pa.array(left)), spec).tensors["x"]
    tensor = found.tensors["x"]
    assert tensor == alone if isinstance(tensor, BytesTensor) else np.array_equal(np.asarray(tensor), np.asarray(alone))


def test_nan_is_a_number_unless_it_is_refused() -> None:
    array, spec = pa.array([1.0, math.nan]), TensorSpec("x", "FP32", (1,))
    assert not one(array, spec).rejected
    assert one(array, spec, Nulls(reject_nan=True)).rejected == [Rejected(1, "x", "holds NaN")]


def test_rows_that_could_not_be_read_are_left_out_and_told_once() -> None:
    batch = pa.record_batch({"a": [1, None, 3], "b": [None, None, 6]})
    specs = [TensorSpec("a", "INT64", (1,)), TensorSpec("b", "INT64", (1,))]
    found = decode(batch, specs, {"a": "a", "b": "b"}, Nulls(), [Rejected(1, "", "cannot be parsed")])
    assert found.rejected == [Rejected(0, "b", "is null"), Rejected(1, "", "cannot be parsed")]
    assert found.tensors["a"].tolist() == [[3]]


@pytest.mark.parametrize(
    ("array", "spec", "fill", "expected", "there"),
    [
        (pa.array([1, None]), TensorSpec("x", "INT64", (1,)), 7, [[1], [7]], [[1], [0]]),
        (pa.array([1, None]), TensorSpec("x", "FP16", ()), 0.5, [1, 0.5], [1, 0]),
        (pa.array([[1, None], None]), TensorSpec("x", "INT32", (2,)), 7, [[1, 7], [7, 7]], [[1, 0], [0, 0]]),
        (pa.array([[1.0, None], None], pa.list_(pa.float32(), 2)), TensorSpec("x", "FP32", (2,)), -1, [[1, -1], [-1, -1]],
         [[1, 0], [0, 0]]),
        (pa.array([True, None]), TensorSpec("x", "BOOL", (1,)), 1, [[True], [True]], [[1], [0]]),
        (pa.array(["a", None]), TensorSpec("x", "BYTES", (1,)), "none", [[b"a"], [b"none"]], [[1], [0]]),
    ],
)  # fmt: skip
def test_nulls_are_filled_and_masked(array: pa.Array, spec: TensorSpec, fill: Any, expected: Any, there: Any) -> None:
    mask = TensorSpec("m", "FP32", spec.dims)
    found = one(array, spec, Nulls(fill={"x": fill}, masks={"x": "m"}), mask)
    assert not found.rejected
    tensor = found.tensors["x"]
    assert (tensor.objects() if isinstance(tensor, BytesTensor) else np.asarray(tensor)).tolist() == expected
    assert_array_equal(found.tensors["m"], np.array(there, np.float32))


def test_nulls_in_lists_are_filled_and_masked() -> None:
    array = pa.array([[1, None, 3], None, []], pa.list_(pa.int64()))
    spec, mask = TensorSpec("x", "INT64", (-1,)), TensorSpec("m", "BOOL", (1,))
    found = one(array, spec, Nulls(fill={"x": 9}, masks={"x": "m"}), mask)
    tensor = found.tensors["x"]
    assert isinstance(tensor, Ragged)
    assert [tensor.row(place).tolist() for place in range(3)] == [[1, 9, 3], [9], []]
    assert found.tensors["m"].tolist() == [[False], [False], [True]]
    by_element = one(array, spec, Nulls(masks={"x": "m"}), TensorSpec("m", "UINT8", (-1,))).tensors["m"]
    assert [by_element.row(place).tolist() for place in range(3)] == [[1, 0, 1], [0], []]


@pytest.mark.parametrize(
    ("kind", "spec", "told"),
    [
        (
            pa.string(),
            TensorSpec("x", "FP32", (1,)),
            "column 'x' is string, which cannot be input 'x', FP32 [1]: convert it to float first",
        ),
        (pa.float32(), TensorSpec("x", "INT64", (1,)), "column 'x' is float, .* INT64 .*: convert it to int64 first"),
        (pa.int64(), TensorSpec("x", "BYTES", (1,)), "convert it to text or bytes"),
        (pa.timestamp("us"), TensorSpec("x", "INT64", (1,)), r"timestamp\[us\], .* convert it to int64 first"),
        (pa.list_(pa.float32(), 3), TensorSpec("x", "FP32", (4,)), r"a cell of it has the dims \[3\]"),
        (pa.list_(pa.list_(pa.float32())), TensorSpec("x", "FP32", (-1,)), r"a cell of it has the dims \[-1,-1\]"),
        (pa.struct({"a": pa.int32()}), TensorSpec("x", "INT32", (1,)), "convert it to int32 first"),
    ],
)
def test_a_column_that_is_never_the_input_is_told_before_anything_starts(kind: pa.DataType, spec: TensorSpec, told: str) -> None:
    with pytest.raises(InvalidJob, match=told.replace("[1]", r"\[1\]")):
        check(pa.schema({"x": kind}), [spec], {"x": "x"})


def test_a_column_that_is_missing_or_there_twice_is_told() -> None:
    spec = TensorSpec("x", "INT64", (1,))
    with pytest.raises(InvalidJob, match="has no column 'y', for 'x' of the graph; its columns are a, b"):
        check(pa.schema({"a": pa.int64(), "b": pa.int64()}), [spec], {"x": "y"})
    with pytest.raises(InvalidJob, match="more than one column 'x'"):
        check(pa.schema([("x", pa.int64()), ("x", pa.int64())]), [spec], {"x": "x"})


def test_where_inputs_come_from() -> None:
    specs = [TensorSpec("a", "FP16", (1,)), TensorSpec("b", "BYTES", (1,), optional=True), TensorSpec("m", "BOOL", (1,))]
    nulls = Nulls(fill={"a": 1.5}, masks={"a": "m"})
    assert sources(specs, {}, nulls) == {"a": "a"}
    assert sources(specs, {"b": "body"}, nulls) == {"a": "a", "b": "body"}
    assert leaf_types(specs, {"a": "a", "b": "body"}) == {"a": pa.float32(), "body": pa.string()}
    for columns, policy, told in [
        ({"c": "x"}, Nulls(), "'c' is no input of the graph; its inputs are a, b, m"),
        ({"m": "x"}, nulls, "'m' is told what is null"),
        ({}, Nulls(masks={"a": "b"}), "'b' is BYTES .* must be numbers"),
        ({}, Nulls(fill={"m": "x"}), "'x', which is no BOOL"),
        ({}, Nulls(fill={"a": "many"}), "'many', which is no FP16"),
    ]:
        with pytest.raises(InvalidJob, match=told):
            sources(specs, columns, policy)


def test_bf16_travels_as_fp32() -> None:
    spec = TensorSpec("x", "BF16", (2,))
    values = np.array([[1.5, -2.25]], ml_dtypes.bfloat16)
    column = encode(spec, values)
    assert column.type == pa.list_(pa.float32(), 2)
    assert_array_equal(one(column, spec).tensors["x"], values)


def test_text_that_is_none_is_an_error_of_the_model() -> None:
    spec = TensorSpec("x", "BYTES", (1,))
    assert encode(spec, BytesTensor.of(["ä"], (1, 1)), text=True).to_pylist() == ["ä"]
    with pytest.raises(BackendFailed, match="output 'x' is declared to be text, and is not"):
        encode(spec, BytesTensor.of([b"\xff"], (1, 1)), text=True)


def test_times_are_refused_even_where_they_are_numbers_inside() -> None:
    with pytest.raises(InvalidJob, match="duration"):
        one(pa.array([datetime.timedelta(1)]), TensorSpec("x", "INT64", (1,)))
