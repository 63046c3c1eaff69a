"""A process of its own for code that is not ours: started, asked, ended, and started again when it ended by itself.

What is asked of it is the business of those who derive from `Process`: a node (`node_process.py`), or a model that is written for
Triton's Python backend (`triton_python/process.py`).
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Generic, TypeVar

from headrace.backends.backoff import Backoff
from headrace.backends.channel import receive, send
from headrace.backends.loading import words
from headrace.clock import SECOND, MonotonicClock
from headrace.errors import BackendFailed, HeadraceError, InvalidRepository

_PATIENCE_NS = SECOND
"""How long a batch waits for the back-off to be over."""
_CLOSE_SECONDS = 5.0
"""How long what runs there may take to close."""
_GRACE_SECONDS = 1.0
"""How long a process may take to end, once it has said that it will or was told to."""
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Weights lie in memory that malloc gives. A perceptron of 23 MB takes a quarter less time for a row in huge pages, and a process
1 MB more memory; it is asked for where the kernel says `madvise`, and no harm elsewhere."""
_LONGEST_LINE = 8192
_TIMEVAL = struct.Struct("@ll")
_LEAST_SECONDS = 0.001
"""To wait for 0 seconds is to wait for ever."""


class ProcessGone(Exception):
    """The process ended, or was ended because it took too long; the text continues "the process of node 'x' ..."."""


def check_possible(who: str) -> None:
    """Refuse on systems that have not what this needs.

    Raises:
        InvalidRepository: it is such a system.
    """
    if not (hasattr(os, "memfd_create") and hasattr(os, "pidfd_open")):
        raise InvalidRepository(f"{who}: a process of its own needs Linux; use isolation 'thread' on this system")


