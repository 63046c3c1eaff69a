"""CSV and JSON lines: where rows are, of what type columns are, and what becomes of rows that are none."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidJob, JobFailed
from headrace.jobs.columns import Rejected
from headrace.jobs.dataset import DataSet
from headrace.jobs.formats import rows as scanning
from headrace.jobs.formats.rows import blocks
from headrace.jobs.inputs import CELL_BYTES
from tests.jobs.files import ids, table, write

CELLS = st.text(st.sampled_from('ab,"\n\r\t é'), max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=12), st.integers(1, 40), st.sampled_from(["\n", "\r\n"]))
def test_rows_of_csv_end_where_python_says_they_do(cells: list[tuple[str, str]], block: int, end: str) -> None:
    told = io.StringIO(newline="")
    writer = csv.writer(told, lineterminator=end, quoting=csv.QUOTE_NONNUMERIC)
    ends = [told.tell() for row in cells if writer.writerow(row) is not None]
    data = told.getvalue().encode()
    ends = [len(told.getvalue()[:at].encode()) for at in ends]
    kept, scanning._BLOCK = scanning._BLOCK, block
    try:
        found = list(blocks(pa.PythonFile(io.BytesIO(data), "r"), 0, 1 << 20, ","))
    finally:
        scanning._BLOCK = kept
    assert b"".join(block.data for block in found) == data
    starts = [block.at + start for block in found for start in block.starts.tolist()]
    assert starts == [0, *ends[:-1]]


def read(
    path: Path, columns: list[str] | None = None, types: dict[str, pa.DataType] | None = None, cell_bytes: int = CELL_BYTES
) -> tuple[pa.Table, list[Rejected]]:
    inputs, rows = DataSet.open([str(path)], types=types).select(columns, cell_bytes=cell_bytes), 100
    windows = [window for split in inputs.splits(rows) for window in inputs.read(split, rows)]
    return pa.Table.from_batches([window.batch for window in windows]), [row for window in windows for row in window.rejected]


def test_rows_of_csv_that_are_none_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffid,text\r\n1,a\r\n\r\n2,"b, ""c""\r\nd"\r\nthree,e\r\n4,f,g\r\n5,5" pipe\r\n,\r\nNaN,h')
    table, rejected = read(path, types={"id": pa.float32()})
    assert table.schema == pa.schema({"id": pa.float32(), "text": pa.string()})
    assert table["text"].to_pylist() == ["a", 'b, "c"\r\nd', None, None, '5" pipe', "", "h"]
    assert table["id"].to_pylist()[:2] == [1, 2]
    assert str(table["id"].to_pylist()[-1]) == "nan"
    assert [(row.place, row.column) for row in rejected] == [(2, ""), (3, "")]
    assert "invalid value 'three'" in rejected[0].reason
    assert "Expected 2 columns, got 3" in rejected[1].reason


def test_lines_of_json_that_are_none_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"id": 1, "v": [1, 2]}', '{"id": 2, "v": [0.5], "more": {}}', "", '{"id": "x", "v": []}', "{", "[]", '{"v": null}']
    path.write_text("\n".join(lines))
    table, rejected = read(path, types={"v": pa.float32(), "id": pa.int64()}, columns=["id", "v"])
    assert table.schema == pa.schema({"id": pa.int64(), "v": pa.list_(pa.float32())})
    assert table["id"].to_pylist() == [1, 2, None, None, None, None]
    assert table["v"].to_pylist()[:2] == [[1, 2], [0.5]]
    assert [row.place for row in rejected] == [2, 3, 4]


def test_one_bad_row_does_not_make_a_column_of_numbers_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\nfew,one\n2,two\n")
    assert DataSet.open([str(path)], types={"x": pa.float32()}).schema.field("x").type == pa.float32()
    assert DataSet.open([str(path)], types={"y": pa.float32()}).schema.field("y").type == pa.string()
    assert DataSet.open([str(path)], types={"x": pa.string()}).schema.field("x").type == pa.string()


def test_what_looks_like_a_time_is_text_and_numbers_of_two_files_are_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("when,x,none\n2026-01-01,1,\n")
    (tmp_path / "b.csv").write_text("x,when,none\n0.5,2026-01-01T00:00:00,\n")
    table, rejected = read(tmp_path)
    assert table.to_pylist() == [
        {"when": "2026-01-01", "x": 1.0, "none": ""}, {"when": "2026-01-01T00:00:00", "x": 0.5, "none": ""},
    ]  # fmt: skip
    assert not rejected
    (tmp_path / "c.jsonl").write_text('{"when": "2026-01-01"}\n')
    assert read(tmp_path / "c.jsonl")[0]["when"].to_pylist() == ["2026-01-01"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_row_above_the_limit_is_never_kept(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    rows = [(0, "a"), (1, 'b\n"' * (3 << 20)), (2, "c")]
    with path.open("w", newline="") as file:
        if suffix == "csv":
            csv.writer(file).writerows([("id", "text"), *rows])
        else:
            file.writelines(json.dumps({"id": number, "text": text}) + "\n" for number, text in rows)
    table, rejected = read(path, cell_bytes=2 << 20)
    assert table["text"].to_pylist() == ["a", None, "c"]
    (row,) = rejected
    assert row.place == 1
    assert row.reason.endswith("bytes, more than the 2097152 that a cell may have")


def test_splits_of_text_begin_at_their_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n" + "".join(f'{n},"line\nof {n}"\n' for n in range(1000)))
    inputs = DataSet.open([str(path)]).select(["id"])
    splits = inputs.splits(300)
    content = path.read_bytes()
    assert [content[split.begin :].split(b",", 1)[0] for split in splits] == [b"0", b"300", b"600", b"900"]
    assert ids(inputs, splits[2:3]) == list(range(600, 900))
    assert sum(split.rows for split in inputs.splits(300, limit=450)) == 450


@pytest.mark.parametrize(
    ("suffix", "packed", "codec"),
    [("csv", "gz", "gzip"), ("jsonl", "zst", "zstd"), ("csv", "bz2", "bz2"), ("jsonl", "lz4", "lz4")],
)
def test_a_compressed_file_is_one_split(tmp_path: Path, suffix: str, packed: str, codec: str) -> None:
    """Its rows are those of the file that was compressed; that some of it is missing is seen."""
    rows = table(40_000)
    content = write(tmp_path / f"plain.{suffix}", rows).read_bytes()
    path = tmp_path / f"a.{suffix}.{packed}"
    with pa.output_stream(path, compression=codec) as stream:
        stream.write(b"\xef\xbb\xbf" + content)
    inputs = DataSet.open([str(path)]).select()
    splits = inputs.splits(300)
    assert [(split.first, split.rows) for split in splits] == [(0, rows.num_rows)]
    read = pa.Table.from_batches([window.batch for window in inputs.read(splits[0], 4096)])
    assert read.equals(rows)
    assert inputs.splits(300, limit=450)[0].rows == 450
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(JobFailed, match=rf"a\.{suffix}\.{packed} cannot be read: .*\. Put a whole file there"):
        DataSet.open([str(path)]).select().splits(300)


def test_text_without_columns_is_told(tmp_path: Path) -> None:
    for name, content, told in [
        ("a.csv", "", "has no first row"),
        ("b.csv", "x,x\n1,2\n", "has two columns 'x'"),
        ("c.jsonl", "[1]\n", "has no row at its beginning that can be parsed"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(InvalidJob, match=told):
            DataSet.open([str(tmp_path / name)])
