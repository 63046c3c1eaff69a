"""Calls to a Triton: pooled channels, what is sent again and what is not, and its errors as ours."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from headrace.backends.triton.messages import pb
from headrace.backends.triton.settings import Settings
from headrace.backends.triton.shared_memory import Region, forget_orphans
from headrace.clock import SECOND, Clock
from headrace.errors import Code, ModelError

Metadata = Sequence[tuple[str, str]]

_CODES = {code.name: code for code in Code}
_UNCONNECTED = ("failed to connect to all addresses", "DNS resolution failed", "Name resolution failure")
"""How gRPC begins to say that there is no connection: nothing was sent then."""
_UNKNOWN_REGION = "Unable to find shared memory region"
_MILLISECONDS = 1000


class Unreachable(Exception):
    """There is no connection, so that nothing was sent."""


class TimedOut(Exception):
    """No answer within the time that was given. What was sent may run, or may have run."""


class Lost(Exception):
    """The connection broke, or the server is leaving. What was sent may have run."""


class UnknownRegion(Exception):
    """The server does not know the shared memory that was named. Nothing ran."""


class Line:
    """One channel, and the shared memory that goes with it. Of one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self.channel = _channel(settings)
        self.stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
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
        self._abandoned: deque[Region] = deque()

    def take(self) -> Line:
        """A line that nobody uses."""
        with self._lock:
            if self._free:
                return self._free.pop()
        return Line(self._settings)

    def give_back(self, line: Line) -> None:
        """Nobody uses it any more."""
        with self._lock:
            if not self._is_closed:
                self._free.append(line)
                return
        line.channel.close()

    def close(self) -> None:
        """Give everything back; lines that are in use, when they are given back."""
        with self._lock:
            self._is_closed = True
            free, self._free = self._free, deque()
        for line in free:
            self.abandon(line)
        if free:
            self._forget_abandoned(free[0])
        for line in free:
            line.channel.close()

    # Shared memory.

    def abandon(self, line: Line) -> None:
        """Never use the memory of a line again: the server may still read it, or write to it."""
        region, line.region = line.region, None
        if region is not None:
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
            forget_orphans(line.stub, self._settings.connect_timeout)
        except grpc.RpcError:
            return
        finally:
            self.give_back(line)

    def _forget_abandoned(self, line: Line) -> None:
        while self._abandoned:
            region = self._abandoned.popleft()
            try:
                region.forget(line.stub, self._settings.connect_timeout)
            except grpc.RpcError as error:
                # Gone, it has nothing mapped any more; late, it is told again.
                if isinstance(failure_of(error), TimedOut):
                    self._abandoned.append(region)
                return

    # Calls.

    def infer(self, line: Line, message: Any, until: int, metadata: Metadata) -> Any:
        """Send a batch and wait for its answer, at most until the instant `until` (ns).

        It is sent again only while there is no connection, which is tried for as long as the settings say.

        Raises:
            Unreachable, TimedOut, Lost, UnknownRegion: see there.
            ModelError: the server answered with an error.
        """
        return self._send(line.stub.ModelInfer, line, message, until, metadata)

    def ask(self, method: str, request: Any) -> Any:
        """A call about the server or the model, that waits for connection and answer as long as a connection may take.

        Raises:
            Unreachable, TimedOut, Lost, ModelError: see `infer`.
        """
        line = self.take()
        try:
            until = self._clock.now() + int(self._settings.connect_timeout * SECOND)
            return self._send(getattr(line.stub, method), line, request, until)
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

    def _send(self, call: Any, line: Line, message: Any, until: int, metadata: Metadata = ()) -> Any:
        """Make a call; again, if there was no connection and there is one now."""
        give_up = min(until, self._clock.now() + int(self._settings.connect_timeout * SECOND))
        while True:
            left = (until - self._clock.now()) / SECOND
            if left <= 0:
                raise TimedOut()
            try:
                return call(message, timeout=left, metadata=metadata)
            except grpc.RpcError as error:
                failure = failure_of(error)
            if not isinstance(failure, Unreachable) or not self._connects(line, give_up):
                raise failure

    def _connects(self, line: Line, until: int) -> bool:
        """Wait for a connection, at most until that instant (ns); says whether there is one."""
        ready = grpc.channel_ready_future(line.channel)
        try:
            ready.result(max(0.0, (until - self._clock.now()) / SECOND))
            return True
        except grpc.FutureTimeoutError:
            return False
        finally:
            ready.cancel()


def failure_of(error: grpc.RpcError) -> Exception:
    """What became of a call that failed."""
    call: Any = error
    code, words = call.code(), call.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unreachable(words) if words.startswith(_UNCONNECTED) else Lost(words)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut(words)
    if words.startswith(_UNKNOWN_REGION):  # whose code is not the same in all versions
        return UnknownRegion(words)
    # A code that we have no word for is about the two servers, not about the client.
    return ModelError(words or code.name, _CODES.get(code.name, Code.INTERNAL))


def _channel(settings: Settings) -> grpc.Channel:
    timeout = int(settings.connect_timeout * _MILLISECONDS)
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),  # else all channels to one address are one connection
        ("grpc.enable_retries", 0),  # what is sent again is decided here
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.min_reconnect_backoff_ms", timeout),
        ("grpc.initial_reconnect_backoff_ms", min(100, timeout)),
        ("grpc.max_reconnect_backoff_ms", max(100, timeout)),
    ]
    if settings.is_here:
        options.append(("grpc.enable_http_proxy", 0))
    if settings.tls is None:
        return grpc.insecure_channel(settings.url, options)
    ca, certificate, key = settings.tls
    return grpc.secure_channel(settings.url, grpc.ssl_channel_credentials(ca, key, certificate), options)
