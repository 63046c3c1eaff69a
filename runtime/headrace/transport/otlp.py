"""OTLP in: spans of others, over gRPC and over HTTP, in the side process (docs/traces.md).

Whoever sends is a stranger. What one may cost is bounded: connections, messages under way, the bytes of each before and after
decompression, and how long it may take to come. What is above is refused in the words of OTLP's specification, and counted.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import TimerHandle
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import grpc
import grpc.aio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Http
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from headrace.errors import CannotListen, Code, InvalidRequest
from headrace.protocol.http_coding import CODINGS, Oversized, UnsupportedCoding, check_coding, decompress
from headrace.transport.http import http_server
from headrace.transport.listening import listen, next_port
from headrace.transport.loop import LoopThread

log = logging.getLogger(__name__)

MOST_BYTES = 4 << 20
"""Of a message, compressed or not. It is gRPC's own default, and some ten thousand spans."""
MOST_CALLS = 16
"""Messages under way."""
MOST_CONNECTIONS = 256
"""For each of the two protocols."""
PATIENCE_SECONDS = 10.0
"""For a message to come."""
_IDLE_SECONDS = 60.0
"""For a connection over which nothing is asked."""

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
_PROTOBUF, _JSON = "application/x-protobuf", "application/json"
_GZIP_MAGIC = b"\x1f\x8b"
"""No message begins with that: it would be a field of a kind that does not exist."""
_OPTIONS = (
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", MOST_CALLS),
    ("grpc.max_allowed_incoming_connections", MOST_CONNECTIONS),
    ("grpc.max_connection_idle_ms", int(_IDLE_SECONDS * 1000)),
    ("grpc.server_handshake_timeout_ms", int(PATIENCE_SECONDS * 1000)),
    # gRPC decompresses to any size: we do it.
    ("grpc.per_message_decompression", 0),
    ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression | 1 << grpc.Compression.Gzip),
    # Otherwise a second server would share a busy port without a word.
    ("grpc.so_reuseport", 0),
)


class Service(Protocol):
    """Who is given the messages: see `telemetry.intake`."""

    def take(self, body: bytes, *, is_json: bool) -> bytes:
        """The answer to a message.

        Raises:
            InvalidRequest: it is none.
        """
        ...

    def refusal(self, reason: str, code: Code, why: str, *, is_json: bool) -> bytes:
        """Count a message that is refused; what that is answered with over HTTP."""
        ...


class _Refused(Exception):
    """No to a message: in the words of the counters, of gRPC, of HTTP, and of people."""

    def __init__(self, reason: str, code: Code, status: int, why: str) -> None:
        self.reason, self.code, self.status, self.why = reason, code, status, why


