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

from headrace.cli.app import app
from headrace.errors import InvalidJob
from headrace.jobs.verify import verify_output
from tests.jobs.conftest import Run, digests, write_vectors
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
    with (tmp_path / "stderr").open("w") as errors:
        process = subprocess.Popen([*HEADRACE, *map(str, arguments)], stdout=theirs, stderr=errors)
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # nobody writes there any more
            break
    os.close(ours)
    assert process.wait() == 0
    assert (tmp_path / "stderr").read_text() == ""
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
        (["--input", "/nowhere/*.parquet"], r"/nowhere/\*\.parquet"),
    ],
)
def test_options_that_mean_nothing(repository: Path, tmp_path: Path, options: list[str], told: str) -> None:
    files = [] if "--input" in options else ["--input", str(write_vectors(tmp_path / "in", [1]))]
    given = [
        "batch",
        "mlp",
        "--repository",
        str(repository),
        "--output",
        str(tmp_path / "out"),
        "--batch-rows=8",
        *files,
        *options,
    ]
    with pytest.raises(InvalidJob, match=told):
        app(given, standalone_mode=False)


def test_verify(run: Run, tmp_path: Path) -> None:
    """What is as it was recorded; then a byte that is not, a row that does not come out, and a job that is not at its end."""
    output = run("mlp", write_vectors(tmp_path / "in", [2000, 500]))
    good = headrace("batch", "verify", output, "--sample", 2)
    assert (good.returncode, good.stderr) == (0, "")
    assert "3 parts and 2500 rows as recorded" in good.stdout
    part = output / "part-00002.parquet"
    table = pq.read_table(part)
    y = table.column("y").to_pylist()
    y[0][0] = np.nextafter(np.float32(y[0][0]), np.float32(2))
    pq.write_table(table.set_column(1, table.schema.field("y"), pa.array(y, table.schema.field("y").type)), part)
    (output / "_rejects").mkdir()
    (output / "_rejects" / "part-00001.jsonl").write_text("{}")
    found = verify_output(output, sample=3)
    assert (found.parts, found.sampled_rows) == (1, 2500)
    assert [problem.split(" ")[0].rpartition("/")[2] for problem in found.problems[:2]] == [
        "part-00001.jsonl",
        "part-00002.parquet",
    ]
    assert found.problems[2:] == ["rows 0 to 500 of part-00002.parquet come out otherwise"]
    (output / "_headrace" / "splits" / "00002.json").unlink()
    bad = headrace("batch", "verify", output, "--json")
    assert bad.returncode == 1
    assert "the job is not finished: 2 of 3 splits are" in bad.stdout