class Process:
    """One process, and the way to it.

    Args:
        kind: what runs there, `node` or `model`: for messages, and the name of its logger.
        name: of it.
        program: what to start, behind which the number of the descriptor of its socket is written.
        environment: variables, beside those of the server.

    Raises:
        OSError: the system gives no process, or no descriptors.
    """

    def __init__(self, kind: str, name: str, program: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.kind, self.name = kind, name
        self.log = logging.getLogger(f"headrace.{kind}")
        self._in_use, self._ending = threading.Lock(), threading.Lock()
        self._is_closed, self._why = False, ""
        self._socket, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*program, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    env={**_HUGE_PAGES, **os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                    start_new_session=True,  # Ctrl-C is for the server, which first answers what it has
                )
            except BaseException:
                self._socket.close()
                raise
        self._pidfd = os.pidfd_open(self._process.pid)
        self._life = select.poll()
        self._life.register(self._pidfd, select.POLLIN)
        self._patience: float | None = None
        self._end = threading.Thread(target=self._hang_up, name=f"{name} end", daemon=True)
        self._end.start()
        self._lines = threading.Thread(target=self._log_lines, args=(self._process.stdout,), name=f"{name} log", daemon=True)
        self._lines.start()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Whether the process is there no more."""
        return bool(self._life.poll(0))

    def wait_ended(self) -> None:
        """Return when it is."""
        _is_readable(self._pidfd, None)

    def stop(self) -> None:
        """Ask it to close what it runs and end; then insist."""
        with suppress(OSError):
            send(self._socket, {"do": "close"})
        for seconds, number in ((_CLOSE_SECONDS, signal.SIGTERM), (_GRACE_SECONDS, signal.SIGKILL)):
            if not _is_readable(self._pidfd, seconds):
                self._signal(number)

    def end(self, seconds: float = 0.0) -> str:
        """Kill it if it has not ended in this time, and all that it has started; nothing of it is left.

        Returns:
            How it ended: what `ProcessGone` says.
        """
        with self._ending:
            if not self._why:
                if not _is_readable(self._pidfd, seconds):
                    self._signal(signal.SIGKILL)
                    self.wait_ended()
                # Before anybody asks for its status, after which its number may be another's.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
                status = self._process.wait()
                self._why = f"ended: {f'killed by signal {-status}' if status < 0 else f'exit status {status}'}"
            return self._why

    def close(self) -> None:
        """Give back the descriptors of a process that has ended, once nobody uses them any more."""
        with self._in_use:
            self._is_closed = True
            self._end.join()
            self._socket.close()
            os.close(self._pidfd)
        self._lines.join(_GRACE_SECONDS)

    def next_message(self, seconds: float | None) -> tuple[dict[str, Any], list[int]]:
        """As `listen`; if it says nothing in this time, it is ended.

        Raises:
            ProcessGone: it has ended, or was.
        """
        try:
            return self.listen(seconds)
        except TimeoutError:
            raise self.late(seconds or 0) from None

    def listen(self, seconds: float | None) -> tuple[dict[str, Any], list[int]]:
        """What it says next, and the descriptors that came with it; None waits for as long as it lives.

        Raises:
            ProcessGone: it has ended.
            TimeoutError: it said nothing in this time.
        """
        if seconds != self._patience:
            # The kernel looks at the clock: to poll first is one more call for each message.
            fraction, whole = math.modf(0 if seconds is None else max(seconds, _LEAST_SECONDS))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(int(whole), math.ceil(fraction * 1e6)))
            self._patience = seconds
        try:
            return receive(self._socket)
        except BlockingIOError:
            raise TimeoutError from None
        except (EOFError, OSError) as error:
            raise ProcessGone(self.how_gone(error)) from None

    def late(self, seconds: float) -> ProcessGone:
        """End it, because it did not answer within this time; what to raise then."""
        why = f"did not answer within {seconds:g} s and was ended"
        self.end()
        return ProcessGone(why)

    def how_gone(self, error: Exception) -> str:
        """How it ended, when its socket said so with `error`."""
        return str(error) if isinstance(error, ProcessGone) else self.end(_GRACE_SECONDS)

    def heard(self, line: str) -> None:
        """A line that it wrote to its output, or that something wrote which it has started."""
        self.log.info("%s", line, extra={self.kind: self.name})

    def _hang_up(self) -> None:
        """Let whoever listens hear of its end, even where a process that it has started holds its socket open."""
        self.wait_ended()
        with suppress(OSError):  # nothing is connected any more
            self._socket.shutdown(socket.SHUT_RDWR)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def _log_lines(self, lines: IO[bytes] | None) -> None:
        """Until the last who could write is gone."""
        assert lines is not None
        with lines:
            while line := lines.readline(_LONGEST_LINE):
                self.heard(line.decode(errors="replace").rstrip())


def python_of(module: str) -> tuple[list[str], dict[str, str]]:
    """Program and environment of a process that runs `module` with what this interpreter has."""
    program = [sys.executable, "-P", "-X", "faulthandler", "-m", module]
    return program, {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}


P = TypeVar("P", bound=Process)


class Keeper(Generic[P]):
    """Keeps a process: has a thread that starts one, waits for its end, and starts the next when the back-off allows.

    Args:
        kind: `node` or `model`, for messages.
        name: of it.
        start: starts a process.
        load: lets it load what it runs; raises a `HeadraceError` when it cannot.

    Raises:
        HeadraceError: the first one did not come up.
    """

    def __init__(self, kind: str, name: str, start: Callable[[], P], load: Callable[[P], None]) -> None:
        self.kind, self.name, self._start, self._load = kind, name, start, load
        self._log = logging.getLogger(f"headrace.{kind}")
        self._changed = threading.Condition()
        """Guards what follows."""
        self._process: P | None = None
        self._is_up = self._is_closed = False
        self._failure: Exception | None = None
        self._backoff = Backoff()
        # It ends when the keeper is closed, and not before: a process is killed when the thread ends that started it.
        self._thread = threading.Thread(target=self._keep, name=f"{name} process", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_up or self._failure is not None)
            failure, has_come_up = self._failure, self._is_up or self._has_been_up
        if not has_come_up:
            self._thread.join()
            assert failure is not None
            raise failure

    _has_been_up = False

    @property
    def pid(self) -> int | None:
        """The number of its process, while there is one that can be asked."""
        with self._changed:
            return self._process.pid if self._process is not None and self._is_up else None

    def running(self) -> P | None:
        """The process, if it can be asked now."""
        with self._changed:
            return self._running()

    def _running(self) -> P | None:
        is_there = self._is_up and self._process is not None and not self._process.has_ended()
        return self._process if is_there else None

    def process(self) -> P:
        """The process, once it can be asked.

        Raises:
            BackendFailed: it cannot, and will not soon.
        """
        with self._changed:
            while True:
                if self._is_closed:
                    raise BackendFailed(f"{self.kind} '{self.name}' is closed")
                if (process := self._running()) is not None:
                    return process
                wait = self._backoff.wait(MonotonicClock.now())
                if wait > _PATIENCE_NS:
                    raise BackendFailed(
                        f"the process of {self.kind} '{self.name}' is not running, it is started again in {wait / SECOND:.1f} s; "
                        f"the last time it failed: {self._failure}"
                    )
                self._changed.wait()

    def went_well(self) -> None:
        """The process did what it is for."""
        if self._backoff.is_counting:  # as it seldom is
            with self._changed:
                self._backoff.went_well()

    def failed(self, gone: ProcessGone) -> BackendFailed:
        """What clients are told whose batch was under way."""
        return BackendFailed(f"the process of {self.kind} '{self.name}' {gone}; it is being restarted")

    def close(self) -> None:
        """Let the process close what it runs, and end it. Nothing is running, and nothing will."""
        with self._changed:
            self._is_closed = True
            process, is_up = self._process, self._is_up
            self._changed.notify_all()
        if process is not None:
            if is_up:
                process.stop()
            process.end()
        self._thread.join()
        with self._changed:
            process, self._process = self._process, None
        if process is not None:
            process.close()

    def _keep(self) -> None:
        """Start a process, wait for its end, and again."""
        while True:
            failure = self._come_up()
            with self._changed:
                self._is_up, self._failure = failure is None, failure
                self._has_been_up |= self._is_up
                process, is_first = self._process, not self._has_been_up
                self._changed.notify_all()
            if process is not None:
                if failure is None:
                    process.wait_ended()
                why = process.end()
                with self._changed:
                    self._is_up = False
                    if self._is_closed:
                        return  # and `close` has the rest
                    self._process = None
                    self._failure = failure or ProcessGone(why)
                process.close()
            if is_first or not self._back_off():
                return

    def _come_up(self) -> Exception | None:
        """Start a process and let it load; why it could not."""
        try:
            process = self._start()
            with self._changed:
                self._process = process
                if self._is_closed:
                    return ProcessGone("is closed")
            self._load(process)
        except HeadraceError as error:
            return error
        except Exception as error:
            return InvalidRepository(f"the process of {self.kind} '{self.name}' could not be started: {words(error)}")
        return None

    def _back_off(self) -> bool:
        """Wait until the next process may be started; False says that none is wanted."""
        with self._changed:
            now = MonotonicClock.now()
            self._backoff.ended(now)
            wait = self._backoff.wait(now) / SECOND
            self._log.error("the process of %s '%s' is started again in %.1f s: %s", self.kind, self.name, wait, self._failure)
            self._changed.notify_all()
            return not self._changed.wait_for(lambda: self._is_closed, wait)


def _is_readable(descriptor: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))
