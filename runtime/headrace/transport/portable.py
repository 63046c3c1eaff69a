"""The portable transport: grpc.aio, for machines without the native one.

One event loop in one thread of its own. Payloads pass as bytes: inference is decoded here, everything else goes to the
control module. Answers of a batch wake the loop once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import grpc
import grpc.aio

from headrace.clock import MILLISECOND, SECOND, Clock, MonotonicClock
from headrace.engine.routes import Routes
from headrace.errors import Broken, CannotListen, Draining, HeadraceError
from headrace.protocol.codec import MAX_MESSAGE_BYTES, decode_request
from headrace.protocol.headers import HeaderForwarding
from headrace.protocol.origin import origin_of, peer_of_grpc
from headrace.request import Origin, Request
from headrace.scheduling.expiry import PortableQueues
from headrace.scheduling.sinks import LoopSink
from headrace.transport.base import WINDOW, ControlCalls, StreamWindow
from headrace.transport.listening import is_unix, listen, unlink
from headrace.transport.loop import LoopThread
from headrace.transport.streams import Call, Streams
from headrace.transport.unary import Unary

_SERVICE = "/inference.GRPCInferenceService/"
_INFER = _SERVICE + "ModelInfer"
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Otherwise a second server would share a busy port without a word.
    ("grpc.so_reuseport", 0),
    # Clients that turn keep-alive on ping more often than gRPC's five minutes, and would be cut off.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.max_concurrent_streams", 4096),
    # Above a thousand calls that the loop has not seen yet, gRPC cancels some at random, anybody's; the queues have bounds of
    # their own, and words for it.
    ("grpc.server.max_pending_requests", 1 << 16),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 17),
)
_QUIET_NS = SECOND // 10
_LINGER_NS = 2 * SECOND
_Context = grpc.aio.ServicerContext[Any, Any]


class PortableTransport:
    """See `transport.base.Transport`.

    Args:
        address: `HOST:PORT`, where port 0 picks a free one, or `unix:PATH`.
        clock: for stamps and deadlines.
        header_forward_pattern: which headers become parameters of their request; see `protocol.headers`.
        window: the bounds of each stream.

    Raises:
        InvalidRepository: the pattern is no regular expression.
    """

    queues = PortableQueues

    def __init__(
        self, address: str, clock: Clock | None = None, header_forward_pattern: str = "", window: StreamWindow = WINDOW
    ) -> None:
        self._forwarding = HeaderForwarding(header_forward_pattern)
        self.address, self._window = address, window
        self._clock = clock or MonotonicClock()
        self._thread = LoopThread("headrace-grpc")
        self._is_accepting, self._is_ending = True, False
        self._refused_at = 0
        self._listening: set[asyncio.Future[bytes | None]] = set()
        """Dialogues that wait for their client; none any more when the server ends."""

    def start(self, routes: Routes, control: ControlCalls) -> None:
        """Listen. See `Transport.start`."""
        self._thread.start()
        self._thread.do(self._start(routes, control))

    def stop_accepting(self) -> None:
        """Refuse new calls; those that run go on."""
        self._is_accepting = False
        self._refused_at = self._clock.now()

    def close(self, deadline: int) -> None:
        """Say goodbye to every connection, wait for the calls that run until `deadline` (ns), then end the rest."""
        self._is_accepting = False
        if self._thread.is_running:
            self._thread.do(self._stop(deadline))
        self._thread.end()
        unlink(self.address)

    async def _start(self, routes: Routes, control: ControlCalls) -> None:
        self._control = control
        sink = LoopSink(routes.push, self._clock, self._thread.loop)
        self._streams = Streams(routes, sink, self._clock, self._check_accepting, self._window)
        self._unary = Unary(routes, sink, self._clock, self._check_accepting)
        self._server = grpc.aio.server(options=_OPTIONS)
        handlers = {
            _SERVICE + "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream_infer),
        }
        for method in control.methods:
            handlers[method] = grpc.unary_unary_rpc_method_handler(self._control_call(method))
        for method in control.dialogues:
            handlers[method] = grpc.stream_stream_rpc_method_handler(self._dialogue(method))
        self._server.add_generic_rpc_handlers((_Handlers(handlers, self._infer_from),))
        # The operating system says why not; gRPC says only that it failed.
        listen(self.address).close()
        try:
            port = self._server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise CannotListen(self.address, str(error)) from None
        if not is_unix(self.address):
            self.address = f"{self.address.rpartition(':')[0]}:{port}"
        await self._server.start()

    async def _stop(self, deadline: int) -> None:
        """Stop the server once nobody asks any more.

        grpc.aio cancels calls that have arrived and have no handler yet when it stops; those clients should have been told
        UNAVAILABLE. So calls are refused until a moment passes without one.
        """
        last = min(deadline, self._clock.now() + _LINGER_NS)
        while (quiet_at := self._refused_at + _QUIET_NS) > self._clock.now() < last:
            await asyncio.sleep((min(quiet_at, last) - self._clock.now()) / SECOND)
        self._streams.finish()
        self._is_ending = True
        for question in self._listening:
            question.cancel()
        await self._server.stop(max(0.0, (deadline - self._clock.now()) / SECOND))

    def _infer_from(self) -> Any:
        """The handler of a call whose headers have just come: its message has not."""
        return grpc.unary_unary_rpc_method_handler(partial(self._infer, self._clock.now()))

    async def _infer(self, received: int, payload: bytes, context: _Context) -> bytes:
        def decode(payload: bytes) -> Request:
            return decode_request(payload, self._control.regions, self._forwarded(context))

        try:
            call = Call(decode, _deadline(context, self._clock.now()), _origin(context))
            return await self._unary.answer(payload, received, call)
        except HeadraceError as error:
            return await _abort(context, error)

    async def _stream_infer(self, requests: AsyncIterator[bytes], context: _Context) -> None:
        now = self._clock.now()
        closes_on_error = ("triton_grpc_error", "true") in (context.invocation_metadata() or ())
        try:
            self._check_accepting(now)
            call = Call(self._decoder(context), _deadline(context, now), _origin(context), closes_on_error)
            await self._streams.serve(requests, context.write, call)
        except HeadraceError as error:
            await _abort(context, error)

    def _decoder(self, context: _Context) -> Callable[[bytes], Request]:
        """Turns the messages of one call into requests: with the headers that are forwarded, and shared memory.

        Raises:
            InvalidRequest: a header must not be forwarded.
        """
        return partial(decode_request, windows=self._control.regions, forwarded=self._forwarded(context))

    def _forwarded(self, context: _Context) -> Mapping[str, str] | None:
        """The headers of a call that become parameters; see `HeaderForwarding.parameters`."""
        # gRPC makes the headers when somebody asks for them.
        return self._forwarding.parameters(context.invocation_metadata()) if self._forwarding.is_on else None

    def _check_accepting(self, now: int) -> None:
        if not self._is_accepting:
            self._refused_at = now
            raise Draining()

    def _control_call(self, method: str) -> Callable[[bytes, _Context], Awaitable[bytes]]:
        control, blocks, patiently = self._control, method in self._control.blocking, self._thread.patiently

        async def call(payload: bytes, context: _Context) -> bytes:
            try:
                return await patiently(control.handle, method, payload) if blocks else control.handle(method, payload)
            except HeadraceError as error:
                return await _abort(context, error)

        return call

    def _dialogue(self, method: str) -> Callable[[AsyncIterator[bytes], _Context], AsyncIterator[bytes]]:
        control = self._control

        async def converse(requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
            try:
                while (payload := await self._question(requests)) is not None:
                    yield control.handle(method, payload)
            except HeadraceError as error:
                await _abort(context, error)

        return converse

    async def _question(self, requests: AsyncIterator[bytes]) -> bytes | None:
        """The next message of a dialogue, None at its end.

        Raises:
            Draining: the server ends.
        """
        if self._is_ending:
            raise Draining()
        question = asyncio.ensure_future(anext(requests, None))
        self._listening.add(question)
        try:
            await asyncio.wait([question])
        finally:
            self._listening.discard(question)
            question.cancel()
        if question.cancelled():
            raise Draining()
        return question.result()


class _Handlers(grpc.GenericRpcHandler):
    """Every method by its full name, payloads as bytes; `infer` makes the handler of a `ModelInfer`."""

    def __init__(self, handlers: dict[str, Any], infer: Callable[[], Any]) -> None:
        self._handlers, self._infer = handlers, infer

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        return self._infer() if method == _INFER else self._handlers.get(method)


def _origin(context: _Context) -> Origin:
    return origin_of(context.invocation_metadata(), peer_of_grpc(context.peer()))


def _deadline(context: _Context, now: int) -> int | None:
    remaining = context.time_remaining()
    return None if remaining is None else now + int(remaining * SECOND)


async def _abort(context: _Context, error: HeadraceError) -> bytes:
    # gRPC keeps the last abort. Frames would keep with it what the call held: shared memory, model files.
    error.__traceback__ = error.__context__ = None
    if error.retry_after_ns is not None:
        # Clients that retry go by it.
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(max(1, error.retry_after_ns // MILLISECOND))),))
    await context.abort(grpc.StatusCode[error.code.name], error.message)
    raise Broken("gRPC went on after an abort")
