"""The input of a job: which files it is, where it is cut, and that every row is read once, in order, in bounded pieces."""

from __future__ import annotations

import json
import os
import random
import resource
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from headrace.errors import InvalidJob, JobChanged, JobFailed
from headrace.jobs import inputs as inputs_module
from headrace.jobs.columns import Rejected
from headrace.jobs.dataset import DataSet
from headrace.jobs.inputs import Inputs
from tests.jobs.counting import Counting
from tests.jobs.files import FORMATS, ids, table, write


def described(inputs: Inputs) -> dict[str, Any]:
    """As a manifest has it."""
    return json.loads(json.dumps(inputs.record()))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("split_rows", "window_rows"), [(1000, 1000), (70, 32), (7, 3), (150, 64)])
def test_every_row_is_read_once_and_in_order(tmp_path: Path, suffix: str, split_rows: int, window_rows: int) -> None:
    files = [
        write(tmp_path / f"{name}.{suffix}", table(rows, first))
        for name, rows, first in [("b", 230, 20), ("a", 20, 0), ("c", 0, 0)]
    ]
    whole = pa.concat_tables([table(20), table(230, 20)])
    # An empty file of JSON lines does not say what it has no rows of.
    inputs = DataSet.open([str(file) for file in sorted(files)[: 2 if suffix == "jsonl" else 3]]).select(["text", "id"])
    splits = inputs.splits(split_rows)
    assert sum(split.rows for split in splits) == 250
    assert max(split.rows for split in splits) <= split_rows
    read: list[dict[str, Any]] = []
    for split in splits:
        windows = list(inputs.read(split, window_rows))
        sizes = [window.batch.num_rows for window in windows]
        assert all(size == window_rows for size in sizes[:-1])
        assert sum(sizes) == split.rows
        assert not any(window.rejected for window in windows)
        assert all(window.batch.schema == inputs.schema for window in windows)
        read += [row for window in windows for row in window.batch.to_pylist()]
    assert read == whole.select(["text", "id"]).to_pylist()
    # Any split by itself is the same as in the course of all of them.
    again = Inputs.restore(described(inputs))
    for split in reversed(splits):
        assert ids(again, (split,), window_rows) == ids(inputs, (split,), window_rows)
    path, row = inputs.place(splits[-1], 0)
    assert (path, row) == (str(tmp_path / f"b.{suffix}"), splits[-1].first)


def test_row_groups_stay_whole_where_they_are_small(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table(500), group_rows=40)
    inputs = DataSet.open([str(tmp_path)]).select()
    assert {split.rows for split in inputs.splits(100)} == {80, 100}
    assert [split.rows for split in inputs.splits(30)][:3] == [30, 10, 30]
    assert [split.rows for split in inputs.splits(100, limit=90)] == [80, 10]


def test_splits_that_follow_one_another_open_a_file_once(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 300)):
        write(tmp_path / f"{name}.parquet", table(300, first), group_rows=300)
    handler = Counting()
    inputs = DataSet.open([str(tmp_path)], filesystem=handler.filesystem).select(["id"])
    splits = inputs.splits(50)
    handler.opened.clear()
    assert ids(inputs, splits) == list(range(600))
    # Each to see that it is the file it was, and to read it.
    assert len(handler.opened) == 4


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_job_that_goes_on_opens_only_what_it_reads(tmp_path: Path, suffix: str) -> None:
    for name, first in (("a", 0), ("b", 100)):
        write(tmp_path / f"{name}.{suffix}", table(100, first))
    began = DataSet.open([str(tmp_path / "*")]).select(["id"])
    splits = began.splits(50)
    handler = Counting()
    inputs = Inputs.restore(described(began), handler.filesystem)
    assert handler.opened == []
    assert ids(inputs, splits[3:]) == list(range(150, 200))
    assert {Path(path).name for path in handler.opened} == {f"b.{suffix}"}


