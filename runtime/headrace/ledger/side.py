"""The side process of a server: started, kept, ended. What it does is `headrace observe`; requests never wait for it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from headrace.backends.backoff import Backoff
from headrace.clock import SECOND
from headrace.ledger.tally import Tally

log = logging.getLogger(__name__)

NICENESS = 10
"""How far it steps back behind the server."""
_WELL_NS = 10 * SECOND
"""Whoever has lived as long may be started again at once."""
_POLL_SECONDS = 0.02


class SideProcess:
    """One child process, which is started again when it ends.

    Args:
        command: what to run.
        tally: its counters; the one of a process that was killed is corrected here.
    """

    def __init__(self, command: Sequence[str], tally: Tally) -> None:
        self._command, self._tally = list(command), tally
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="headrace-side", daemon=True)

    def start(self) -> None:
        """Start it. Once."""
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Let it finish what it has, and end it after so many seconds. Any number of times.

        One that is not there is started once more: what it had to do is not done.
        """
        self._closing.set()
        if not self._thread.is_alive():
            return
        until = time.monotonic() + seconds
        try:
            with self._lock:
                process = self._running()
            # Before it says that it is there, it would just end.
            while process.poll() is None and self._tally.pid != process.pid and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
            process.terminate()
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("the side process does not end by itself; it is killed")
            self._kill()
        except OSError as error:
            log.warning("the side process cannot be started: %s", error.strerror)
        self._thread.join()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        """The process that runs, a new one if it has just ended. Called with the lock held.

        Raises:
            OSError: it cannot be started.
        """
        if self._process is None or self._process.poll() is not None:
            # In a group of its own: Ctrl-C is the server's, which tells it to end when it has nothing more to write. Not in a
            # session: Linux shares cores out to sessions first, and one that steps back would do so within its own.
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, process_group=0)
        return self._process

    def _keep(self) -> None:
        backoff = Backoff()
        while not self._closing.is_set():
            began = time.monotonic_ns()
            told = self._run()
            if self._closing.is_set():
                return
            now = time.monotonic_ns()
            if now - began > _WELL_NS:
                backoff.went_well()
            backoff.ended(now)
            wait = backoff.wait(now) / SECOND
            log.warning("the side process %s; it is started again in %g s, and no request waits for it", told, wait)
            self._closing.wait(wait)

    def _run(self) -> str:
        """Run it once; how it ended, in words."""
        try:
            with self._lock:
                if self._closing.is_set():
                    return "is left to whoever closes"
                process = self._running()
        except OSError as error:
            return f"cannot be started: {error.strerror}"
        status = process.wait()
        if self._tally.pid == process.pid:
            self._tally.pid = 0
        return f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"


def step_back() -> int:
    """Let the server go first, in this thread and those that it starts; how nice it was before."""
    before = os.nice(0)
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # where it may not choose, it is nice at least
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    return before


def give_way() -> None:
    """Let whoever waits for this core have it, if anybody does: to be called every some tens of microseconds of work.

    Linux lets a thread that has begun to run go on for some milliseconds, however nice it is (docs/decisions/0017).
    """
    if not _hurries.is_set():
        os.sched_yield()


_hurries = threading.Event()


def hurry(niceness: int) -> None:
    """Stand back no more, in this process: nobody is left to stand back for.

    Only who may (CAP_SYS_NICE) becomes less nice again, `niceness`; everybody goes on without giving way.
    """
    _hurries.set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)
