"""Calls by gRPC's own client for Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from headrace.backends.triton.channel import Metadata, TimedOut, Unreachable, failure_of
from headrace.backends.triton.messages import Answer, Asking, answer_of, request_of
from headrace.backends.triton.settings import Settings
from headrace.clock import SECOND, Clock

_UNCONNECTED = ("failed to connect to all addresses", "DNS resolution failed", "Name resolution failure")
"""How gRPC begins to say that there is no connection: nothing was sent then."""
_MILLISECONDS = 1000


class PortableChannel:
    """See `Channel`."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self._channel = _channel(settings)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(self, asking: Asking, until: int, metadata: Metadata) -> Answer:
        """See `Channel.infer`."""
        return answer_of(self._send(self._stub.ModelInfer, request_of(asking), until, metadata))

    def ask(self, method: str, request: Any, until: int) -> Any:
        """See `Channel.ask`."""
        return self._send(getattr(self._stub, method), request, until)

    def connects(self, until: int) -> bool:
        """See `Channel.connects`."""
        ready = grpc.channel_ready_future(self._channel)
        try:
            ready.result(max(0.0, (until - self._clock.now()) / SECOND))
            return True
        except grpc.FutureTimeoutError:
            return False
        finally:
            ready.cancel()

    def close(self) -> None:
        """See `Channel.close`."""
        self._channel.close()

    def _send(self, call: Callable[..., Any], message: Any, until: int, metadata: Metadata = ()) -> Any:
        left = (until - self._clock.now()) / SECOND
        if left <= 0:
            raise TimedOut()
        try:
            return call(message, timeout=left, metadata=metadata)
        except grpc.RpcError as error:
            raise _failure(error) from None


def _failure(error: Any) -> Exception:
    code, words = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and words.startswith(_UNCONNECTED):
        return Unreachable(words)
    return failure_of(code.value[0], words)


def _channel(settings: Settings) -> grpc.Channel:
    timeout = int(settings.connect_timeout * _MILLISECONDS)
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),  # else all channels to one address are one connection
        ("grpc.enable_retries", 0),  # what is sent again is decided in one place, and not here
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
