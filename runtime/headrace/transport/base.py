"""What a transport is: a way in for remote clients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from headrace.engine.routes import Routes
from headrace.request import Windows


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
    def regions(self) -> Windows:
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
        """`HOST:PORT` it is bound to."""
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
