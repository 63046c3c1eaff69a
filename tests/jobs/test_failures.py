"""What is nobody's fault stops a job; what is finished stays, and when the cause is mended it goes on to the same end."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import InvalidJob, JobFailed
from headrace.jobs import BatchJob, Options, job
from headrace.jobs.split import windows
from tests.jobs.conftest import Run, digests, read, write_vectors
from tests.jobs.test_kills import command

OPTIONS = Options(batch_rows=16)


def parts(output: Path) -> list[str]:
    return sorted(path.name for path in output.glob("part-*"))


def test_a_disk_that_is_full(run: Run, repository: Path, tmp_path: Path) -> None:
    """Parts of the second file are larger than this process may write."""
    write_vectors(tmp_path / "in", [1024, 1024])
    table = pq.read_table(tmp_path / "in" / "001.parquet")
    large = [os.urandom(400).hex() for _ in range(1024)]
    pq.write_table(table.append_column("note", pa.array(large)), tmp_path / "in" / "001.parquet")
    table = pq.read_table(tmp_path / "in" / "000.parquet")
    pq.write_table(table.append_column("note", pa.array([""] * 1024)), tmp_path / "in" / "000.parquet")
    job = command(repository, tmp_path / "in", tmp_path / "out")
    limited = subprocess.run(
        [sys.executable, "-m", "headrace", *job],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert limited.returncode == 2
    assert "File too large. 1 of 2 splits are finished and stay so; when this is mended, go on with --resume" in limited.stderr
    assert parts(tmp_path / "out") == ["part-00000.parquet"]
    assert not list((tmp_path / "out" / "_headrace" / "tmp").iterdir())
    run("mlp", tmp_path / "in", resume=True)
    assert digests(tmp_path / "out") == digests(run("mlp", tmp_path / "in", "undisturbed"))


def test_a_corrupt_page_in_the_middle_of_a_file(run: Run, repository: Path, tmp_path: Path) -> None:
    files = write_vectors(tmp_path / "in", [1024, 3000])
    file = files / "001.parquet"
    sound, status = file.read_bytes(), file.stat()
    at = pq.ParquetFile(file).metadata.row_group(3).column(1).data_page_offset
    then = (status.st_atime_ns, status.st_mtime_ns)
    file.write_bytes(sound[:at] + bytes(range(64)) + sound[at + 64 :])
    os.utime(file, ns=then)
    with pytest.raises(JobFailed, match=r"001\.parquet.*row group 3.*2 of 4 splits are finished"):
        run("mlp", files)
    assert parts(tmp_path / "out") == ["part-00000.parquet", "part-00001.parquet"]
    file.write_bytes(sound)
    os.utime(file, ns=then)
    assert digests(run("mlp", files, resume=True)) == digests(run("mlp", files, "undisturbed"))


def test_input_that_changes_meanwhile(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two splits of a file."""
    files = write_vectors(tmp_path / "in", [1024, 2048])

    def changing(recipe: Any, inputs: Any, number: int, split: Any) -> Iterator[Any]:
        if number == 2:
            pq.write_table(pq.read_table(files / "001.parquet").slice(1), files / "001.parquet")
        return windows(recipe, inputs, number, split)

    monkeypatch.setattr(job, "windows", changing)
    with pytest.raises(JobFailed, match=r"001\.parquet.*changed.*2 of 4 splits are finished"):
        BatchJob("mlp", repository, files, tmp_path / "out", OPTIONS).run()
    assert parts(tmp_path / "out") == ["part-00000.parquet", "part-00001.parquet"]


def test_files_with_different_columns(run: Run, tmp_path: Path) -> None:
    files = write_vectors(tmp_path / "in", [10, 10])
    table = pq.read_table(files / "001.parquet")
    pq.write_table(table.set_column(0, "id", pa.array(map(str, range(10)))), files / "001.parquet")
    with pytest.raises(InvalidJob, match=r"'id' is int64 in .*000\.parquet, and string in .*001\.parquet"):
        run("mlp", files)


def test_nulls_and_wrong_cells_are_told_of(run: Run, tmp_path: Path) -> None:
    x = [[float(row)] * 32 for row in range(40)]
    x[3] = None  # type: ignore[call-overload]
    x[20] = [1.0] * 31
    x[21][7] = None  # type: ignore[call-overload]
    pq.write_table(pa.table({"x": pa.array(x, pa.list_(pa.float32())), "row": np.arange(40)}), tmp_path / "in.parquet")
    table = read(run("mlp", tmp_path / "in.parquet"))
    assert table.column("row").to_pylist() == [row for row in range(40) if row not in (3, 20, 21)]
    lines = (tmp_path / "out" / "_rejects" / "part-00000.jsonl").read_text().splitlines()
    assert [line.split('"reason": ')[1] for line in lines] == ['"is null"}', '"has the dims [31], not [32]"}', '"is null"}']
