"""Several that make the parts of one job, as on Ray and without it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.errors import JobFailed
from headrace.jobs.beginning import Asked
from headrace.jobs.directory import JobDirectory
from headrace.jobs.worker import Worker
from tests.jobs.conftest import SIXTEEN, Run, digests, write_vectors


def test_two_make_one_output(run: Run, repository: Path, tmp_path: Path) -> None:
    files = write_vectors(tmp_path / "in", [3000])
    asked = Asked("mlp", repository, (str(files),), SIXTEEN, cpus=1)
    directory = JobDirectory(tmp_path / "both")
    directory.prepare()
    first, second = (Worker(asked, directory.writer(), 1 << 20, 0) for _ in range(2))
    manifest = first.open(None).manifest
    directory.begin(manifest)
    assert second.open(manifest).manifest == manifest
    with ThreadPoolExecutor(4) as threads:
        # One of them was taken for dead, say: the middle split is made twice.
        made = list(threads.map(lambda call: call[0].make(call[1]), [(first, 0), (first, 1), (second, 1), (second, 2)]))
    assert [done.split for done in made] == [0, 1, 1, 2]
    assert first.progress() == second.progress() == (2000, 0)
    first.stop()
    second.stop()
    assert digests(directory.root) == digests(run("mlp", files))
    assert list((directory.root / "_headrace/tmp").iterdir()) == []


def test_what_cannot_be_made_is_told_with_its_address(repository: Path, tmp_path: Path) -> None:
    files = write_vectors(tmp_path / "in", [3000])
    directory = JobDirectory(tmp_path / "out")
    directory.prepare()
    worker = Worker(Asked("mlp", repository, (str(files),), SIXTEEN), directory.writer(), 1 << 20, 0)
    manifest = worker.open(None).manifest
    with pytest.raises(JobFailed, match="is another place on"):
        worker.make(1)
    directory.begin(manifest)
    (files / "000.parquet").write_bytes(b"")
    with pytest.raises(JobFailed, match=r"split 1 \(1000 rows from row 1000 of .*/000.parquet on\), in .*/\d+: .*has 0 bytes"):
        worker.make(1)
    with pytest.raises(JobFailed, match="split 1"):
        worker.make(2)
    worker.stop()