def test_what_changed_is_told_before_a_job_goes_on(tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path / f"{name}.parquet", table(10))
    record = described(DataSet.open([str(tmp_path / "*.parquet")]).select())
    Inputs.restore(record)
    write(tmp_path / "a.parquet", table(11))
    (tmp_path / "b.parquet").unlink()
    stamp = (tmp_path / "c.parquet").stat().st_mtime_ns + 1
    os.utime(tmp_path / "c.parquet", ns=(stamp, stamp))
    write(tmp_path / "e.parquet", table(10))
    with pytest.raises(JobChanged) as caught:
        Inputs.restore(record)
    told = [change.removeprefix(f"{tmp_path}/") for change in caught.value.changes]
    assert told[0] == "e.parquet is new"
    assert told[1].startswith("a.parquet has ")
    assert told[2:] == ["b.parquet is gone", "c.parquet was written anew"]


def test_directories_are_columns(tmp_path: Path) -> None:
    for day, kind, first in ((1, "a%2Fb", 0), (2, "__HIVE_DEFAULT_PARTITION__", 10)):
        write(tmp_path / f"day={day}" / f"kind={kind}" / "x.parquet", table(10, first))
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "day=1" / ".x.parquet.tmp").touch()
    inputs = DataSet.open([str(tmp_path)]).select()
    assert inputs.partitions == ("day", "kind")
    first, second = inputs.splits(10)
    assert inputs.partition(first) == "day=1/kind=a%2Fb"
    rows = next(iter(inputs.read(first, 10))).batch.to_pylist()
    assert (rows[3]["id"], rows[3]["day"], rows[3]["kind"]) == (3, 1, "a/b")
    assert next(iter(inputs.read(second, 10))).batch["kind"].null_count == 10
    projected = DataSet.open([str(tmp_path)]).select(["day", "id"])
    assert projected.schema.names == ["day", "id"]
    with pytest.raises(InvalidJob, match="no column is read but those that directories are"):
        DataSet.open([str(tmp_path)]).select(["day"])
    write(tmp_path / "day=3" / "x.parquet", table(1))
    with pytest.raises(InvalidJob, match=r"lies in directories of day, kind, and .*day=3/x\.parquet in those of day"):
        DataSet.open([str(tmp_path)]).select()


