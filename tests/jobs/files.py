"""Files for tests of jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.feather as feather
import pyarrow.parquet as pq

from headrace.jobs.inputs import Inputs, Split

FORMATS = ("parquet", "arrow", "csv", "jsonl")


def table(rows: int, first: int = 0) -> pa.Table:
    """Numbers and text, by which each row is known."""
    numbers = range(first, first + rows)
    texts = [f'row {n}, "{"x" * (n % 7)}"\nand more' for n in numbers]
    schema = pa.schema({"id": pa.int64(), "text": pa.string(), "half": pa.float64()})
    return pa.table({"id": list(numbers), "text": texts, "half": [n / 2 for n in numbers]}, schema)


def write(path: Path, rows: pa.Table, *, group_rows: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(rows, path, row_group_size=group_rows, write_page_checksum=True)
    elif path.suffix == ".arrow":
        feather.write_feather(rows, str(path), chunksize=group_rows)
    elif path.suffix == ".csv":
        pcsv.write_csv(rows, path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows.to_pylist()))
    return path


def ids(inputs: Inputs, splits: tuple[Split, ...], window_rows: int = 64) -> list[int]:
    """What is in the column `id` of these splits."""
    return [number for split in splits for window in inputs.read(split, window_rows) for number in window.batch["id"].to_pylist()]
