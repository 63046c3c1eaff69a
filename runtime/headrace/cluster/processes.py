"""The processes of a cluster on this machine: those that were started with its mark, and what they have started.

The mark is in their environment. Ray's workers write their titles over theirs; they descend from others.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MARK = "HEADRACE_CLUSTER"
"""The variable with the directory of the cluster that a process belongs to."""
_LOOK_SECONDS = 0.05


class Process(NamedTuple):
    """A process, as it was when we looked. `began` tells it from a later one of the same number."""

    pid: int
    parent: int
    began: int
    command: bytes
    mark: str


def processes_of(directory: Path) -> list[Process]:
    """All processes with the mark of `directory`, and all that descend from them. None of them is this one."""
    there = {process.pid: process for process in _processes()}
    found = {pid for pid, process in there.items() if process.mark == str(directory)}
    while more := {pid for pid, process in there.items() if process.parent in found} - found:
        found |= more
    return [process for pid, process in there.items() if pid in found - {os.getpid()}]


def end(directory: Path, seconds: float) -> int:
    """End them: told to, and killed if they take longer than `seconds`. How many there were."""
    known = processes_of(directory)
    _send(known, signal.SIGTERM)
    until = time.monotonic() + seconds
    while left := _still(known):
        if time.monotonic() > until:
            _send(left, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)
    # What was being started meanwhile.
    while late := processes_of(directory):
        _send(late, signal.SIGKILL)
        known += late
        time.sleep(_LOOK_SECONDS)
    return len({process.pid for process in known})


def _send(processes: list[Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(OSError):
            # A descriptor cannot come to mean another process between the look and the signal.
            descriptor = os.pidfd_open(process.pid)
            try:
                now = _look(process.pid)
                if now is not None and now.began == process.began:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)


def _still(processes: list[Process]) -> list[Process]:
    there = {(process.pid, process.began) for process in _processes()}
    return [process for process in processes if (process.pid, process.began) in there]


def _processes() -> Iterator[Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (process := _look(int(entry.name))) is not None:
            yield process


def _look(pid: int) -> Process | None:
    """A process of ours; None when it has ended, whether its parent has noticed or not, or is somebody else's."""
    place = Path(f"/proc/{pid}")
    try:
        state, parent, *rest = (place / "stat").read_text().rpartition(")")[2].split()
        command, environment = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
    except OSError:
        return None
    marks = [word[len(MARK) + 1 :] for word in environment.split(b"\0") if word.startswith(f"{MARK}=".encode())]
    mark = os.fsdecode(marks[0]) if marks else ""
    return None if state in "ZX" else Process(pid, int(parent), int(rest[17]), command, mark)
