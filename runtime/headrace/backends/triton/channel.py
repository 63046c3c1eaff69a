"""Calls of a server: what makes them, and what becomes of one that is not answered well.

There are two ways, and `way_to` says which is taken: the kernels' client, in the thread that calls, and gRPC's own, which also
has TLS and proxies.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from headrace import kernels
from headrace.backends.triton.messages import Answer, Asking
from headrace.backends.triton.settings import Settings
from headrace.clock import Clock
from headrace.errors import Code, KernelsUnusable, ModelError

Metadata = Sequence[tuple[str, str]]

SERVICE = "/inference.GRPCInferenceService/"
_CODES = {code.value: code for code in Code}
_UNKNOWN_REGION = "Unable to find shared memory region"
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""The variables of the environment that gRPC goes by."""


class Unreachable(Exception):
    """There is no connection, so that nothing was sent; or the server said that it did not look at what was."""


class TimedOut(Exception):
    """No answer within the time that was given. What was sent may run, or may have run."""


class Lost(Exception):
    """The connection broke, or the server is leaving. What was sent may have run."""


class UnknownRegion(Exception):
    """The server does not know the shared memory that was named. Nothing ran."""


FAILURES = (Unreachable, TimedOut, Lost, UnknownRegion, ModelError)
"""All that a call can raise. A `ModelError` is the server's own."""


class Channel(Protocol):
    """A connection to one server, which comes back when it was lost. Of one thread at a time. Instants are in ns."""

    def infer(self, asking: Asking, until: int, metadata: Metadata) -> Answer:
        """Send a request once, and wait for its answer, at most until that instant.

        Raises:
            Unreachable, TimedOut, Lost, UnknownRegion, ModelError: see there.
            BackendFailed: it is larger than a message can be.
        """
        ...

    def ask(self, method: str, request: Any, until: int) -> Any:
        """Any other call of the protocol, with its message. Raises as `infer`."""
        ...

    def connects(self, until: int) -> bool:
        """Try to connect, at most until that instant; whether there is a connection."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


def way_to(settings: Settings) -> str:
    """Which of the two makes the calls: `native` or `portable`."""
    is_proxied = not settings.is_here and any(os.environ.get(name) for name in _PROXIES)
    if settings.tls is not None or is_proxied:
        return "portable"
    try:
        kernels.load()
    except KernelsUnusable:
        return "portable"
    return "native"


def open_channel(settings: Settings, clock: Clock) -> Channel:
    """A channel to the server. Nothing is sent yet."""
    if way_to(settings) == "native":
        return import_module("headrace.backends.triton.native").NativeChannel(settings)
    return import_module("headrace.backends.triton.portable").PortableChannel(settings, clock)


def failure_of(code: int, words: str) -> Exception:
    """What became of a call that was answered with an error: gRPC's number, and what was said."""
    if code == Code.UNAVAILABLE.value:
        return Lost(words)
    if code == Code.DEADLINE_EXCEEDED.value:
        return TimedOut(words)
    if words.startswith(_UNKNOWN_REGION):  # whose code is not the same in all versions
        return UnknownRegion(words)
    # A code that we have no word for is about the two servers, not about the client.
    return ModelError(words or f"the server answered with gRPC code {code}", _CODES.get(code, Code.INTERNAL))
