"""Clients that hang up, connections that are no good, and the end of the server: nobody else minds."""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from headrace.backends.fake import Gate, Script
from headrace.clock import MILLISECOND, SECOND
from headrace.errors import CannotListen
from headrace.ledger.records import Outcome
from headrace.protocol.validate import bucket_of
from headrace.scheduling.admission import Estimate, Limits, Line
from headrace.transport.control import Control
from headrace.transport.rest import RestTransport
from tests.rest.conftest import Serve
from tests.rest.resting import LENGTH, Reply, Rest
from tests.transport.serving import ECHO, PATIENCE
from tests.waiting import until

CLOSING = "HTTP server is shutting down and has stopped accepting new requests."


def policy(text: str) -> str:
    return ECHO.replace("dynamic_batching {}", f"dynamic_batching {{ default_queue_policy {{ {text} }} }}")


def body(value: int, **parameters: object) -> str:
    given = {"name": "x", "datatype": "INT32", "shape": [1, 1], "data": [value]}
    return json.dumps({"inputs": [given], "parameters": parameters})


def request(content: str, *headers: str) -> bytes:
    lines = ["POST /v2/models/m/infer HTTP/1.1", "Host: x", f"Content-Length: {len(content)}", *headers, "", content]
    return "\r\n".join(lines).encode()


@pytest.fixture
def open_sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(rest: Rest, stack: ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_connection(rest.place, timeout=PATIENCE))


