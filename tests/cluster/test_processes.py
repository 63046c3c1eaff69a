"""Which processes belong to a cluster, and that only those are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from headrace.cluster.processes import MARK, end, processes_of
from tests.waiting import until

STUBBORN = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); sys.stdin.read()"
PARENT = """
import os, subprocess, sys
environment = {name: value for name, value in os.environ.items() if name != sys.argv[1]}
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], env=environment, start_new_session=True)
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(stack: ExitStack, program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    stack.enter_context(process)
    stack.callback(process.kill)
    return process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_those_with_the_mark_and_their_children_are_found(stack: ExitStack, tmp_path: Path) -> None:
    parent = start(stack, PARENT, MARK, **{MARK: str(tmp_path)})
    child = int(line(parent))  # which has no mark
    start(stack, PARENT, MARK, **{MARK: f"{tmp_path}-of-another"})
    start(stack, PARENT, MARK)
    assert {process.pid for process in processes_of(tmp_path)} == {parent.pid, child}


def test_they_are_ended_and_nobody_else_is(stack: ExitStack, tmp_path: Path) -> None:
    stubborn = start(stack, STUBBORN, **{MARK: str(tmp_path)})
    other = start(stack, STUBBORN, **{MARK: str(tmp_path / "other")})
    assert (line(stubborn), line(other)) == ("up", "up")
    assert end(tmp_path, seconds=0.2) == 1
    assert stubborn.wait() == -signal.SIGKILL
    assert other.poll() is None
    assert processes_of(tmp_path) == []


def test_one_that_has_ended_is_none(stack: ExitStack, tmp_path: Path) -> None:
    process = start(stack, PARENT, MARK, **{MARK: str(tmp_path)})
    child = int(line(process))
    process.kill()  # a zombie until it is waited for
    until(lambda: process.pid not in {each.pid for each in processes_of(tmp_path)})
    os.kill(child, signal.SIGKILL)
    assert end(tmp_path, seconds=5) == 0
