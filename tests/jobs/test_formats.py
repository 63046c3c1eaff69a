"""Jobs over what is no Parquet of numbers: other formats, partitions, files, nulls."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import InvalidJob
from headrace.jobs import Options
from headrace.jobs.columns import Nulls
from tests.jobs.conftest import Run, digests, read
from tests.jobs.files import FORMATS, write

ROWS = pa.table({"i": [n % 7 for n in range(300)], "text": [f'row {n},\n"{n}"' for n in range(300)]})


def rejected(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for file in sorted((output / "_rejects").glob("*")) for line in file.read_text().splitlines()]


def test_every_format_gives_the_same_output(run: Run, tmp_path: Path) -> None:
    outputs = [run("lookup", write(tmp_path / f"in.{suffix}", ROWS), suffix) for suffix in FORMATS]
    tables = [read(output) for output in outputs]
    assert tables[0].num_rows == 300
    assert tables[0].column("text").to_pylist() == ROWS.column("text").to_pylist()
    assert all(table.equals(tables[0]) for table in tables)
    as_arrow = run("lookup", tmp_path / "in.csv", "arrow-out", options=Options(batch_rows=16, format="arrow"))
    assert read(as_arrow, "arrow").equals(tables[0])


def test_rows_of_text_that_are_none_are_told_with_their_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("i,text\n1,a\nmany,b\n3,c\n4\n,e\n6,f\n")
    output = run("lookup", path)
    assert read(output).column("text").to_pylist() == ["a", "c", "f"]
    told = rejected(output)
    assert [(row["row"], row["column"]) for row in told] == [(1, None), (3, None), (4, "i")]
    assert "invalid value 'many'" in str(told[0]["reason"])
    assert "Expected 2 columns, got 1" in str(told[1]["reason"])
    assert told[2]["reason"] == "is null"


def test_partitions_are_kept(run: Run, tmp_path: Path) -> None:
    for number, day in enumerate(("2026-01-01", "2026-01-02")):
        for kind in ("a b", "c"):
            write(tmp_path / "in" / f"day={day}" / f"kind={kind.replace(' ', '%20')}" / "x.parquet", ROWS.slice(number * 10, 10))
    output = run("lookup", tmp_path / "in")
    parts = [name for name in digests(output) if name.endswith(".parquet")]
    assert parts[0] == "day=2026-01-01/kind=a%20b/part-00000.parquet"
    assert len(parts) == 4
    table = read(output)
    assert set(table.column_names) == {"text", "y", "day", "kind"}
    assert sorted(set(table.column("kind").to_pylist())) == ["a b", "c"]
    assert pq.read_schema(output / parts[0]).names == ["text", "y"]


def test_files_are_rows(run: Run, tmp_path: Path) -> None:
    for name, content in (("a.txt", b"one two"), ("sub/b", b"three"), ("empty", b"")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    table = read(run("words", tmp_path / "in", options=Options(columns={"text": "bytes"}, input_format="files")))
    assert [Path(path).name for path in table.column("path").to_pylist()] == ["a.txt", "empty", "b"]
    assert [len(row) for row in table.column("y").to_pylist()] == [2, 0, 1]


def test_nulls_are_filled_where_that_is_said(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", pa.table({"i": [1, None, 3]}))
    filled = read(run("lookup", path, options=Options(keep=("i",), nulls=Nulls(fill={"i": 3}))))
    y = filled.column("y").to_pylist()
    assert filled.column("i").to_pylist() == [1, None, 3]
    assert y[1] == y[2] != y[0]
    assert read(run("lookup", path, "strict")).num_rows == 2


def test_a_column_that_is_never_the_input_is_told_before_anything_is_made(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", ROWS)
    with pytest.raises(InvalidJob, match=r"column 'text' is string, which cannot be input 'i', INT64 \[1\]"):
        run("lookup", path, options=Options(columns={"i": "text"}))
    assert not list((tmp_path / "out").rglob("*.parquet"))
