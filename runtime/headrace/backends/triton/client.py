"""Calls to a Triton: pooled channels, and what is sent again and what is not."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from headrace.backends.triton.channel import FAILURES, Metadata, Unreachable, open_channel
from headrace.backends.triton.messages import Answer, Asking, pb
from headrace.backends.triton.settings import Settings
from headrace.backends.triton.shared_memory import Region, forget_orphans
from headrace.clock import MILLISECOND, SECOND, Clock
from headrace.errors import ModelError

_PAUSE = 10 * MILLISECOND
"""Before a server that is asked to forget memory is asked again."""


class Line:
    """One channel, and the shared memory that goes with it. Of one thread at a time."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.channel = open_channel(settings, clock)
        self.region: Region | None = None


class Client:
    """The lines to one server: as many as there are calls at once, and used again, the last one first.

    Args:
        settings: where it is.
        clock: the clock.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._free: deque[Line] = deque()
        self._lock = threading.Lock()
        self._is_closed = False
        self._abandoned: list[Region] = []

    def take(self) -> Line:
        """A line that nobody uses."""
        with self._lock:
            if self._free:
                return self._free.pop()
        return Line(self._settings, self._clock)

    def give_back(self, line: Line) -> None:
        """Nobody uses it any more."""
        with self._lock:
            if not self._is_closed:
                self._free.append(line)
                return
        self._end([line])

    def close(self) -> None:
        """Give everything back; lines that are in use, when they are given back."""
        with self._lock:
            self._is_closed = True
            free, self._free = self._free, deque()
        if free:
            self._end(free)

    def _end(self, lines: Sequence[Line]) -> None:
        """Give up lines for good, and all memory; what a request uses there is waited for, as long as a connection may take."""
        for line in lines:
            self.abandon(line)
        paused, give_up = threading.Condition(), self._soon()
        while self._forget_abandoned(lines[0]) and self._clock.now() < give_up:
            with paused:
                self._clock.wait(paused, self._clock.now() + _PAUSE)
        for line in lines:
            line.channel.close()

    # Shared memory.

    def abandon(self, line: Line) -> None:
        """Never use the memory of a line again: the server may still read it, or write to it."""
        region, line.region = line.region, None
        if region is not None:
            with self._lock:
                self._abandoned.append(region)

    def forget_abandoned(self) -> None:
        """Let the server forget the memory that is not used any more, if it answers."""
        if self._abandoned:
            line = self.take()
            try:
                self._forget_abandoned(line)
            finally:
                self.give_back(line)

    def forget_orphans(self) -> None:
        """Let the server forget the memory of processes like this one that were killed, if it answers."""
        line = self.take()
        try:
            forget_orphans(line.channel, self._soon())
        except FAILURES:
            return
        finally:
            self.give_back(line)

    def _forget_abandoned(self, line: Line) -> bool:
        """Whether the server answers and still has some: it refuses to forget what a request uses. It can be told again."""
        with self._lock:
            abandoned, self._abandoned = self._abandoned, []
        left: list[Region] = []
        for n, region in enumerate(abandoned):
            try:
                region.forget(line.channel, self._soon())
            except ModelError:
                left.append(region)
            except FAILURES:  # if it is gone, it has nothing mapped any more, and what comes back does not mind
                self._keep(left + abandoned[n:])
                return False
        self._keep(left)
        return bool(left)

    def _keep(self, abandoned: list[Region]) -> None:
        with self._lock:
            self._abandoned += abandoned

    # Calls.

    def infer(self, line: Line, asking: Asking, until: int, metadata: Metadata) -> Answer:
        """Send a batch and wait for its answer, at most until the instant `until` (ns).

        It is sent again only while there is no connection, which is tried for as long as the settings say.

        Raises:
            Unreachable, TimedOut, Lost, UnknownRegion, ModelError, BackendFailed: see `Channel.infer`.
        """
        return self._send(lambda: line.channel.infer(asking, until, metadata), line, until)

    def ask(self, method: str, request: Any) -> Any:
        """A call about the server or the model, that waits for connection and answer as long as a connection may take.

        Raises:
            Unreachable, TimedOut, Lost, ModelError: see there.
        """
        line, until = self.take(), self._soon()
        try:
            return self._send(lambda: line.channel.ask(method, request, until), line, until)
        finally:
            self.give_back(line)

    def model_ready(self) -> bool:
        """Whether the server has the model ready. Raises as `ask`."""
        request = pb.ModelReadyRequest(name=self._settings.model, version=self._settings.version)
        return self.ask("ModelReady", request).ready

    def metadata(self) -> Any:
        """What the server says of the model. Raises as `ask`."""
        return self.ask("ModelMetadata", pb.ModelMetadataRequest(name=self._settings.model, version=self._settings.version))

    def config(self) -> Any:
        """How the server has configured the model. Raises as `ask`."""
        request = pb.ModelConfigRequest(name=self._settings.model, version=self._settings.version)
        return self.ask("ModelConfig", request).config

    def statistics(self) -> Sequence[Any]:
        """What the server counts of the model. Raises as `ask`."""
        request = pb.ModelStatisticsRequest(name=self._settings.model, version=self._settings.version)
        return self.ask("ModelStatistics", request).model_stats

    def extensions(self) -> Sequence[str]:
        """What the server can do beyond the protocol. Raises as `ask`."""
        return self.ask("ServerMetadata", pb.ServerMetadataRequest()).extensions

    def _soon(self) -> int:
        """The instant until which a connection may take that is asked for now."""
        return self._clock.now() + int(self._settings.connect_timeout * SECOND)

    def _send(self, call: Callable[[], Any], line: Line, until: int) -> Any:
        """Make a call; again, if there was no connection and there is one now."""
        give_up = min(until, self._soon())
        while True:
            try:
                return call()
            except Unreachable:
                if not line.channel.connects(give_up):
                    raise
