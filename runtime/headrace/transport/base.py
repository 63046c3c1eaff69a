"""What a transport is: a way in for remote clients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from headrace.engine.regions import Regions
from headrace.engine.routes import Routes
from headrace.scheduling.base import MakeQueues


@dataclass(frozen=True, slots=True)
class StreamWindow:
    """The bounds of one stream.

    Attributes:
        requests: that were read and are not answered in full; further ones are not read meanwhile.
        unsent: bytes of answers not yet sent, above which no request is read.
        flood: bytes of answers not yet sent that are not the last of their request: those `requests` does not bound. More of
            them end the stream.
    """

    requests: int = 1024
    unsent: int = 64 << 20
    flood: int = 256 << 20


WINDOW = StreamWindow()


class ControlCalls(Protocol):
    """Everything but inference, as (method, bytes): the same for every transport. See `headrace.transport.control`."""

    @property
    def methods(self) -> Iterable[str]:
        """The full names of all unary methods it answers, such as `/inference.GRPCInferenceService/ServerLive`."""
        ...

    @property
    def blocking(self) -> frozenset[str]:
        """Those that may take long, and must not hold up an event loop."""
        ...

    @property
    def regions(self) -> Regions:
        """Shared memory, for the tensors of requests that are there."""
        ...

    @property
    def dialogues(self) -> Iterable[str]:
        """Methods with a stream each way, in which every message gets one answer."""
        ...

    def handle(self, method: str, payload: bytes) -> bytes:
        """Answer one call.

        Raises:
            HeadraceError: the call fails with its code and message.
        """
        ...


class Transport(Protocol):
    """Listens at an address and turns calls into pushes."""

    @property
    def address(self) -> str:
        """Where it is bound to: `HOST:PORT`, or `unix:PATH`."""
        ...

    def start(self, routes: Routes, control: ControlCalls) -> None:
        """Listen.

        Raises:
            HeadraceError: the address cannot be had.
        """
        ...

    def stop_accepting(self) -> None:
        """Refuse new calls; those that run go on."""
        ...

    def close(self, deadline: int) -> None:
        """Wait for the calls that run until `deadline` (ns), then end the rest."""
        ...


class GrpcTransport(Transport, Protocol):
    """A transport that brings the queues it pushes into: the engine it serves is made with them."""

    @property
    def queues(self) -> MakeQueues:
        """Their factory."""
        ...
