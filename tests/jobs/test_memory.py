"""However large the input, a job takes no more memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.jobs.conftest import write_vectors

ROWS = 100_000


def peak(process: subprocess.Popen[bytes]) -> int:
    """The most PSS, in KiB, that a process and its children have had together, as often as it can be looked at."""
    most = 0
    while process.poll() is None:
        total = 0
        for pid in tree(process.pid):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        most = max(most, total)
        time.sleep(0.02)
    assert process.returncode == 0
    return most


def tree(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [pid, *(each for child in children for each in tree(child))]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_times_the_rows_in_the_same_memory(repository: Path, tmp_path: Path) -> None:
    found: list[int] = []
    # What is measured is the job once it holds what it may: the smaller one has to last long enough for that.
    for times in (5, 100):
        files = write_vectors(tmp_path / f"in-{times}", [ROWS] * times)
        command = [sys.executable, "-m", "headrace", "batch", "mlp", "--repository", repository, "--input", files]
        command += ["--output", tmp_path / f"out-{times}", "--memory", 16 << 20]
        found.append(peak(subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)))
    assert found[1] <= 1.1 * found[0], found
