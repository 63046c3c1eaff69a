"""Connections that are no good: the server does not mind, and serves the others meanwhile."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import tritonclient.grpc as triton

from headrace.backends.fake import Script
from tests.transport.serving import ECHO, PATIENCE, Asked, Serve, Server, message, tensor

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_HEADERS = 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def header(name: str, value: str) -> bytes:
    """One field of a header block, the plainest way there is: literal, not indexed."""
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


def call(path: str = "/inference.GRPCInferenceService/ModelInfer", kind: str = "application/grpc") -> bytes:
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers", "content-type": kind}
    return frame(HEADERS, END_HEADERS, 1, b"".join(header(*field) for field in fields.items()))


BODY = message("m", [("x", "INT32", (1, 1))], [b"\1\0\0\0"]).SerializeToString()
MESSAGE = b"\0" + struct.pack(">I", len(BODY)) + BODY
HELLO = PREFACE + frame(SETTINGS, 0, 0)

SENT = {
    "nothing": b"",
    "half a preface": PREFACE[:10],
    "another protocol": b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "noise": bytes(range(256)) * 40,
    "a preface and no more": HELLO,
    "a frame that is too large": HELLO + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "half a frame": HELLO + call()[:-7],
    "a call without a message": HELLO + call(),
    "half a message": HELLO + call() + frame(DATA, 0, 1, MESSAGE[:-5]),
    "a message that ends too soon": HELLO + call() + frame(DATA, 1, 1, MESSAGE[:-5]),
    "a message of 4 GB": HELLO + call() + frame(DATA, 0, 1, b"\0\xff\xff\xff\xff" + BODY),
    "compressed, and it is not": HELLO + call() + frame(DATA, 1, 1, b"\1" + MESSAGE[1:]),
    "a header block that is none": HELLO + frame(HEADERS, END_HEADERS | 1, 1, b"\xff" * 30),
    "a kind of content that is not gRPC": HELLO + call(kind="text/html") + frame(DATA, 1, 1, b"hello"),
}


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve({"m": (ECHO, Script())})


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(server: Server, sockets: ExitStack) -> socket.socket:
    host, port = server.address.rsplit(":", 1)
    return sockets.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE))


def is_well(server: Server) -> bool:
    """Whether it answers, on a connection that it has not seen before."""
    own = [("grpc.use_local_subchannel_pool", 1)]
    with triton.InferenceServerClient(server.address, channel_args=own) as client:
        return client.infer("m", [tensor("x", [[7]])], client_timeout=PATIENCE).as_numpy("y").tolist() == [[7]]


@pytest.mark.parametrize("what", SENT)
@pytest.mark.parametrize("end", ["open", "closed", "reset"])
def test_a_bad_connection(server: Server, sockets: ExitStack, what: str, end: str) -> None:
    bad = connect(server, sockets)
    bad.sendall(SENT[what])
    if end == "reset":
        bad.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if end != "open":
        bad.close()
    assert is_well(server)
    assert server.waiting("m") == 0


def test_many_idle_connections(server: Server, sockets: ExitStack) -> None:
    for _ in range(100):
        connect(server, sockets).sendall(HELLO)
    assert is_well(server)


def test_stopping_with_bad_connections_open(server: Server, sockets: ExitStack) -> None:
    for sent in SENT.values():
        connect(server, sockets).sendall(sent)
    assert is_well(server)
    # The fixture closes the server with all of these still open; a stop that hangs fails by the time limit.


def test_large_messages_beside_small_ones(server: Server) -> None:
    """8 MB each way, from several clients at once."""
    large = tensor("x", [[5] * 2_000_000])
    asked = [Asked(server, "m", [given]) for given in (large, tensor("x", [[1]]), large, tensor("x", [[2]]))]
    sums = [int(one.result().as_numpy("y").sum()) for one in asked]
    assert sums == [10_000_000, 1, 10_000_000, 2]


def test_calls_that_are_given_up_at_once_are_no_attack(server: Server, sockets: ExitStack) -> None:
    """A client whose deadlines pass together cancels hundreds of calls in one go; its connection is needed for the rest."""
    client = connect(server, sockets)
    block = call()[9:]
    numbers = range(1, 601, 2)
    given_up = b"".join(
        frame(HEADERS, END_HEADERS, number, block) + frame(RESET, 0, number, struct.pack(">I", 8)) for number in numbers
    )
    client.sendall(HELLO + given_up + frame(PING, 0, 0, b"is there"))
    while (found := read_frame(client)) != (PING, b"is there"):
        assert found[0] != GOAWAY, found
    assert is_well(server)


def read_frame(connected: socket.socket) -> tuple[int, bytes]:
    """The next frame: its kind and payload."""
    head = receive(connected, 9)
    return head[3], receive(connected, int.from_bytes(head[:3], "big"))


def receive(connected: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        part = connected.recv(count - len(received))
        assert part, "the connection was closed"
        received += part
    return received
