"""Who sends spans is a stranger: what is taken, what is refused in which words, and that nobody takes more than his share."""

from __future__ import annotations

import gzip
import json
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from headrace.errors import CannotListen
from headrace.ledger.home import Home, open_home, the_neighbour
from headrace.telemetry import intake
from headrace.telemetry.intake import Intake
from headrace.transport import otlp
from headrace.transport.otlp import MOST_BYTES, OtlpReceiver
from tests.telemetry.test_otlp import JSON, message, theirs
from tests.waiting import until

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
PROTOBUF = {"Content-Type": "application/x-protobuf"}
BOMB = bytes(64 << 20)
PATIENCE = 20.0


class Post:
    """A receiver, without the rest of a side process."""

    def __init__(self, home: Home) -> None:
        self.tally = home.tally
        self.intake = Intake(the_neighbour(os.getpid()))
        self.receiver = OtlpReceiver("127.0.0.1:0", self.intake)
        self.receiver.start()

    @property
    def taken(self) -> int:
        """How many spans were taken so far; of no request here."""
        self.intake.finish(time.monotonic_ns())
        return self.tally.spans_unmatched

    def connect(self) -> socket.socket:
        host, _, port = self.receiver.addresses["http"].rpartition(":")
        return socket.create_connection((host, int(port)), PATIENCE)

    def send(self, body: Any, path: str = "/v1/traces", method: str = "POST", **headers: str) -> tuple[int, Any, bytes]:
        with closing(HTTPConnection(self.receiver.addresses["http"], timeout=PATIENCE)) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, PROTOBUF | named, encode_chunked=True)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def call(self, body: bytes, compression: grpc.Compression = grpc.Compression.NoCompression) -> bytes:
        with grpc.insecure_channel(self.receiver.addresses["grpc"], compression=compression) as channel:
            return channel.unary_unary(METHOD)(body, timeout=PATIENCE)

    def call_fails(self, body: bytes, *compression: grpc.Compression) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as raised:
            self.call(body, *compression)
        return raised.value.code(), raised.value.details()


@pytest.fixture
def post() -> Iterator[Post]:
    home = open_home()
    try:
        made = Post(home)
        yield made
        made.receiver.close()
    finally:
        home.close()


def spans(count: int) -> list[ReadableSpan]:
    tracer = TracerProvider().get_tracer("a client")
    made = [tracer.start_span("call", kind=SpanKind.CLIENT) for _ in range(count)]
    for span in made:
        span.end()
    return made  # type: ignore[return-value]


EXPORTERS: list[Callable[[Post], SpanExporter]] = [
    lambda post: GrpcExporter(f"http://{post.receiver.addresses['grpc']}", insecure=True),
    lambda post: GrpcExporter(f"http://{post.receiver.addresses['grpc']}", insecure=True, compression=grpc.Compression.Gzip),
    lambda post: HttpExporter(f"http://{post.receiver.addresses['http']}/v1/traces"),
    lambda post: HttpExporter(f"http://{post.receiver.addresses['http']}/v1/traces", compression=Compression.Gzip),
    lambda post: HttpExporter(f"http://{post.receiver.addresses['http']}/v1/traces", compression=Compression.Deflate),
]


@pytest.mark.parametrize("exporter_of", EXPORTERS, ids=["grpc", "grpc-gzip", "http", "http-gzip", "http-deflate"])
def test_spans_come_from_real_exporters(post: Post, exporter_of: Callable[[Post], SpanExporter]) -> None:
    exporter = exporter_of(post)
    assert [exporter.export(spans(300)) for _ in range(2)] == [SpanExportResult.SUCCESS] * 2
    exporter.shutdown()
    assert post.taken == 600


def test_json_comes_over_http(post: Post) -> None:
    for coding, body in (("", json.dumps(JSON).encode()), ("gzip", gzip.compress(json.dumps(JSON).encode()))):
        status, headers, told = post.send(body, Content_Type="application/json; charset=utf-8", Content_Encoding=coding)
        assert (status, headers["Content-Type"], json.loads(told)) == (200, "application/json", {})
    assert post.taken == 1, "it is the same span twice"


