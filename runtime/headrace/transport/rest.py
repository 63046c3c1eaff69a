"""REST V2: Starlette on uvicorn, on the same queues and the same control module as gRPC.

One event loop in one thread of its own. What a body means is for `protocol.rest` and `protocol.rest_calls`; here are
connections, statuses, compression, and clients that hang up.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Http
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from headrace.clock import SECOND, Clock, MonotonicClock
from headrace.engine.routes import Routes
from headrace.errors import Broken, Code, Draining, HeadraceError, InvalidRequest, Unsupported, sentence
from headrace.protocol.codec import MAX_MESSAGE_BYTES, decode_version
from headrace.protocol.http_coding import CODINGS, UnsupportedCoding, check_coding, compress, decompress, wanted_coding
from headrace.protocol.origin import origin_of, peer_of_host
from headrace.protocol.rest import (
    MAX_INPUT_BYTES,
    Encoded,
    Inference,
    decode_header_length,
    decode_inference,
    encode_inference,
    too_large,
)
from headrace.protocol.rest_calls import CALLS, Call
from headrace.protocol.rest_json import encode_json, parse_object
from headrace.request import Origin
from headrace.request import Response as InferResponse
from headrace.scheduling.entry import Answer
from headrace.scheduling.sinks import LoopSink
from headrace.transport import openapi
from headrace.transport.base import ControlCalls
from headrace.transport.http import http_server
from headrace.transport.listening import listen
from headrace.transport.loop import LoopThread

log = logging.getLogger(__name__)

_JSON, _BINARY = "application/json", "application/octet-stream"
_HEADER_LENGTH = "Inference-Header-Content-Length"
_STATUSES: Mapping[Code, int] = {
    Code.NOT_FOUND: 404,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.INTERNAL: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
"""All others are 400."""
_MAX_HEADER_BYTES = 1 << 16
_KEEP_ALIVE_SECONDS = 75
_LINGER_SECONDS = 2
_LARGE_BYTES = 1 << 20
_DECOUPLED = "HTTP end point doesn't support models with decoupled transaction policy"

T = TypeVar("T")


class RestTransport:
    """See `transport.base.Transport`.

    Args:
        address: `HOST:PORT`; port 0 picks a free one.
        clock: for stamps and deadlines.
        max_input_bytes: the most there may be of JSON, of one tensor in it, of a body that is one raw tensor, and of a body
            after decompression. Binary tensors beside JSON may be larger.
    """

    def __init__(self, address: str, clock: Clock | None = None, max_input_bytes: int = MAX_INPUT_BYTES) -> None:
        self.address = address
        self._clock = clock or MonotonicClock()
        self._max_input_bytes = max_input_bytes
        self._thread = LoopThread("headrace-rest")
        self._is_accepting = True
        self._server: uvicorn.Server | None = None

    def start(self, routes: Routes, control: ControlCalls) -> None:
        """Listen. See `Transport.start`."""
        self._thread.start()
        self._thread.do(self._start(routes, control))

    def stop_accepting(self) -> None:
        """Refuse new requests; those that run go on."""
        self._is_accepting = False

    def close(self, deadline: int) -> None:
        """Close the connections that are idle, wait for the requests that run until `deadline` (ns), then end the rest."""
        self._is_accepting = False
        if self._thread.is_running:
            self._thread.do(self._stop(deadline))
        self._thread.end()

    async def _start(self, routes: Routes, control: ControlCalls) -> None:
        self._routes, self._control = routes, control
        self._sink = LoopSink(routes.push, self._clock, self._thread.loop)
        listener = listen(self.address)
        self.address = f"{self.address.rpartition(':')[0]}:{listener.getsockname()[1]}"
        self._server = http_server(
            self._application(),
            partial(_HttpProtocol, self._clock),
            log_level="error",
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        # The listener takes connections already; whoever comes before uvicorn does, waits a moment.
        self._serving = asyncio.create_task(self._server.serve([listener]))

    async def _stop(self, deadline: int) -> None:
        if (server := self._server) is None:
            return
        # Annotated as whole seconds; it is what `asyncio.wait_for` gets. Never 0: then uvicorn complains of tasks it has not.
        server.config.timeout_graceful_shutdown = max(0.05, (deadline - self._clock.now()) / SECOND)  # pyright: ignore
        server.should_exit = True
        await self._serving
        await asyncio.gather(*server.server_state.tasks, return_exceptions=True)

    def _application(self) -> Starlette:
        routes = [
            Route("/openapi.json", _always(Response(encode_json(openapi.document()), media_type=_JSON))),
            Route("/docs", _always(HTMLResponse(openapi.page()))),
        ]
        by_path: dict[str, dict[str, Call]] = {}
        for call in CALLS:
            by_path.setdefault(call.path, {})[call.http] = call
        routes += [Route(path, self._control_call(calls), methods=list(calls)) for path, calls in by_path.items()]
        for version in ("", "/versions/{version}"):
            for tail in openapi.INFERENCE:
                answer = self._infer if tail == "infer" else _not_yet(tail)
                routes.append(Route(f"/v2/models/{{model}}{version}/{tail}", answer, methods=["POST"]))
        handlers: Mapping[Any, Any] = {
            HeadraceError: _refuse,
            HTTPException: _refuse_http,
            ClientDisconnect: _hang_up,
            Exception: _fail,
        }
        application = Starlette(routes=routes, exception_handlers=handlers)
        application.router.redirect_slashes = False
        return application

    def _control_call(self, calls: Mapping[str, Call]) -> Callable[[Http], Awaitable[Response]]:
        async def answer(http: Http) -> Response:
            call, path = calls["GET" if http.method == "HEAD" else http.method], _path_of(http)
            body = b"" if call.body is None else await self._body(http, self._max_input_bytes)
            try:
                payload = call.ask(path, parse_object(body)).SerializeToString()
            except UnicodeEncodeError:
                raise InvalidRequest("the request JSON holds text that is not Unicode: half of a surrogate pair") from None
            if call.method in self._control.blocking:
                payload = await self._thread.patiently(self._control.handle, call.method, payload)
            else:
                payload = self._control.handle(call.method, payload)
            told = call.answer(payload)
            if told.value is None:
                return Response(status_code=told.status)
            return Response(encode_json(told.value), told.status, media_type=_JSON)

        return answer

    async def _infer(self, http: Http) -> Response | _Settling:
        received, origin = http.state.received, _origin(http)
        try:
            asked = await self._decode(http)
        except HeadraceError as error:
            self._routes.turned_away(error, received, origin=origin)
            raise
        request = asked.request
        request.received, request.decoded, request.origin = received, self._clock.now(), origin
        answer = await self._ask(http, asked)
        return _hang_up(http, None) if answer is None else await self._encode(http, asked, answer)

    async def _decode(self, http: Http) -> Inference:
        if not self._is_accepting:
            raise Draining("HTTP")
        path = _path_of(http)
        version = path.get("version", "")
        spec = self._routes.resolve(path["model"], decode_version(version)).spec
        if spec.decoupled:
            raise Unsupported(_DECOUPLED)
        given = http.headers.get(_HEADER_LENGTH)
        # Only where JSON is a part of the body, the rest of it has a limit of its own.
        body = await self._body(http, self._max_input_bytes if given in (None, "0") else MAX_MESSAGE_BYTES)
        header, windows = decode_header_length(given, len(body)), self._control.regions
        return await _aside(len(body), lambda: decode_inference(body, header, spec, version, self._max_input_bytes, windows))

    async def _body(self, http: Http, limit: int) -> bytes:
        """All of a request's body, without its compression."""
        coding = check_coding(http.headers.get("content-encoding", ""))
        limit = min(limit, self._max_input_bytes) if coding else limit
        declared = int(http.headers.get("content-length", 0))
        if declared > limit:
            raise too_large(declared, limit)  # uvicorn reads the rest and drops it, so that the client gets to know
        chunks: list[bytes] = []
        size = 0
        async for chunk in http.stream():
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise too_large(size, limit)
        body = b"".join(chunks)
        return await _aside(size, lambda: decompress(body, coding, limit)) if coding else body

    async def _ask(self, http: Http, asked: Inference) -> Answer | None:
        """The answer; None when the client has hung up, which cancels the entry.

        Raises:
            HeadraceError: it was not admitted, or the server closes.
        """
        answer = asyncio.create_task(self._sink.ask(asked.request))
        hung_up = asyncio.create_task(_disconnected(http))
        try:
            await asyncio.wait((answer, hung_up), return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else None
        except asyncio.CancelledError:  # by uvicorn, when `close` will wait no longer
            raise Draining("HTTP") from None
        finally:
            answer.cancel()
            hung_up.cancel()

    async def _encode(self, http: Http, asked: Inference, answer: Answer) -> _Settling:
        """The last step: the answer is settled when this is sent, whatever becomes of it."""
        result = answer.result
        try:
            if isinstance(result, InferResponse):
                coding = wanted_coding(http.headers.get("accept-encoding", ""))
                size = sum(tensor.nbytes for tensor in result.outputs.values())
                encoded, body = await _aside(size, lambda: _encoded(result, asked, coding))
                return _Settling(_answered(encoded, body, coding), lambda: answer.settle(self._clock.now(), len(body)))
            error = result
        except Exception as raised:
            if not isinstance(raised, HeadraceError):
                log.exception("a response could not be encoded")
            error = raised if isinstance(raised, HeadraceError) else Broken(f"a response could not be encoded: {raised}")
            answer.result = error
        return _Settling(_refuse(http, error), lambda: answer.settle(self._clock.now()))


class _Settling:
    """A response, and what is to be done when its body is handed to uvicorn, or cannot be. That may be done twice."""

    def __init__(self, response: Response, settle: Callable[[], object]) -> None:
        self._response, self._settle = response, settle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def hand_over(message: Message) -> None:
            if message["type"] == "http.response.body":  # all of it
                self._settle()
            await send(message)

        try:
            await self._response(scope, receive, hand_over)
        finally:
            self._settle()


def _origin(http: Http) -> Origin:
    return origin_of(http.headers.items(), peer_of_host(http.client.host if http.client else ""))


class _HttpProtocol(H11Protocol):
    """Says in JSON what is wrong with what is not HTTP, and of each request when it began to come: `state.received`, in ns."""

    def __init__(self, clock: Clock, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._clock, self._is_refused = clock, False
        self._last: object = self
        """Whose end was the beginning of what is coming now."""

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`. What comes after a refusal is dropped: hanging up on it would take the answer along."""
        if self._is_refused:
            return
        if self.conn.their_state is not h11.SEND_BODY and self._last is not self.cycle:
            self._last, self.app_state = self.cycle, {"received": self._clock.now()}
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Answer, and hang up a little later; called where h11's error is caught."""
        self._is_refused = True
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun
            self.transport.close()
            return
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        told = (
            f"headers must not be longer than {_MAX_HEADER_BYTES} bytes" if status == 431 else sentence(error or Exception(msg))
        )
        body = encode_json({"error": f"this is not a valid HTTP request: {told.partition(': bytearray')[0]}"})
        headers = [("content-type", _JSON), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)


def _encoded(response: InferResponse, asked: Inference, coding: str) -> tuple[Encoded, bytes]:
    encoded = encode_inference(response, asked)
    return encoded, compress(encoded.body, coding) if coding else encoded.body


def _answered(encoded: Encoded, body: bytes, coding: str) -> Response:
    headers = {"Content-Encoding": coding} if coding else {}
    if encoded.json_bytes is not None:
        headers[_HEADER_LENGTH] = str(encoded.json_bytes)
    return Response(body, headers=headers, media_type=_JSON if encoded.json_bytes is None else _BINARY)


async def _aside(size: int, work: Callable[[], T]) -> T:
    """Do it here, or in a thread where it takes long: others shall not wait for that."""
    return await asyncio.to_thread(work) if size > _LARGE_BYTES else work()


async def _disconnected(http: Http) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _path_of(http: Http) -> Mapping[str, str]:
    """The path's parameters.

    Raises:
        HTTPException: its version is no number, so there is no such path.
    """
    path: Mapping[str, str] = http.path_params
    if "version" in path and not re.fullmatch("[0-9]+", path["version"]):
        raise HTTPException(404)
    return path


def _always(response: Response) -> Callable[[Http], Awaitable[Response]]:
    async def answer(http: Http) -> Response:
        return response

    return answer


def _not_yet(what: str) -> Callable[[Http], Awaitable[Response]]:
    async def answer(http: Http) -> Response:
        _path_of(http)
        raise Unsupported(f"{what} is not implemented by this server yet; use infer")

    return answer


def _refuse(http: Http, error: HeadraceError) -> Response:
    headers = {"Accept-Encoding": CODINGS} if isinstance(error, UnsupportedCoding) else {}
    if error.retry_after_ns is not None:
        # Whole seconds, by RFC 9110: rounded up, for who comes too early is refused again.
        headers["Retry-After"] = str(max(1, -(-error.retry_after_ns // SECOND)))
    return _error(_STATUSES.get(error.code, 400), error.message, headers)


def _refuse_http(http: Http, error: HTTPException) -> Response:
    return _error(error.status_code, error.detail, error.headers)


def _hang_up(http: Http, error: Exception | None) -> Response:
    return Response(status_code=400)  # nobody hears it


def _fail(http: Http, error: Exception) -> Response:
    return _error(500, Broken(f"a request could not be answered: {sentence(error)}").message)


def _error(status: int, told: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode_json({"error": told}), status, headers, _JSON)
