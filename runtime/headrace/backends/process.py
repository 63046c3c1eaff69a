"""A node in a process of its own: started, asked, ended, and started again when it ended by itself.

Every runner has a thread that keeps its process: it starts one, waits for its end, and starts the next when the back-off
allows. Calls go straight to the process, one at a time.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from headrace.backends.backoff import Backoff
from headrace.backends.channel import Regions, lay_out, look, receive, send, unflat, write
from headrace.backends.loading import words
from headrace.backends.nodes import Declared, Result, Timeouts
from headrace.clock import MILLISECOND, SECOND, MonotonicClock
from headrace.errors import BackendFailed, HeadraceError, InvalidRepository, InvalidRequest
from headrace.node import Context
from headrace.tensor import Tensor

log = logging.getLogger("headrace.node")

_PATIENCE_NS = SECOND
"""How long a batch waits for the back-off to be over."""
_CLOSE_SECONDS = 5.0
"""How long a node may take to close."""
_GRACE_SECONDS = 1.0
"""How long a process may take to end, once it has said that it will or was told to."""
_LONGEST_LINE = 8192


class ProcessGone(Exception):
    """The process ended, or was ended because it took too long; the text continues "the process of node 'x' ..."."""


class Worker:
    """One process that runs a node, and the way to it.

    Raises:
        OSError: the system gives no process, or no descriptors.
    """

    def __init__(self, name: str) -> None:
        self._name, self._regions, self._expected = name, Regions(), 0
        self._in_use, self._ending = threading.Lock(), threading.Lock()
        self._is_closed, self._why = False, ""
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-X", "faulthandler", "-m", "headrace.backends.worker", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path), "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # Ctrl-C is for the server, which first answers what it has
                )
            except BaseException:
                self._socket.close()
                raise
        # Its end is seen by this even where a process that it has started holds its socket open.
        self._pidfd = os.pidfd_open(self._process.pid)
        self._life, self._look = select.poll(), select.poll()
        self._life.register(self._pidfd, select.POLLIN)
        self._look.register(self._socket, select.POLLIN)
        self._look.register(self._pidfd, select.POLLIN)
        self._lines = threading.Thread(target=_log_lines, args=(self._process.stdout, name), name=f"{name} log", daemon=True)
        self._lines.start()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def load(self, where: str, context: Context, seconds: float) -> Declared:
        """Let it load the node.

        Raises:
            InvalidRepository: it cannot, or did not in this time.
        """
        order = {"where": where, "name": context.name, "directory": str(context.directory), "parameters": context.parameters}
        try:
            send(self._socket, order)
            answer = self._receive(seconds)
        except (ProcessGone, OSError) as error:
            raise InvalidRepository(f"the process of node '{self._name}' {self._gone(error)}, while it was loading") from None
        if "error" in answer:
            raise InvalidRepository(answer["error"])
        return Declared.of(self._name, answer["loaded"])

    def run(self, tensors: Mapping[str, Tensor], seconds: float) -> Result:
        """See `NodeRunner.run`.

        Raises:
            ProcessGone: it ended, or took longer than this; then there are no more calls.
        """
        with self._in_use:
            if self._is_closed:
                raise ProcessGone(self._why)
            try:
                return self._run(tensors, seconds)
            except BrokenPipeError as error:
                raise ProcessGone(self._gone(error)) from None

    def _run(self, tensors: Mapping[str, Tensor], seconds: float) -> Result:
        values = list(tensors.values())
        places, nbytes = lay_out(values)
        given, taken = self._regions.take(nbytes), self._regions.take(self._expected)
        write(given.memory(), values, places)
        inputs = list(zip(tensors, places, strict=True))
        self._regions.send(self._socket, {"do": "run", "inputs": inputs, "from": given.number, "to": taken.number})
        answer = self._receive(seconds)
        if "needs" in answer:
            self._regions.give_back(taken)
            taken = self._regions.take(answer["needs"])
            self._regions.send(self._socket, {"to": taken.number})
            answer = self._receive(seconds)
        if answer["kept"]:
            self._regions.drop(given)
        else:
            self._regions.give_back(given)
        if "error" in answer:
            self._regions.give_back(taken)
            raise self._failure(answer)
        self._expected = max(self._expected, answer["nbytes"])
        memory = self._regions.lend(taken)
        return unflat(answer, [look(memory, place) for place in answer["places"]])

    def has_ended(self) -> bool:
        """Whether the process is there no more."""
        return bool(self._life.poll(0))

    def wait_ended(self) -> None:
        """Return when it is."""
        _is_readable(self._pidfd, None)

    def stop(self) -> None:
        """Ask it to close its node and end; then insist."""
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
            self._socket.close()
            os.close(self._pidfd)
        self._lines.join(_GRACE_SECONDS)

    def _receive(self, seconds: float) -> dict[str, Any]:
        until = MonotonicClock.now() + int(seconds * SECOND)

        def wait() -> None:
            left = -(-(until - MonotonicClock.now()) // MILLISECOND)
            ready = dict(self._look.poll(max(0, left)))
            if not ready:
                why = f"did not answer within {seconds:g} s and was ended"
                self.end()
                raise ProcessGone(why)
            if self._socket.fileno() not in ready:
                raise EOFError

        try:
            return receive(self._socket, wait)[0]
        except EOFError as error:
            raise ProcessGone(self._gone(error)) from None

    def _gone(self, error: Exception) -> str:
        return str(error) if isinstance(error, ProcessGone) else self.end(_GRACE_SECONDS)

    def _failure(self, answer: Mapping[str, Any]) -> HeadraceError:
        if answer["is_clients"]:
            return InvalidRequest(answer["error"])
        log.error("node '%s' failed: %s\n%s", self._name, answer["error"], answer["trace"].rstrip())
        return BackendFailed(answer["error"])

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)


class ProcessRunner:
    """A node in a process of its own. See `open_node`."""

    def __init__(self, where: str, context: Context, timeouts: Timeouts) -> None:
        _check_possible(context)
        self.name, self._where, self._context, self._timeouts = context.name, where, context, timeouts
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        """Guards what follows."""
        self._worker: Worker | None = None
        self._is_up = self._is_closed = False
        self._failure: Exception | None = None
        self._backoff = Backoff()
        self._declared: Declared | None = None
        # It ends when the runner is closed, and not before: a process is killed when the thread ends that started it.
        self._keeper = threading.Thread(target=self._keep, name=f"{context.name} process", daemon=True)
        self._keeper.start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_up or self._failure is not None)
            failure, declared = self._failure, self._declared
        if declared is None:
            self._keeper.join()
            assert failure is not None
            raise failure
        self.inputs, self.outputs = declared.inputs, declared.outputs
        self.rows, self.replayable = declared.rows, declared.replayable

    @property
    def pid(self) -> int | None:
        """The number of its process, while there is one that can be asked."""
        with self._changed:
            return self._worker.pid if self._worker is not None and self._is_up else None

    def run(self, tensors: Mapping[str, Tensor]) -> Result:
        """See `NodeRunner.run`.

        Raises:
            BackendFailed: also when the process ends meanwhile, or takes too long.
        """
        with self._turn:
            worker = self._wait_up()
            try:
                result = worker.run(tensors, self._timeouts.run)
            except ProcessGone as gone:
                raise BackendFailed(f"the process of node '{self.name}' {gone}; it is being restarted") from None
            with self._changed:
                self._backoff.went_well()
            return result

    def close(self) -> None:
        """See `NodeRunner.close`."""
        with self._changed:
            self._is_closed = True
            worker, is_up = self._worker, self._is_up
            self._changed.notify_all()
        if worker is not None:
            if is_up:
                worker.stop()
            worker.end()
        self._keeper.join()
        with self._changed:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _wait_up(self) -> Worker:
        """The process, once it can be asked.

        Raises:
            BackendFailed: it cannot, and will not soon.
        """
        with self._changed:
            while True:
                if self._is_closed:
                    raise BackendFailed(f"node '{self.name}' is closed")
                if self._is_up and self._worker is not None and not self._worker.has_ended():
                    return self._worker
                wait = self._backoff.wait(MonotonicClock.now())
                if wait > _PATIENCE_NS:
                    raise BackendFailed(
                        f"the process of node '{self.name}' is not running, it is started again in {wait / SECOND:.1f} s; "
                        f"the last time it failed: {self._failure}"
                    )
                self._changed.wait()

    def _keep(self) -> None:
        """Start a process, wait for its end, and again."""
        while True:
            failure = self._come_up()
            with self._changed:
                self._is_up, self._failure = failure is None, failure
                worker, is_first = self._worker, self._declared is None
                self._changed.notify_all()
            if worker is not None:
                if failure is None:
                    worker.wait_ended()
                why = worker.end()
                with self._changed:
                    self._is_up = False
                    if self._is_closed:
                        return  # and `close` has the rest
                    self._worker = None
                    self._failure = failure or ProcessGone(why)
                worker.close()
            if is_first or not self._back_off():
                return

    def _come_up(self) -> Exception | None:
        """Start a process and let it load the node; why it could not."""
        try:
            worker = Worker(self.name)
            with self._changed:
                self._worker = worker
                if self._is_closed:
                    return ProcessGone("is closed")
            declared = worker.load(self._where, self._context, self._timeouts.load)
            if self._declared not in (None, declared):
                return BackendFailed(
                    f"node '{self.name}' declares other tensors than when it was loaded: its files have changed; load it again"
                )
            self._declared = declared
        except HeadraceError as error:
            return error
        except Exception as error:
            return InvalidRepository(f"the process of node '{self.name}' could not be started: {words(error)}")
        return None

    def _back_off(self) -> bool:
        """Wait until the next process may be started; False says that none is wanted."""
        with self._changed:
            now = MonotonicClock.now()
            self._backoff.ended(now)
            wait = self._backoff.wait(now) / SECOND
            log.error("the process of node '%s' is started again in %.1f s: %s", self.name, wait, self._failure)
            self._changed.notify_all()
            return not self._changed.wait_for(lambda: self._is_closed, wait)


def _check_possible(context: Context) -> None:
    if not (hasattr(os, "memfd_create") and hasattr(os, "pidfd_open")):
        raise InvalidRepository(f"node '{context.name}': isolation 'process' needs Linux; use 'thread' on this system")
    try:
        json.dumps(context.parameters)
    except (TypeError, ValueError) as error:
        raise InvalidRepository(
            f"node '{context.name}': its parameters cannot be sent to its process ({error}); "
            "use numbers, texts, lists and mappings by name, or isolation 'thread'"
        ) from None


def _is_readable(descriptor: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def _log_lines(lines: IO[bytes] | None, name: str) -> None:
    """Until the last who could write is gone."""
    assert lines is not None
    with lines:
        while line := lines.readline(_LONGEST_LINE):
            log.info("%s", line.decode(errors="replace").rstrip(), extra={"node": name})