def test_what_is_not_taken_of_a_message_is_told(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MOST_SPANS", 5)
    flood = [theirs(span_id=bytes([1] * 7 + [place + 1])) for place in range(8)]
    assert post.call(message(*flood[:3])) == b"", "all of it"
    body = message(*flood[3:], theirs(trace_id=bytes(16)), theirs(kind=1))
    told = ExportTraceServiceResponse.FromString(post.send(body)[2]).partial_success
    assert told.rejected_spans == 4
    assert told.error_message == (
        "1 were no spans: ids are not 0, and an end is not before its beginning; there was no room for 3: 5 wait, for 6 s each"
    )
    assert ExportTraceServiceResponse.FromString(post.call(body)).partial_success.rejected_spans == 6
    counted = post.tally
    assert (counted.spans_without_room, counted.spans_malformed, counted.spans_unused, post.taken) == (8, 2, 2, 5)
    assert post.call(body) != b""
    assert post.taken == 10, "there is room again"


GZIP = {"Content_Encoding": "gzip"}
REFUSED: list[tuple[Any, dict[str, str], int, str]] = [
    (b"\xff\xff", {}, 400, "garbage"),
    (b"no gzip", GZIP, 400, "garbage"),
    (gzip.compress(message(theirs()), mtime=0)[:-6], GZIP, 400, "garbage"),
    (message(theirs()), {"Content_Type": "application/json"}, 400, "garbage"),
    (message(theirs()), {"Content_Type": "text/plain"}, 415, "garbage"),
    (message(theirs()), {"Content_Type": ""}, 415, "garbage"),
    (b"", {"Content_Encoding": "br"}, 415, "garbage"),
    (bytes(MOST_BYTES + 1), {}, 413, "too_large"),
    (iter([bytes(1 << 20)] * 5), {}, 413, "too_large"),
    (gzip.compress(BOMB, mtime=0), GZIP, 413, "too_large"),
    (zlib.compress(BOMB), {"Content_Encoding": "deflate"}, 413, "too_large"),
]


@pytest.mark.parametrize(("body", "headers", "status", "reason"), REFUSED)
def test_http_refuses_in_otlps_words(post: Post, body: Any, headers: dict[str, str], status: int, reason: str) -> None:
    got, told_headers, told = post.send(body, **headers)
    assert got == status, told
    if headers.get("Content_Type") == "application/json":
        assert json.loads(told)["message"]
    else:
        assert Status.FromString(told).message
        assert told_headers["Content-Type"] == "application/x-protobuf"
    assert getattr(post.tally, f"messages_{reason}") == 1
    assert post.send(message(theirs()))[0] == 200
    assert post.taken == 1


def test_there_is_nothing_else_over_http(post: Post) -> None:
    assert post.send(b"", path="/")[0] == post.send(b"", path="/v1/metrics")[0] == 404
    assert post.send(None, method="GET")[0] == 405


def test_grpc_refuses_in_its_own_words(post: Post) -> None:
    assert post.call_fails(b"\xff\xff")[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert post.tally.messages_garbage == 1
    code, told = post.call_fails(BOMB, grpc.Compression.Gzip)
    assert (code, "at most 4194304 bytes, decompressed" in told) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    assert post.tally.messages_too_large == 1
    assert post.call_fails(bytes(MOST_BYTES + 1))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert post.tally.messages_too_large == 2
    assert post.call_fails(message(theirs()), grpc.Compression.Deflate)[0] is grpc.StatusCode.UNIMPLEMENTED
    assert post.call(b"") == b""
    assert post.call(message(theirs())) == b""
    assert post.taken == 1


HEAD = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\n"


def test_who_is_slow_is_not_waited_for(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "PATIENCE_SECONDS", 0.2)
    with post.connect() as slow:
        slow.sendall(HEAD + b"a")
        assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
    never = threading.Event()

    def silent() -> Iterator[bytes]:
        never.wait()
        yield b""

    with grpc.insecure_channel(post.receiver.addresses["grpc"]) as channel:
        call = channel.stream_unary(METHOD).future(silent(), timeout=PATIENCE)
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "did not come within 0.2 s" in call.details()
        never.set()
    assert post.tally.messages_slow == 2
    assert post.call(message(theirs())) == b""


def test_one_too_many_at_once_is_asked_to_come_again(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "MOST_CALLS", 1)
    with post.connect() as slow:
        slow.sendall(HEAD)
        until(lambda: post.receiver.calls == 1)
        status, headers, told = post.send(message(theirs()))
        assert (status, headers["Retry-After"]) == (429, "1")
        assert "1 messages are under way" in Status.FromString(told).message
        assert post.call_fails(message(theirs()))[0] is grpc.StatusCode.UNAVAILABLE
        assert post.tally.messages_busy == 2
    until(lambda: post.receiver.calls == 0)
    assert post.call(message(theirs())) == b""


def test_connections_are_bounded_and_idle_ones_closed(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(otlp, "_IDLE_SECONDS", 0.5)
    with post.connect() as first, post.connect() as second:
        first.sendall(b"POST /v1/traces HTTP/1.1\r\n")
        with post.connect() as third:
            assert third.recv(1) == b"", "hung up on"
        assert post.tally.messages_busy == 1
        assert (first.recv(1), second.recv(1)) == (b"", b""), "nothing was asked, or half of it"
    assert post.send(message(theirs()))[0] == 200


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"POST\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_what_is_no_protocol_disturbs_nobody(post: Post, protocol: str, junk: bytes) -> None:
    host, _, port = post.receiver.addresses[protocol].rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as stranger:
        stranger.sendall(junk)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(4096):
            pass
    assert post.call(message(theirs())) == b""
    assert post.send(message(theirs()))[0] == 200


def test_addresses(post: Post) -> None:
    taken = post.receiver.addresses["grpc"]
    for address, why in ((taken, "in use"), ("127.0.0.1:65535", "the next port is taken, too"), ("127.0.0.1:x", "HOST:PORT")):
        with pytest.raises(CannotListen, match=why):
            OtlpReceiver(address, post.intake).start()
    port = int(post.receiver.addresses["http"].rpartition(":")[2])
    with pytest.raises(CannotListen, match="in use"):
        OtlpReceiver(f"127.0.0.1:{port - 1}", post.intake).start()
