"""What is sent, against what the server said of its model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from headrace.errors import InvalidLoad
from headrace.load.messages import Share, messages_of_file, parse_shape, parse_share, random_messages
from headrace.protocol.codec import decode_request
from headrace.protocol.headrace_pb2 import ModelMetadataResponse
from headrace.request import Request
from headrace.tensor import RawTensor


def model(**inputs: tuple[str, tuple[int, ...]]) -> ModelMetadataResponse:
    told = ModelMetadataResponse(name="m", versions=["1"])
    for name, (datatype, shape) in inputs.items():
        told.inputs.add(name=name, datatype=datatype, shape=shape)
    return told


def raw(request: Request, name: str) -> RawTensor:
    tensor = request.inputs[name]
    assert isinstance(tensor, RawTensor)
    return tensor


def test_random_inputs_are_of_the_declared_type_and_shape() -> None:
    kinds = ("FP16", "BF16", "FP32", "FP64", "INT8", "INT64", "UINT16", "BOOL", "BYTES")
    asked = random_messages(model(**{kind.lower(): (kind, (-1, 3)) for kind in kinds}), "2", [Share(rows=4)], seed=0)
    for packed in asked.packed:
        request = decode_request(packed)
        assert (request.model, request.version) == ("m", 2)
        for kind in kinds:
            assert (raw(request, kind.lower()).datatype, raw(request, kind.lower()).shape) == (kind, (4, 3))


def test_without_a_leading_open_dimension_there_are_no_rows() -> None:
    request = decode_request(random_messages(model(x=("FP32", (2, 3))), "", [Share(rows=4)], seed=0).packed[0])
    assert raw(request, "x").shape == (2, 3)


def test_a_mix_is_mixed_by_weight() -> None:
    names = ["shape.x=7 priority=2 timeout_us=500", "weight=3 shape.x=5"]
    asked = random_messages(model(x=("FP32", (-1, -1))), "", [parse_share(name, {}) for name in names], seed=0)
    of_share = Counter(asked.shares[pick] for pick in asked.picks.tolist())
    assert of_share[1] / of_share[0] == pytest.approx(3, rel=0.01)
    first = decode_request(asked.packed[asked.shares.index(0)])
    assert (raw(first, "x").shape, first.priority, first.timeout_ns) == ((1, 7), 2, 500_000)
    assert asked.names == names


def test_the_seed_decides() -> None:
    one, again, other = (random_messages(model(x=("FP32", (-1, 3))), "", [Share()], seed).packed for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ([Share()], "--shape x=16"),
        ([Share(shapes={"y": (3,)})], "no input 'y'; its inputs are x"),
        ([Share(shapes={"x": (3, 3)})], "the model declares"),
    ],
)
def test_a_shape_that_cannot_be_is_told(shares: list[Share], told: str) -> None:
    with pytest.raises(InvalidLoad, match=told):
        random_messages(model(x=("FP32", (-1, -1))), "", shares, seed=0)


def test_a_rare_share_is_not_left_out() -> None:
    names = ["weight=100000", "weight=1 rows=2"]
    asked = random_messages(model(x=("FP32", (-1, 3))), "", [parse_share(name, {}) for name in names], seed=0)
    of_share = Counter(asked.shares[pick] for pick in asked.picks.tolist())
    assert of_share[0] / of_share[1] == pytest.approx(100_000, rel=0.5)


def test_messages_that_no_memory_holds_are_told() -> None:
    with pytest.raises(InvalidLoad, match="too large"):
        random_messages(model(x=("FP32", (-1, 3))), "", [Share(rows=10**9)], seed=0)


@pytest.mark.parametrize(
    "text",
    [
        "rows=0",
        "weight=-1",
        "weight=nan",
        "priority=-1",
        "timeout_us=-1",
        "weight=1e300",
        "rows=a",
        "colour=red",
        "shape.x=a",
        "rows",
    ],
)
def test_a_share_that_is_none_is_told(text: str) -> None:
    with pytest.raises(InvalidLoad, match="--mix"):
        parse_share(text, {})


@pytest.mark.parametrize("text", ["x", "x=a", "x=-3"])
def test_a_shape_that_is_none_is_told(text: str) -> None:
    with pytest.raises(InvalidLoad, match="--shape"):
        parse_shape(text)


def write(file: Path, table: pa.Table) -> Path:
    if file.suffix == ".parquet":
        parquet.write_table(table, file)
    else:
        feather.write_feather(table, file, compression="uncompressed")
    return file


@pytest.mark.parametrize("suffix", [".arrow", ".feather", ".parquet"])
def test_rows_of_a_table_are_requests(tmp_path: Path, suffix: str) -> None:
    """Real inputs: what is in the table is what the server gets, in its order, with mixed lengths and classes."""
    columns = {"x": [[1.0, 2.0], [3.0, 4.0, 5.0], [6.0]], "text": ["a", "bc", ""], "priority": [1, 2, 1], "timeout_us": [0, 7, 0]}
    file = write(tmp_path / f"inputs{suffix}", pa.table(columns))
    asked = messages_of_file(model(x=("FP32", (-1, -1)), text=("BYTES", (-1, 1))), "", file)
    requests = [decode_request(packed) for packed in asked.packed]
    assert [np.frombuffer(raw(r, "x").data, np.float32).tolist() for r in requests] == columns["x"]
    assert [raw(r, "x").shape for r in requests] == [(1, 2), (1, 3), (1, 1)]
    assert [bytes(raw(r, "text").data)[4:].decode() for r in requests] == columns["text"]
    assert [(r.priority, r.timeout_ns) for r in requests] == [(1, 0), (2, 7000), (1, 0)]
    assert asked.picks.tolist() == [0, 1, 2]
    assert (list(asked.names), list(asked.shares)) == (["priority=1", "priority=2"], [0, 1, 0])


def test_rows_of_a_fixed_width_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "inputs.arrow", pa.table({"x": [list(range(6)), list(range(3))]}))
    requests = [decode_request(packed) for packed in messages_of_file(model(x=("INT32", (-1, 3))), "", file).packed]
    assert [raw(r, "x").shape for r in requests] == [(2, 3), (1, 3)]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"x": [[1.0, 2.0]]}, "row 0, column 'x': 2 elements do not fit"),
        ({"x": [[1.0] * 3, None]}, "row 1, column 'x': is null"),
        ({"x": ["a"]}, "row 0, column 'x': no FP32 tensor"),
        ({"y": [[1.0] * 3]}, "no input 'y'"),
        ({"priority": [1]}, "no column for input 'x'"),
        ({"x": [[1.0] * 3], "priority": [-1]}, "column 'priority': -1 is no whole number"),
        ({"x": [[1.0] * 3], "timeout_us": ["soon"]}, "column 'timeout_us': 'soon' is no whole number"),
        ({"x": pa.array([], pa.list_(pa.float32()))}, "no rows"),
    ],
)
def test_a_table_that_does_not_suit_the_model_is_told(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    file = write(tmp_path / "inputs.arrow", pa.table(columns))
    with pytest.raises(InvalidLoad, match=told):
        messages_of_file(model(x=("FP32", (-1, 3))), "", file)


@pytest.mark.parametrize(
    ("name", "told"), [("none.arrow", "there is no file"), ("junk.arrow", "Arrow IPC"), ("junk.parquet", "Parquet")]
)
def test_a_file_that_is_no_table_is_told(tmp_path: Path, name: str, told: str) -> None:
    if name.startswith("junk"):
        (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(InvalidLoad, match=told):
        messages_of_file(model(x=("FP32", (-1, 3))), "", tmp_path / name)
