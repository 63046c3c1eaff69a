"""Files for tests of jobs, and a file system that says what was opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.feather as feather
import pyarrow.fs as pfs
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


class Opened(pfs.FileSystemHandler):
    """The local file system; `opened` are the files that somebody has opened."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self._local = pfs.LocalFileSystem()

    def open_input_file(self, path: str) -> Any:
        self.opened.append(path)
        return self._local.open_input_file(path)

    def open_input_stream(self, path: str) -> Any:
        self.opened.append(path)
        return self._local.open_input_stream(path)

    def get_file_info(self, paths: list[str]) -> Any:
        return self._local.get_file_info(paths)

    def get_file_info_selector(self, selector: pfs.FileSelector) -> Any:
        return self._local.get_file_info(selector)

    def get_type_name(self) -> str:
        return "opened"

    def normalize_path(self, path: str) -> str:
        return path

    def _refused(self, *_: object, **__: object) -> Any:
        raise PermissionError("an input is only read")

    open_output_stream = open_append_stream = create_dir = delete_dir = delete_dir_contents = _refused
    delete_root_dir_contents = delete_file = move = copy_file = _refused


def ids(inputs: Inputs, splits: tuple[Split, ...], window_rows: int = 64) -> list[int]:
    """What is in the column `id` of these splits."""
    return [number for split in splits for window in inputs.read(split, window_rows) for number in window.batch["id"].to_pylist()]
