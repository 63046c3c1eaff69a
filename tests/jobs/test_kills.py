"""A job is killed, again and again, and what it makes in the end is what an undisturbed one makes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.jobs.conftest import Run, digests, read, write_vectors
from tests.waiting import until

ROWS = (9000, 100, 11000)
SPLITS = 9 + 1 + 11
DYING = """
import os, signal, sys
from pathlib import Path
from headrace import files
from headrace.cli.app import main
from headrace.jobs import directory

point, nth = sys.argv.pop(1), int(sys.argv.pop(1))
done = dict.fromkeys(("written", "renamed"), 0)

def die(where):
    done[where] += 1
    if (where, done[where]) == (point, nth):
        os.killpg(0, signal.SIGKILL)

rename, record = Path.replace, directory.replace_file

def replace(path, to):
    if path.parent.name == "tmp":
        die("written")
    return rename(path, to)

def replace_file(file, content):
    if file.parent.name == "splits":
        die("renamed")
    return record(file, content)

Path.replace, directory.replace_file = replace, replace_file
main()
"""
"""The command line, which kills its process group before a part is renamed, or before it is recorded, the nth time."""


def command(repository: Path, files: Path, output: Path) -> list[str]:
    arguments = ["batch", "mlp", "--repository", repository, "--input", files, "--output", output, "--batch-rows=16", "--resume"]
    return list(map(str, arguments))


def begin(*arguments: str) -> subprocess.Popen[bytes]:
    """A process group of its own."""
    return subprocess.Popen([sys.executable, *arguments], start_new_session=True, stdout=subprocess.DEVNULL)


def finish(job: list[str]) -> None:
    assert begin("-m", "headrace", *job).wait(50) == 0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vectors(tmp_path_factory.mktemp("data") / "in", ROWS)


@pytest.mark.parametrize("point", ["written", "renamed"])
def test_killed_between_the_steps_of_a_part(run: Run, repository: Path, files: Path, tmp_path: Path, point: str) -> None:
    """Synced and not renamed; renamed and not recorded: twice in one job."""
    job = command(repository, files, tmp_path / "killed")
    for nth in (1, 6):
        assert begin("-c", DYING, point, str(nth), *job).wait(50) == -signal.SIGKILL
    output = tmp_path / "killed"
    recorded = len(list((output / "_headrace" / "splits").iterdir()))
    assert recorded == 5
    assert len(list(output.glob("part-*"))) == 5 + (point == "renamed")
    finish(job)
    assert digests(output) == digests(run("mlp", files))
    assert len(digests(output)) == SPLITS
    assert read(output).column("id").to_pylist() == list(range(sum(ROWS)))


def count(splits: Path) -> int:
    return len(list(splits.iterdir())) if splits.is_dir() else 0


def kill_once(job: list[str], splits: Path, chance: random.Random) -> bool:
    process = begin("-m", "headrace", *job)
    least = count(splits) + chance.randrange(4)
    until(lambda: process.poll() is not None or count(splits) >= least, 50)
    moment = time.monotonic() + chance.uniform(0, 0.03)
    until(lambda: time.monotonic() > moment)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def kill_again_and_again(job: list[str], output: Path, seed: int, times: int) -> int:
    """Kill it when some more splits are recorded, and a moment later; how often it was killed before its end."""
    chance = random.Random(seed)
    splits = output / "_headrace" / "splits"
    killed = 0
    for _ in range(times):
        killed += kill_once(job, splits, chance)
    return killed


def test_killed_anywhere(run: Run, repository: Path, files: Path, tmp_path: Path) -> None:
    """The short form."""
    job = command(repository, files, tmp_path / "killed")
    assert kill_again_and_again(job, tmp_path / "killed", 1, 3) == 3
    finish(job)
    assert digests(tmp_path / "killed") == digests(run("mlp", files))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_anywhere_many_times(run: Run, repository: Path, files: Path, tmp_path: Path) -> None:
    """At least 30 kills, of jobs that are each killed one to five times."""
    expected, killed, seed = digests(run("mlp", files)), 0, 0
    while killed < 30:
        seed += 1
        output = tmp_path / f"killed-{seed}"
        job = command(repository, files, output)
        killed += kill_again_and_again(job, output, seed, 1 + seed % 5)
        finish(job)
        assert digests(output) == expected, f"seed {seed}"