class OtlpReceiver:
    """Listens.

    Attributes:
        addresses: where, by protocol.
        calls: messages under way.

    Args:
        address: `HOST:PORT`, of gRPC; HTTP takes the next port. Port 0 picks free ones.
        service: who is given the messages, in one thread.

    Raises:
        CannotListen: there is no next port.
    """

    def __init__(self, address: str, service: Service) -> None:
        self.addresses: Mapping[str, str] = {"grpc": address, "http": next_port(address)}
        self.calls, self._service = 0, service
        self._thread = LoopThread("headrace-otlp")

    def start(self) -> None:
        """Listen.

        Raises:
            CannotListen: an address cannot be had.
        """
        self._thread.start()
        try:
            self._thread.do(self._start())
        except BaseException:
            self._thread.end()
            raise

    def close(self) -> None:
        """Stop listening, and leave what is under way."""
        self._thread.do(self._stop())
        self._thread.end()

    async def _start(self) -> None:
        listener = listen(self.addresses["http"])
        try:
            listen(self.addresses["grpc"]).close()  # the operating system says why not; gRPC says only that it failed
            self._grpc = grpc.aio.server(options=_OPTIONS)
            handler = grpc.stream_unary_rpc_method_handler(self._export)
            self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Export": handler}),))
            try:
                port = self._grpc.add_insecure_port(self.addresses["grpc"])
            except RuntimeError as error:
                raise CannotListen(self.addresses["grpc"], str(error)) from None
            await self._grpc.start()
        except BaseException:
            listener.close()
            raise
        application = Starlette(routes=[Route("/v1/traces", self._post, methods=["POST"])])
        self._http = http_server(application, self._connection, log_level="critical", timeout_keep_alive=int(_IDLE_SECONDS))
        hosts = {name: address.rpartition(":")[0] for name, address in self.addresses.items()}
        self.addresses = {"grpc": f"{hosts['grpc']}:{port}", "http": f"{hosts['http']}:{listener.getsockname()[1]}"}
        self._serving = asyncio.create_task(self._http.serve([listener]))

    async def _stop(self) -> None:
        self._http.should_exit = self._http.force_exit = True
        await self._serving
        await self._grpc.stop(None)

    # gRPC. A call of one message, read as a stream of them: so there is a moment at which to wait for it no longer.

    async def _export(self, messages: object, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            return await self._answer(lambda: self._read(context), is_json=False)
        except _Refused as refused:
            self._service.refusal(refused.reason, refused.code, refused.why, is_json=False)
            await context.abort(grpc.StatusCode[refused.code.name], refused.why)

    async def _read(self, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        body = await context.read()
        if not isinstance(body, bytes):
            raise Oversized(MOST_BYTES)  # gRPC has dropped it, and told the client
        return decompress(body, "gzip", MOST_BYTES) if body.startswith(_GZIP_MAGIC) else body

    # HTTP.

    async def _post(self, http: Http) -> Response:
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_json, headers = kind == _JSON, dict[str, str]()
        try:
            if kind not in (_JSON, _PROTOBUF):
                raise _Refused("garbage", Code.INVALID_ARGUMENT, 415, f"the content type is to be {_PROTOBUF} or {_JSON}")
            body, status = await self._answer(lambda: _body_of(http), is_json=is_json), 200
        except _Refused as refused:
            status, body = refused.status, self._service.refusal(refused.reason, refused.code, refused.why, is_json=is_json)
            headers = {429: {"Retry-After": "1"}, 415: {"Accept-Encoding": CODINGS}}.get(status, {})
        except ClientDisconnect:
            return Response(status_code=400)  # nobody hears it
        return Response(body, status, headers, _JSON if is_json else _PROTOBUF)

    def _connection(self, **keywords: Any) -> H11Protocol:
        return _Connection(self._turned_away, **keywords)

    def _turned_away(self) -> None:
        self._service.refusal("busy", Code.UNAVAILABLE, "", is_json=False)

    # Both.

    async def _answer(self, read: Callable[[], Awaitable[bytes]], *, is_json: bool) -> bytes:
        """Read a message, and have it answered.

        Raises:
            _Refused: it cannot be.
        """
        if self.calls >= MOST_CALLS:
            why = f"{MOST_CALLS} messages are under way: send it again a little later"
            raise _Refused("busy", Code.UNAVAILABLE, 429, why)
        self.calls += 1
        try:
            body = await asyncio.wait_for(read(), PATIENCE_SECONDS)
            return self._service.take(body, is_json=is_json)
        except TimeoutError:
            why = f"the message did not come within {PATIENCE_SECONDS:g} s"
            raise _Refused("slow", Code.DEADLINE_EXCEEDED, 408, why) from None
        except Oversized:
            why = f"a message has at most {MOST_BYTES} bytes, decompressed: send fewer spans at once"
            raise _Refused("too_large", Code.RESOURCE_EXHAUSTED, 413, why) from None
        except UnsupportedCoding as error:
            raise _Refused("garbage", Code.UNIMPLEMENTED, 415, error.message) from None
        except InvalidRequest as error:
            raise _Refused("garbage", Code.INVALID_ARGUMENT, 400, error.message) from None
        finally:
            self.calls -= 1


async def _body_of(http: Http) -> bytes:
    """The body of a request, without its compression.

    Raises:
        InvalidRequest: it is too large, or not compressed as it says.
    """
    coding = check_coding(http.headers.get("content-encoding", ""))
    if int(http.headers.get("content-length", 0)) > MOST_BYTES:
        raise Oversized(MOST_BYTES)
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise Oversized(MOST_BYTES)
    return decompress(bytes(body), coding, MOST_BYTES) if coding else bytes(body)


class _Connection(H11Protocol):
    """One of a bounded number, and hung up on where no request begins for a while; a request has a patience of its own."""

    def __init__(self, turned_away: Callable[[], None], **keywords: Any) -> None:
        super().__init__(**keywords)
        self._turned_away = turned_away
        self._hanging_up: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > MOST_CONNECTIONS:
            self._turned_away()
            transport.close()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and self._hanging_up is not None:
            self._hanging_up.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._hanging_up is not None:
            self._hanging_up.cancel()

    def _wait(self) -> None:
        if self._hanging_up is not None:
            self._hanging_up.cancel()
        self._hanging_up = self.loop.call_later(_IDLE_SECONDS, self.transport.close)
