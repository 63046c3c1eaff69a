"""`ModelStreamInfer`: many requests and many answers over one call, for transports that run on an event loop.

A stream has two tasks: one reads requests and pushes them, one writes what has been answered. Answers of ordinary models keep
the order of their requests; those of decoupled models go as they come. A reader that is slow meets two bounds: no further
request of its stream is read while many are on their way or their answers unsent, and a stream that a decoupled model floods
is ended. Neither concerns an instance thread, which only wakes the loop. Everything here lives on that loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from headrace.clock import Clock
from headrace.engine.routes import Routes
from headrace.errors import Broken, Draining, HeadraceError, ReaderTooSlow
from headrace.protocol.streaming import encode_failure, encode_refusal, encode_stream_response, request_id_of
from headrace.request import Origin, Request
from headrace.scheduling.entry import Answer, Entry
from headrace.scheduling.sinks import LoopSink
from headrace.transport.base import StreamWindow

log = logging.getLogger(__name__)

_OVERHEAD_BYTES = 512
"""What an unsent answer takes beside its message."""


@dataclass(frozen=True, slots=True)
class Call:
    """What holds for all requests of a call: of a stream, or the one.

    `decode` turns a message into one; `deadline` (ns) is that of the call, and so of each; `closes_on_error` says whether the
    first error of a scheduled request ends the stream (`triton_grpc_error`).
    """

    decode: Callable[[bytes], Request]
    deadline: int | None
    origin: Origin
    closes_on_error: bool = False


class Streams:
    """The open streams of a transport.

    Args:
        routes: where requests go.
        sink: the loop's.
        clock: for stamps.
        check_accepting: called with the instant (ns) a request came; raises `Draining` when none is taken any more.
        window: the bounds of each stream.
    """

    def __init__(
        self,
        routes: Routes,
        sink: LoopSink,
        clock: Clock,
        check_accepting: Callable[[int], None],
        window: StreamWindow,
    ) -> None:
        self.routes, self.sink, self.clock = routes, sink, clock
        self.check_accepting, self.window = check_accepting, window
        self._open: set[Stream] = set()

    async def serve(
        self,
        requests: AsyncIterator[bytes],
        send: Callable[[bytes], Awaitable[None]],
        call: Call,
    ) -> None:
        """Serve one stream to its end. Being cancelled – the client is gone – cancels whatever is on its way.

        Args:
            requests: `ModelInferRequest` messages; ends when the client has no more.
            send: sends a `ModelStreamInferResponse`; returns when the client's window has taken it.
            call: what holds for all of its requests.

        Raises:
            HeadraceError: the stream ends with its code and message.
        """
        stream = Stream(self, requests, send, call)
        self._open.add(stream)
        try:
            await stream.serve()
        finally:
            self._open.discard(stream)

    def finish(self) -> None:
        """Read no more requests; each stream ends when its last answer is sent."""
        for stream in self._open:
            stream.finish()


@dataclass(slots=True)
class _Piece:
    """One message to send, or none (an empty one nobody asked for), and what is to be done then."""

    asked: _Asked
    payload: bytes
    is_last: bool
    answer: Answer | None = None
    closes: HeadraceError | None = None

    @property
    def cost(self) -> int:
        return len(self.payload) + _OVERHEAD_BYTES


@dataclass(slots=True, eq=False)
class _Asked:
    """A request of a stream, until its last answer is sent. Answers that are not yet in turn are held back."""

    is_ordered: bool
    entry: Entry | None = None
    held: list[_Piece] = field(default_factory=list[_Piece])


class Stream:
    """One stream. See `Streams.serve`."""

    def __init__(
        self,
        home: Streams,
        requests: AsyncIterator[bytes],
        send: Callable[[bytes], Awaitable[None]],
        call: Call,
    ) -> None:
        self._home, self._requests, self._send, self._call = home, requests, send, call
        self._asked: set[_Asked] = set()
        self._line: deque[_Asked] = deque()  # the ordered ones that have not had their last answer, in their order
        self._ready: deque[_Piece] = deque()
        self._unsent = self._flood = 0
        self._room, self._news = asyncio.Event(), asyncio.Event()
        self._is_read = self._is_half_closed = self._is_finishing = self._is_asking = False
        self._failure: BaseException | None = None

    async def serve(self) -> None:
        """See `Streams.serve`."""
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(self._reading_ended)
        try:
            await self._write()
        finally:
            # Without an await: gRPC may cancel a call twice, and the second time would come in between.
            self._reader.cancel()
            self._drop()

    def finish(self) -> None:
        """See `Streams.finish`."""
        self._is_finishing = True
        if not self._is_asking:
            self._reader.cancel()

    # Reading.

    async def _read(self) -> None:
        while not self._is_finishing:
            while len(self._asked) >= self._home.window.requests or self._unsent > self._home.window.unsent:
                self._room.clear()
                await self._room.wait()
            payload = await anext(self._requests, None)
            if payload is None:
                self._is_half_closed = True
                return
            self._is_asking = True
            await self._ask(payload)
            self._is_asking = False

    async def _ask(self, payload: bytes) -> None:
        home, received = self._home, self._home.clock.now()
        asked = _Asked(is_ordered=True)
        try:
            home.check_accepting(received)
            request = self._call.decode(payload)
        except HeadraceError as error:
            home.routes.turned_away(error, received, origin=self._call.origin)
            self._join(asked)
            self._refuse(asked, error, request_id_of(payload))
            return
        request.received, request.decoded = received, home.clock.now()
        request.deadline, request.origin = self._call.deadline, self._call.origin
        route = home.routes.find(request.model, request.version)
        asked.is_ordered = route is None or not route.spec.decoupled
        self._join(asked)
        try:
            asked.entry = await home.sink.push(request, partial(self._receive, asked))
        except HeadraceError as error:
            self._refuse(asked, error, request.id)

    def _join(self, asked: _Asked) -> None:
        self._asked.add(asked)
        if asked.is_ordered:
            self._line.append(asked)

    def _reading_ended(self, reader: asyncio.Task[None]) -> None:
        self._is_read = True
        self._news.set()
        if not reader.cancelled() and (error := reader.exception()) is not None:
            self._fail(error)

    # Answers.

    def _refuse(self, asked: _Asked, error: HeadraceError, request_id: str) -> None:
        self._line_up(_Piece(asked, encode_refusal(error, request_id), is_last=True))

    def _receive(self, asked: _Asked, answer: Answer) -> None:
        try:
            payload = self._encode(answer)
        except Exception as raised:
            payload = self._encode_broken(answer, raised)
        closes = answer.result if self._call.closes_on_error and isinstance(answer.result, HeadraceError) else None
        self._line_up(_Piece(asked, payload, answer.is_final, answer, closes))

    def _encode(self, answer: Answer) -> bytes:
        request, result = answer.entry.request, answer.result
        if isinstance(result, HeadraceError):
            return encode_failure(result, request)
        if result.final and not result.outputs and not request.wants_empty_final:
            return b""
        return encode_stream_response(result)

    def _encode_broken(self, answer: Answer, raised: Exception) -> bytes:
        """An answer that cannot be encoded is the last one: what the model still sends is dropped."""
        log.exception("a response could not be encoded")
        is_last = answer.is_final
        error = raised if isinstance(raised, HeadraceError) else Broken(f"a response could not be encoded: {raised}")
        answer.result = error
        if not is_last:
            self._home.sink.forget(answer.entry)
        return encode_failure(error, answer.entry.request)

    def _line_up(self, piece: _Piece) -> None:
        """To be sent at once, or when all before it in the order of the stream have had their last answer."""
        self._unsent += piece.cost
        if not piece.is_last:
            self._flood += piece.cost
            if self._flood > self._home.window.flood:
                return self._fail(ReaderTooSlow(self._flood))
        if not piece.asked.is_ordered:
            self._ready.append(piece)
        else:
            piece.asked.held.append(piece)
            while self._line and self._line[0].held:
                held = self._line[0].held
                self._ready.extend(held)
                if not held[-1].is_last:
                    held.clear()
                    break
                self._line.popleft()
        self._news.set()

    # Writing.

    async def _write(self) -> None:
        while True:
            while self._ready:
                await self._write_one(self._ready.popleft())
            if self._failure is not None:
                raise self._failure
            if self._is_read and not self._asked:
                break
            self._news.clear()
            await self._news.wait()
        if not self._is_half_closed:
            raise Draining()

    async def _write_one(self, piece: _Piece) -> None:
        if piece.payload and piece.closes is None:
            try:
                await self._send(piece.payload)
            except Exception as error:
                # The client is gone, and gRPC has not come to cancel the call yet.
                raise asyncio.CancelledError from error
        self._settle(piece)
        if piece.closes is not None:
            raise piece.closes

    def _settle(self, piece: _Piece) -> None:
        self._unsent -= piece.cost
        if not piece.is_last:
            self._flood -= piece.cost
        else:
            self._asked.discard(piece.asked)
        if piece.answer is not None and piece.is_last:
            piece.answer.settle(self._home.clock.now(), len(piece.payload))
        elif piece.answer is not None:
            piece.answer.entry.bytes_out += len(piece.payload)
        self._room.set()

    def _fail(self, error: BaseException) -> None:
        """End the stream. gRPC takes no status while it sends a message, so this waits for the client; nothing else does."""
        self._failure = self._failure or error
        self._reader.cancel()
        self._drop()
        self._news.set()

    def _drop(self) -> None:
        for asked in self._asked:
            if asked.entry is not None:
                self._home.sink.forget(asked.entry)
        self._asked.clear()
        self._line.clear()
        self._ready.clear()