def answer_of(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of what comes until the server hangs up."""
    received = b""
    while more := connection.recv(1 << 16):
        received += more
    head, _, content = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), content


@dataclass
class Held:
    """A server whose one instance stands at the gate with a first request."""

    rest: Rest
    script: Script
    gate: Gate
    threads: ThreadPoolExecutor

    def __post_init__(self) -> None:
        self.first = self.threads.submit(self.rest.infer, "m", body(0))
        self.gate.wait_for(1)

    def waiting(self) -> int:
        return self.rest.grpc.waiting("m")

    def let_go(self) -> Reply:
        """Open the gate, and wait until everything is settled."""
        self.gate.open()
        reply = self.first.result(PATIENCE)
        self.rest.grpc.wait_settled("m")
        return reply

    def ends(self) -> dict[str, int]:
        return {outcome.name: count for outcome, count in self.rest.grpc.ledger("m").items() if count}


@pytest.fixture
def hold(serve: Serve) -> Iterator[object]:
    with ThreadPoolExecutor(8) as threads:
        gates: list[Gate] = []

        def start(config: str = ECHO) -> Held:
            script = Script()
            rest = serve({"m": (config, script)})
            script.gate = Gate()
            gates.append(script.gate)
            return Held(rest, script, script.gate, threads)

        yield start
        for gate in gates:
            gate.open()


def test_a_client_that_hangs_up_leaves_the_queue(hold, open_sockets: ExitStack) -> None:
    held = hold()
    gone = connect(held.rest, open_sockets)
    gone.sendall(request(body(1)))
    until(lambda: held.waiting() == 1)
    gone.close()
    until(lambda: held.waiting() == 0)
    assert held.let_go().json["outputs"][0]["data"] == [0]
    assert held.script.batches == [1]
    assert held.ends() == {"ANSWERED": 1, "CANCELLED": 1}


def test_the_timeout_parameter_is_a_deadline(hold) -> None:
    held = hold()
    told = "the deadline passed before model 'm' could answer"
    assert held.rest.infer("m", body(1, timeout=50_000)).error == (504, told)
    held.let_go()
    assert held.ends() == {"ANSWERED": 1, "EXPIRED": 1}


def test_the_queue_policy_of_the_model(hold) -> None:
    held = hold(policy("default_timeout_microseconds: 50000"))
    assert held.rest.infer("m", body(1)).error == (503, "Request timeout expired")
    held.let_go()
    assert held.ends() == {"ANSWERED": 1, "EXPIRED": 1}


def test_a_full_queue(hold) -> None:
    held = hold(policy("max_queue_size: 1"))
    waits = held.threads.submit(held.rest.infer, "m", body(1))
    until(lambda: held.waiting() == 1)
    refused = held.rest.infer("m", body(2))
    assert refused.error == (503, "[request id: <id_unknown>] Exceeds maximum queue size")
    assert "retry-after" not in refused.headers, "nobody knows when there will be room"
    held.let_go()
    assert waits.result(PATIENCE).status == 200
    assert held.ends() == {"ANSWERED": 2, "REFUSED": 1}


@pytest.mark.parametrize("lasts_ms", [1_010, 3_500])
def test_who_cannot_be_served_in_time_is_told_when_to_come_back(hold, lasts_ms: int) -> None:
    held = hold()
    waits = held.threads.submit(held.rest.infer, "m", body(1))
    until(lambda: held.waiting() == 1)
    estimate = Estimate({bucket_of(((1,),)): Line(lasts_ms * MILLISECOND, 0, 8)})
    held.rest.grpc.engine.routes.resolve("m").queue.set_limits(Limits(estimate=estimate))
    refused = held.rest.infer("m", body(2, timeout=1_000_000))
    status, told = refused.error
    assert status == 429
    late = re.match("the request would finish about ([0-9.]+) ms after its deadline; ", told)
    assert late is not None, told
    assert float(late[1]) >= lasts_ms - 1_000
    assert refused.headers["retry-after"] == str(math.ceil(float(late[1]) / 1_000))
    held.let_go()
    answered = waits.result(PATIENCE)
    assert (answered.status, "retry-after" in answered.headers) == (200, False)
    assert held.ends() == {"ANSWERED": 2, "REFUSED": 1}


def test_both_ways_share_batches(hold) -> None:
    held = hold()
    waits = [held.threads.submit(held.rest.infer, "m", body(value)) for value in (1, 2)]
    until(lambda: held.waiting() == 2)
    held.let_go()
    assert [one.result(PATIENCE).json["outputs"][0]["data"] for one in waits] == [[1], [2]]
    assert held.script.batches == [1, 2]


def test_stopping(hold) -> None:
    """What is asked after `stop_accepting` is refused, what was asked before is answered."""
    held = hold()
    held.rest.transport.stop_accepting()
    assert held.rest.infer("m", body(1)).error == (503, CLOSING)
    assert held.rest.ask("GET", "/v2/health/live").status == 200
    assert held.let_go().status == 200
    assert held.ends() == {"ANSWERED": 1}
    assert held.rest.grpc.engine.statistics.versions[0].outcomes[Outcome.REFUSED] == 1


def test_closing_waits_for_what_runs(hold) -> None:
    held = hold()
    closing = held.threads.submit(held.rest.transport.close, held.rest.grpc.engine.clock.now() + int(PATIENCE * SECOND))
    until(lambda: refuses(held.rest))
    assert held.let_go().json["outputs"][0]["data"] == [0]
    closing.result(PATIENCE)


def test_closing_ends_what_takes_too_long(hold) -> None:
    held = hold()
    late = held.threads.submit(held.rest.infer, "m", body(1))
    until(lambda: held.waiting() == 1)
    held.rest.transport.close(held.rest.grpc.engine.clock.now())
    assert held.waiting() == 0
    for call in (held.first, late):
        assert call.result(PATIENCE).error == (503, CLOSING)
    held.gate.open()
    held.rest.grpc.wait_settled("m")
    assert held.ends() == {"CANCELLED": 2}


def refuses(rest: Rest) -> bool:
    try:
        socket.create_connection(rest.place, timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


BAD = {
    "nothing": b"",
    "half a line": b"POST /v2/mo",
    "half the headers": request(body(1))[:40],
    "a body cut short": request(body(1))[:-9],
    "a chunk cut short": b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
    "binary data cut short": request(body(1) + "1234", f"{LENGTH}: {len(body(1))}")[:-2],
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "noise": bytes(range(256)) * 40,
    "a body longer than it says": request(body(1)) + b"\0\1\2 surplus\r\n\r\n",
    "a websocket": b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("end", ["open", "half closed", "closed"])
@pytest.mark.parametrize("what", BAD)
def test_a_bad_connection(rest: Rest, open_sockets: ExitStack, what: str, end: str) -> None:
    bad = connect(rest, open_sockets)
    bad.sendall(BAD[what])
    if end == "closed":
        bad.close()
    elif end == "half closed":
        bad.shutdown(socket.SHUT_WR)
    assert rest.is_well()
    assert rest.grpc.waiting("m") == 0


@pytest.mark.parametrize(
    ("sent", "status", "told"),
    [
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (1 << 17), 431, "headers must not be longer than 65536 bytes"),
        (b"GET /" + b"x" * (1 << 17), 431, "headers must not be longer than 65536 bytes"),
        (b"nonsense\r\n\r\n", 400, "illegal request line"),
        (request("{}", "Content-Length: 3"), 400, "conflicting Content-Length headers"),
        (request("{}").replace(b"th: 2", b"th: -2"), 400, "bad Content-Length"),
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400, "Missing mandatory Host: header"),
    ],
)
def test_what_is_not_http(rest: Rest, open_sockets: ExitStack, sent: bytes, status: int, told: str) -> None:
    bad = connect(rest, open_sockets)
    bad.sendall(sent)
    got, content = answer_of(bad)
    assert (got, json.loads(content)) == (status, {"error": f"this is not a valid HTTP request: {told}"})
    assert rest.is_well()


def test_a_chunked_body(rest: Rest, open_sockets: ExitStack) -> None:
    bad = connect(rest, open_sockets)
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    bad.sendall(head + b"5\r\n     \r\n" + b"8000\r\n" + b" " * 0x8000 + b"\r\n" + b"0\r\n\r\n")
    assert answer_of(bad)[0] == 400
    too_long = connect(rest, open_sockets)
    too_long.sendall(head + (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 4 + b"0\r\n\r\n")
    status, content = answer_of(too_long)
    assert status == 400
    assert b"exceeds the maximum allowed input size of 100000 bytes" in content
    assert rest.is_well()


def test_two_requests_on_one_connection_are_answered_in_order(serve: Serve, open_sockets: ExitStack) -> None:
    rest = serve({"m": (ECHO, Script())})
    both = connect(rest, open_sockets)
    both.sendall(request(body(1)) + request(body(2), "Connection: close"))
    _, content = answer_of(both)
    assert content.index(b'"data":[1]') < content.index(b'"data":[2]')


def test_an_address_that_is_taken(rest: Rest) -> None:
    for address in (rest.transport.address, "127.0.0.1:99999", "127.0.0.1:x", "nothing"):
        other = RestTransport(address)
        with pytest.raises(CannotListen, match=f"cannot listen on {address}: "):
            other.start(rest.grpc.engine.routes, Control(rest.grpc.engine))
        other.close(0)


def test_closing_what_was_never_started() -> None:
    RestTransport("127.0.0.1:0").close(0)
