"""The native transport: the server of kernels/, which knows HTTP/2, the codec and the queues, and asks Python for the rest.

Routes and regions are told to the kernel whenever they change; requests go into the queues that this transport brings without
Python. Control calls come out as (method, bytes): one thread answers those that are quick, others those that may take long.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from headrace.clock import Clock, MonotonicClock
from headrace.engine.routes import Route, Routes
from headrace.errors import Broken, CannotListen, HeadraceError, InvalidRepository
from headrace.ledger.ledger import Ledger
from headrace.protocol.headers import HeaderForwarding
from headrace.scheduling.native import NativeQueue, NativeQueues, native
from headrace.transport.base import WINDOW, ControlCalls, StreamWindow
from headrace.transport.listening import is_unix, listen, unlink

if TYPE_CHECKING:
    from headrace_kernels import Call, Kernel, Server

log = logging.getLogger(__name__)

_PATIENT_THREADS = 8


class NativeTransport:
    """See `transport.base.Transport`.

    Args:
        address: `HOST:PORT`, where port 0 picks a free one, or `unix:PATH`.
        clock: for what is stamped in Python.
        header_forward_pattern: which headers become parameters of their request; see `protocol.headers`.
        window: the bounds of each stream.

    Raises:
        InvalidRepository: the pattern is no regular expression, or one that only Python understands.
    """

    def __init__(
        self, address: str, clock: Clock | None = None, header_forward_pattern: str = "", window: StreamWindow = WINDOW
    ) -> None:
        HeaderForwarding(header_forward_pattern)
        if why := native.check_pattern(header_forward_pattern):
            raise InvalidRepository(
                f"header forward pattern '{header_forward_pattern}' is none that the native transport understands ({why}); use a "
                "plainer one, or --transport portable"
            )
        self.address = address
        self._pattern, self._window = header_forward_pattern, window
        self._clock = clock or MonotonicClock()
        self._kernel: Kernel = native.Kernel()
        self._server: Server | None = None

    def queues(self, ledger: Ledger, clock: Clock) -> NativeQueues:
        """The queues of the engine that this transport serves. See `scheduling.base.MakeQueues`."""
        return NativeQueues(self._kernel, ledger, clock).start()

    def start(self, routes: Routes, control: ControlCalls) -> None:
        """Listen. See `Transport.start`."""
        listener = listen(self.address)
        routes.follow(_Follower(self._kernel))
        control.regions.follow(self._kernel)
        if not is_unix(self.address):
            self.address = f"{self.address.rpartition(':')[0]}:{listener.getsockname()[1]}"
        try:
            self._server = server = self._kernel.start_server(
                listener.detach(),
                is_unix=is_unix(self.address),
                methods=list(control.methods),
                dialogues=list(control.dialogues),
                header_pattern=self._pattern,
                window=(self._window.requests, self._window.unsent, self._window.flood),
            )
        except OSError as error:
            raise CannotListen(self.address, str(error)) from None
        self._patient = ThreadPoolExecutor(_PATIENT_THREADS, "headrace-grpc-patient")
        self._thread = threading.Thread(target=self._answer_calls, args=(server, control), name="headrace-grpc", daemon=True)
        self._thread.start()

    def stop_accepting(self) -> None:
        """Refuse new calls; those that run go on."""
        if self._server is not None:
            self._server.stop_accepting()

    def close(self, deadline: int) -> None:
        """Say goodbye to every connection, wait for the calls that run until `deadline` (ns), then end the rest."""
        if self._server is None:
            return
        self._server.close(deadline)
        self._thread.join()
        self._patient.shutdown(wait=False, cancel_futures=True)
        self._server = None
        unlink(self.address)

    def _answer_calls(self, server: Server, control: ControlCalls) -> None:
        while (call := server.next_call()) is not None:
            if call.method in control.blocking:
                self._patient.submit(_answer, call, control)
            else:
                _answer(call, control)
            del call


class _Follower:
    """Tells the kernel of routes. See `engine.routes.Follower`."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def publish(self, model: str, versions: Mapping[int, Route | None] | None) -> None:
        if versions is None:
            self._kernel.publish(model, None)
            return
        self._kernel.publish(model, {number: route and _core_of(route) for number, route in versions.items()})

    def close_routes(self) -> None:
        self._kernel.close_routes()


def _core_of(route: Route) -> native.Queue:
    if not isinstance(route.queue, NativeQueue):
        raise Broken("the native transport serves engines that were made with its queues: Engine(…, queues=transport.queues)")
    return route.queue.core


def _answer(call: Call, control: ControlCalls) -> None:
    try:
        call.answer(control.handle(call.method, call.payload))
    except HeadraceError as error:
        call.fail(error.code.value, error.message)
    except Exception as error:
        log.exception("a control call failed; this is a bug in Headrace")
        call.fail(Broken.code.value, Broken(f"{call.method} failed: {error}").message)