def test_files_as_rows(tmp_path: Path) -> None:
    for name, content in (
        ("b.png", b"\x89PNG"),
        ("sub/a.wav", b"RIFF"),
        ("_c", b""),
        (".git/x", b"hidden"),
        ("z.gz", b"no gzip"),
        ("large", b"y" * 2000),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    handler = Counting()
    inputs = DataSet.open([str(tmp_path)], filesystem=handler.filesystem).select(cell_bytes=1000)
    splits = inputs.splits(3)
    assert handler.opened == []
    windows = [window for split in splits for window in inputs.read(split, 2)]
    rows = [row for window in windows for row in window.batch.to_pylist()]
    assert [Path(row["path"]).name for row in rows] == ["_c", "b.png", "large", "a.wav", "z.gz"]
    assert [row["bytes"] for row in rows] == [b"", b"\x89PNG", None, b"RIFF", b"no gzip"]
    assert windows[1].rejected == (Rejected(0, "bytes", "is 2000 bytes, more than the 1000 that a cell may have"),)
    assert str(tmp_path / "large") not in handler.opened
    assert inputs.place(splits[0], 1) == (str(tmp_path / "b.png"), 0)
    (tmp_path / "b.png").write_bytes(b"other")
    with pytest.raises(JobFailed, match=r"b\.png has 5 bytes, and had 4"):
        list(inputs.read(splits[0], 2))


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    wide = pa.table({"id": range(2000), "wide": [os.urandom(500) for _ in range(2000)]})
    path = write(tmp_path / "a.parquet", wide)

    class Counted(Counting):
        nbytes = 0

        def open_input_file(self, path: str) -> Any:
            counted, raw = self, open(path, "rb")  # noqa: SIM115, PTH123 - pyarrow closes it

            class File:
                closed = False

                def read(self, size: int = -1) -> bytes:
                    content = raw.read(size)
                    counted.nbytes += len(content)
                    return content

                def __getattr__(self, name: str) -> Any:
                    return getattr(raw, name)

            return pa.PythonFile(File(), "r")

    handler = Counted()
    inputs = DataSet.open([str(path)], filesystem=handler.filesystem).select(["id"])
    assert ids(inputs, inputs.splits(100)) == list(range(2000))
    assert handler.nbytes < path.stat().st_size / 4


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_that_do_not_agree_are_told_with_the_column(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a.{suffix}", pa.table({"id": [1], "x": [1]}))
    write(tmp_path / f"b.{suffix}", pa.table({"id": [1], "x": ["one"]}))
    write(tmp_path / f"c.{suffix}", pa.table({"id": [1], "y": [1]}))
    DataSet.open([str(tmp_path)]).select(["id"])
    with pytest.raises(InvalidJob, match=rf"column 'x' is int64 in .*a\.{suffix}, and string in .*b\.{suffix}"):
        DataSet.open([str(tmp_path)]).select(["x"])
    with pytest.raises(InvalidJob, match=rf"column 'x' is int64 in .*a\.{suffix}, and is not there in .*c\.{suffix}"):
        DataSet.open([str(tmp_path / f"[ac].{suffix}")]).select(["x"])
    with pytest.raises(InvalidJob, match=rf"a\.{suffix} has no column 'z'; its columns are id, x"):
        DataSet.open([str(tmp_path)]).select(["z"])


def test_a_broken_page_is_told_with_its_row_group_and_what_is_before_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(300), group_rows=100)
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    content = bytearray(path.read_bytes())
    at = column.data_page_offset + column.total_compressed_size // 2
    content[at] ^= 0xFF
    stamp = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(stamp, stamp))
    inputs = DataSet.open([str(path)]).select()
    splits = inputs.splits(100)
    assert ids(inputs, splits[:1]) == list(range(100))
    with pytest.raises(JobFailed, match=r"a\.parquet cannot be read, row group 1: "):
        ids(inputs, splits[1:2])
    assert ids(inputs, splits[2:]) == list(range(200, 300))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_file_that_ends_too_early_is_told(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", table(300))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(JobFailed, match=rf"a\.{suffix} cannot be read"):
        DataSet.open([str(path)]).select()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_changes_meanwhile_is_told(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", table(30))
    inputs = DataSet.open([str(path)]).select(["id"])
    first, second = inputs.splits(15)
    windows = inputs.read(first, 10)
    next(windows)
    stamp = path.stat().st_mtime_ns + 1
    os.utime(path, ns=(stamp, stamp))
    with pytest.raises(JobFailed, match=rf"a\.{suffix} was written anew: it was changed while the job ran"):
        list(windows)
    os.utime(path, ns=(stamp - 1, stamp - 1))
    assert ids(inputs, (first, second)) == list(range(30))


def test_dictionaries_and_views_are_read_as_what_they_stand_for(tmp_path: Path) -> None:
    texts = pa.array(["a", None, "b" * 3000, "a"])
    views = pa.array([["c"], ["d", "e"], None, ["f" * 3000]], pa.list_(pa.string_view()))
    columns = {"name": texts.dictionary_encode(), "view": texts.cast(pa.string_view()), "views": views}
    feather.write_feather(pa.table(columns), str(tmp_path / "a.arrow"), compression="uncompressed", chunksize=3)
    inputs = DataSet.open([str(tmp_path / "a.arrow")]).select(cell_bytes=2000)
    assert [str(kind) for kind in inputs.schema.types] == ["string", "large_string", "large_list<item: large_string>"]
    (window,) = inputs.read(inputs.splits(10)[0], 10)
    assert window.batch["name"].to_pylist() == window.batch["view"].to_pylist() == ["a", None, None, "a"]
    assert window.batch["views"].to_pylist() == [["c"], ["d", "e"], None, None]
    assert [(row.place, row.column) for row in window.rejected] == [(2, "name"), (3, "views")]


def test_a_cell_above_the_limit_is_rejected(tmp_path: Path) -> None:
    rows = pa.table({"id": [0, 1, 2], "text": ["a", "b" * 5000, "c"], "list": [[1.0], [2.0], [3.0] * 1000]})
    for suffix in FORMATS[:2]:
        inputs = DataSet.open([str(write(tmp_path / f"a.{suffix}", rows))]).select(cell_bytes=2000)
        (window,) = inputs.read(inputs.splits(10)[0], 10)
        assert window.rejected == (
            Rejected(1, "text", "is 5000 bytes, more than the 2000 that a cell may have"),
            Rejected(2, "list", "is 8000 bytes, more than the 2000 that a cell may have"),
        )
        assert window.batch["text"].to_pylist() == ["a", None, "c"]


def test_what_is_no_input_is_told(tmp_path: Path) -> None:
    for where, options, told in [
        ("none.parquet", {}, "there is no file at .*none.parquet"),
        ("*.csv", {}, "there is no file at .*csv"),
        ("", {}, "files of several formats, .*a.arrow .arrow. and .*b.parquet .parquet."),
        ("b.parquet", {"format": "excel"}, "'excel' is no format of input; formats are parquet, arrow, csv, json, files"),
    ]:
        write(tmp_path / "a.arrow", table(1))
        write(tmp_path / "b.parquet", table(1))
        with pytest.raises(InvalidJob, match=told):
            DataSet.open([str(tmp_path / where)], **options)
    with pytest.raises(InvalidJob, match=r"b\.parquet is in the input twice"):
        DataSet.open([str(tmp_path / "b.parquet"), str(tmp_path / "*.parquet")])


def test_patterns(tmp_path: Path) -> None:
    for name in ("a.parquet", "sub/b.parquet", "sub/deep/c.parquet", "sub/_d.parquet"):
        write(tmp_path / name, table(1))
    for pattern, names in [
        ("*.parquet", "a"),
        ("**/*.parquet", "abc"),
        ("sub/*.parquet", "_b"),
        ("sub/**", "bc"),
        ("s?b/[bc].*", "b"),
        ("sub", "bc"),
    ]:
        found = DataSet.open([str(tmp_path / pattern)]).select().files
        assert "".join(sorted(Path(file.found.path).name[0] for file in found)) == names


@pytest.mark.parametrize("suffix", FORMATS)
def test_broken_bytes_are_an_error_or_rejected_rows_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", table(200), group_rows=50)
    whole, rng = path.read_bytes(), random.Random(suffix)
    told = 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        try:
            inputs = DataSet.open([str(path)], types={"id": pa.int64()}).select(["id", "text"])
            for split in inputs.splits(60):
                windows = list(inputs.read(split, 25))
                assert sum(window.batch.num_rows for window in windows) == split.rows
                told += sum(len(window.rejected) for window in windows)
        except (InvalidJob, JobFailed) as error:
            assert path.name in str(error)
            told += 1
    assert told > 20


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "files"])
def test_a_cell_of_a_gigabyte_is_rejected_and_its_neighbours_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    size = 1 << 30
    if suffix == "files":
        (tmp_path / "0").write_bytes(b"a")
        with (tmp_path / "1").open("wb") as file:
            file.truncate(size)
        path = tmp_path
    elif suffix == "parquet":
        pq.write_table(pa.table({"text": ["a", "b" * size, "c"]}), path, use_dictionary=False)
    else:
        with path.open("w") as file:
            file.write('text\na\n"' if suffix == "csv" else '{"text": "a"}\n{"text": "')
            for _ in range(1024):
                file.write("b" * (1 << 20))
            file.write('"\nc\n' if suffix == "csv" else '"}\n{"text": "c"}\n')
    inputs = DataSet.open([str(path)]).select()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    windows = [window for split in inputs.splits(10) for window in inputs.read(split, 10)]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    firsts = accumulate((window.batch.num_rows for window in windows), initial=0)  # a large file is a window of its own
    assert [first + row.place for first, window in zip(firsts, windows, strict=False) for row in window.rejected] == [1]
    assert sum(window.batch.num_rows for window in windows) == (2 if suffix == "files" else 3)
    if suffix != "parquet":  # whose reader makes whole pages
        assert grown < 256 << 10


def test_a_window_of_large_files_has_few_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [10, 50, 50, 60, 200, 10, 10, 10, 10, 90]
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.bin").write_bytes(bytes(size))
    monkeypatch.setattr(inputs_module, "WINDOW_BYTES", 100)
    inputs = DataSet.open([str(tmp_path)], format="files").select(["bytes"])
    (split,) = inputs.splits(100)
    windows = [window.batch.column("bytes").to_pylist() for window in inputs.read(split, 3)]
    assert [[len(content) for content in window] for window in windows] == [[10, 50], [50], [60], [200], [10, 10, 10], [10, 90]]
