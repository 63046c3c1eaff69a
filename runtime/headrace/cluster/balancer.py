"""The balancer of a node: one address for clients, HAProxy behind it, which spreads requests over the replicas.

The listening socket is ours, and HAProxy inherits it: when HAProxy dies, who connects meanwhile waits for the next one, which is
started at once. Everything else of a run is in one directory, for its user alone, which a lock says is in use. When *we* die,
HAProxy goes on with the servers it has; the next balancer of this directory listens beside it, and lets it finish what it has.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from headrace.backends.backoff import Backoff
from headrace.clock import SECOND
from headrace.cluster.haproxy import ERRORS, TUNING, AdminSocket, Tuning, check, find_haproxy, render
from headrace.errors import CannotBalance
from headrace.files import replace_file
from headrace.transport.listening import listen

log = logging.getLogger(__name__)

_UP_SECONDS = 20.0
_POLL_SECONDS = 0.01
_WELL_NS = 10 * SECOND
"""Whoever has lived as long is started again at once."""


class Balancer:
    """HAProxy, kept running from `start` to `stop`.

    Args:
        address: where clients come: HOST:PORT; port 0 takes a free one.
        run: the directory of its run; made, and removed at the end.
        servers: the addresses of the servers that one which has just been started begins with, by name. Asked from any thread.
        tuning: how it runs.

    Raises:
        CannotBalance: there is no HAProxy here.
    """

    def __init__(self, address: str, run: Path, servers: Callable[[], Mapping[str, str]], tuning: Tuning = TUNING) -> None:
        self.address, self._run, self._servers, self._tuning = address, run, servers, tuning
        self._binary = find_haproxy()
        self._changing = threading.Lock()
        self._backoff = Backoff()
        self._stopping = threading.Event()
        self._runs = 0

    @property
    def admin(self) -> AdminSocket:
        """The admin socket of the HAProxy that runs now."""
        return AdminSocket(self._file("sock"))

    @property
    def pid(self) -> int:
        """The process that runs now."""
        return self._process.pid

    def start(self) -> None:
        """Listen, and balance. Once.

        Raises:
            CannotListen: the address cannot be had.
            CannotBalance: another balancer has this run's directory, or HAProxy does not come up.
        """
        self._lock = _lock_run(self._run)
        try:
            left = orphans(self._run)
            for file in self._run.iterdir():
                self._runs = max(self._runs, _number_of(file))
                file.unlink()
            # Where a HAProxy that a crash left takes connections, so do we, until ours is there: nobody is refused.
            self._listener = listen(self.address, beside=bool(left))
            try:
                self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # for who comes after a crash of ours
                self.address = f"{self.address.rpartition(':')[0]}:{self._listener.getsockname()[1]}"
                for name, text in ERRORS.items():
                    (self._run / name).write_bytes(text)
                self._write()
                check(self._binary, self._file("cfg"), self._listener.fileno())
                self._launch()
            except BaseException:
                self._listener.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise
        ending = threading.Thread(target=_end, args=(self._run, left, self._tuning.drain_seconds), daemon=True)
        ending.start()

    def reload(self) -> None:
        """Start a new HAProxy beside the old one, which answers what it has and ends. No connection is refused meanwhile.

        Raises:
            CannotBalance: the new one does not come up; the old one stays.
        """
        with self._changing:
            old, last = self._process, self._runs
            try:
                self._write()
                self._launch()
            except BaseException:
                self._runs = last
                raise
            old.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        """Take no connection more, let the streams finish that are open, as long as the tuning says, and end. Once."""
        with self._changing:
            self._stopping.set()
            self._listener.close()
            end_orphans(self._run, self._tuning.drain_seconds)
            self._process.wait()
        shutil.rmtree(self._run, ignore_errors=True)
        os.close(self._lock)

    def _file(self, kind: str) -> Path:
        return self._run / f"haproxy-{self._runs}.{kind}"

    def _write(self) -> None:
        """Write the configuration of the next run."""
        self._runs += 1
        text = render(self._listener.fileno(), self._file("sock"), self._servers(), self._tuning)
        replace_file(self._file("cfg"), text.encode())

    def _launch(self) -> None:
        """Start HAProxy with what is written, and return when it answers."""
        began = time.monotonic_ns()
        process = subprocess.Popen(
            [self._binary, "-db", "-q", "-f", self._file("cfg")],
            stdin=subprocess.DEVNULL,
            pass_fds=[self._listener.fileno()],
            start_new_session=True,  # Ctrl-C is ours
        )
        try:
            self._wait_up(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        self._process, files = process, [self._file("cfg"), self._file("sock")]
        threading.Thread(target=self._watch, args=(process, began, files), name="headrace-balancer", daemon=True).start()

    def _wait_up(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + _UP_SECONDS
        while True:
            with suppress(CannotBalance):
                self.admin.ask("show info")
                return
            if (status := process.poll()) is not None:
                raise CannotBalance(f"HAProxy ended with status {status} before it answered")
            if time.monotonic() > end:
                raise CannotBalance(f"HAProxy has not come up within {_UP_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)

    def _watch(self, process: subprocess.Popen[bytes], began: int, files: Sequence[Path]) -> None:
        """Start the next one when this one ends and nobody wanted it to."""
        status = process.wait()
        for file in files:
            file.unlink(missing_ok=True)
        while not self._stopping.is_set() and process is self._process:
            now = time.monotonic_ns()
            if now - began > _WELL_NS:
                self._backoff.went_well()
            else:
                self._stopping.wait(self._backoff.wait(now) / SECOND)
            self._backoff.ended(now)
            log.warning("HAProxy ended with status %d and is started again; who connects meanwhile waits", status)
            with self._changing, suppress(CannotBalance):
                if not self._stopping.is_set() and process is self._process:
                    self._write()
                    self._launch()


def end_orphans(run: Path, seconds: float) -> None:
    """End every HAProxy that runs from this directory: it finishes its streams within so many seconds, or is killed.

    Args:
        run: the directory of a balancer's run, whose balancer is gone, or is the caller.
        seconds: how long they may take.
    """
    _end(run, orphans(run), seconds)


def _end(run: Path, left: Sequence[int], seconds: float) -> None:
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
    end = time.monotonic() + seconds
    while left := [pid for pid in left if pid in orphans(run)]:
        if time.monotonic() > end:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def orphans(run: Path) -> list[int]:
    """The HAProxies that run from this directory: those whose configuration is there, and nobody else who only looks at it."""
    mark = f"{run}/haproxy-".encode()
    found: list[int] = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError, IndexError):
                words = (process / "cmdline").read_bytes().removesuffix(b"\0").split(b"\0")
                is_haproxy = words[0].rpartition(b"/")[2] == b"haproxy"
                if is_haproxy and words[-2] == b"-f" and words[-1].startswith(mark) and not _has_ended(process):
                    found.append(int(process.name))
    return found


def _number_of(file: Path) -> int:
    """Which run of its directory a file is of; 0 for those of all runs."""
    number = file.stem.removeprefix("haproxy-")
    return int(number) if number.isdecimal() else 0


def _has_ended(process: Path) -> bool:
    """Whether it waits for nothing but its parent."""
    return (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _lock_run(run: Path) -> int:
    """Make the directory of a run, and have it for ourselves.

    Raises:
        CannotBalance: somebody has it, or it cannot be made.
    """
    try:
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        run.chmod(0o700)
        descriptor = os.open(run, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CannotBalance(f"the balancer cannot run from {run}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CannotBalance(f"another balancer runs from {run}; stop it first, or choose another address") from None
    return descriptor
