"""The command, as people and programs meet it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs.conftest import digests, write_vectors
from tests.jobs.test_kills import command
from tests.waiting import until

HEADRACE = [sys.executable, "-m", "headrace"]


def headrace(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HEADRACE, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_lines_for_programs_and_an_exit_status(repository: Path, tmp_path: Path) -> None:
    """Rows that were rejected make it 1."""
    pq.write_table(pa.table({"body": np.where(np.arange(100) == 7, 77, 1)}), tmp_path / "in.parquet")
    where = ("--repository", repository, "--input", tmp_path / "in.parquet", "--output", tmp_path / "out")
    told = headrace("batch", "lookup", *where, "--columns", "i=body", "--keep", "body", "--batch-rows", "8")
    assert (told.returncode, told.stderr) == (1, "")
    last = json.loads(told.stdout.splitlines()[-1])
    assert {key: last[key] for key in ("event", "rows", "total_rows", "rejected", "splits", "batch_rows")} == {
        "event": "done", "rows": 100, "total_rows": 100, "rejected": 1, "splits": 1, "batch_rows": [8, 8],
    }  # fmt: skip
    again = headrace("batch", "lookup", *where)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == f"headrace: {tmp_path / 'out'} has a job already: go on with it (--resume), or choose another output\n"


def test_a_bar_and_a_table_for_people(repository: Path, tmp_path: Path) -> None:
    files = write_vectors(tmp_path / "in", [3000])
    ours, theirs = pty.openpty()
    arguments = ["batch", "mlp", "--repository", repository, "--input", files, "--output", tmp_path / "out", "--batch-rows=16"]
    process = subprocess.Popen([*HEADRACE, *map(str, arguments)], stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # nobody writes there any more
            break
    os.close(ours)
    assert process.wait() == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    told = seen.decode()
    for words in ("rows", "3,000", "rejected", "batches of", "rows/s", str(tmp_path)[:20]):
        assert words in told


def test_ctrl_c_ends_it_in_order_and_says_how_to_go_on(repository: Path, tmp_path: Path) -> None:
    files = write_vectors(tmp_path / "in", [40_000])
    job = command(repository, files, tmp_path / "out")
    process = subprocess.Popen([*HEADRACE, *job], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    splits = tmp_path / "out" / "_headrace" / "splits"
    until(lambda: splits.is_dir() and any(splits.iterdir()), 30)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "splits are finished. Go on with:" in told
    assert f"  headrace {' '.join(word for word in job if word != '--resume')} --resume\n" in told
    assert not list((tmp_path / "out" / "_headrace" / "tmp").iterdir())
    assert headrace(*job).returncode == 0
    assert len(digests(tmp_path / "out")) == 40


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--batch-rows", "many"], "--batch-rows is 'many', expected auto or a number from 1 on"),
        (["--columns", "x"], "--columns is 'x', expected NAME=VALUE"),
        (["--input", "/nowhere/*.parquet"], "/nowhere/*.parquet"),
    ],
)
def test_options_that_mean_nothing(repository: Path, tmp_path: Path, options: list[str], told: str) -> None:
    files = [] if "--input" in options else ["--input", write_vectors(tmp_path / "in", [1])]
    said = headrace("batch", "mlp", "--repository", repository, "--output", tmp_path / "out", *files, *options)
    assert said.returncode == 2
    assert told in said.stderr
    assert said.stderr.count("\n") == 1


def test_verify(repository: Path, tmp_path: Path) -> None:
    """What is as it was recorded; then a byte that is not, and a row that is recorded and does not come out."""
    files = write_vectors(tmp_path / "in", [2000, 500])
    job = command(repository, files, output := tmp_path / "out")
    assert headrace(*job).returncode == 0
    good = headrace("batch", "verify", output, "--sample", 2)
    assert (good.returncode, good.stderr) == (0, "")
    assert "3 parts and 2500 rows as recorded" in good.stdout
    part = output / "part-00002.parquet"
    table = pq.read_table(part)
    y = table.column("y").to_pylist()
    y[0][0] = np.nextafter(np.float32(y[0][0]), np.float32(2))
    pq.write_table(table.set_column(1, table.schema.field("y"), pa.array(y, table.schema.field("y").type)), part)
    record = output / "_headrace" / "splits" / "00002.json"
    bad = headrace("batch", "verify", output, "--sample", 3, "--json")
    assert bad.returncode == 1
    problems = json.loads(bad.stdout)["problems"]
    assert [problem.split(" ")[0].rpartition("/")[2] for problem in problems[:1]] == ["part-00002.parquet"]
    assert "rows 0 to 500 of part-00002.parquet come out otherwise" in problems
    record.unlink()
    assert "the job is not finished: 2 of 3 splits are" in headrace("batch", "verify", output).stdout
