"""GET /metrics over real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection

import pytest

from headrace.errors import CannotListen
from headrace.transport.metrics import MetricsEndpoint
from tests.transport.serving import PATIENCE
from tests.waiting import until


class Page:
    """What is rendered."""

    def __init__(self) -> None:
        self.is_broken = False
        self.accepted: list[str] = []

    def render(self, accept: str) -> tuple[bytes, str]:
        self.accepted.append(accept)
        if self.is_broken:
            raise RuntimeError("no page")
        return b"up 1\n", "text/example"


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def endpoint(page: Page) -> Iterator[MetricsEndpoint]:
    started = MetricsEndpoint("127.0.0.1:0", page.render)
    started.start()
    yield started
    started.close()


def get(address: str, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str, bytes]:
    connection = HTTPConnection(address, timeout=PATIENCE)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read()
    finally:
        connection.close()


def test_the_page_in_the_format_that_was_asked_for(endpoint: MetricsEndpoint, page: Page) -> None:
    assert get(endpoint.address, Accept="application/openmetrics-text") == (200, "text/example", b"up 1\n")
    assert get(endpoint.address, "/metrics?name=x")[0] == 200
    assert page.accepted == ["application/openmetrics-text", ""]


def test_there_is_nothing_else(endpoint: MetricsEndpoint) -> None:
    for path in ("/", "/metric", "/metrics/", "/metrics/x", "/..//metrics"):
        assert get(endpoint.address, path)[0] == 404, path


def test_only_get(endpoint: MetricsEndpoint, page: Page) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD", "FROB"):
        connection = HTTPConnection(endpoint.address, timeout=PATIENCE)
        connection.request(method, "/metrics")
        response = connection.getresponse()
        assert (response.status, response.headers["Allow"]) == (405, "GET"), method
        connection.close()
    assert not page.accepted


def test_a_page_that_cannot_be_made_is_500_and_the_next_one_is_fine(endpoint: MetricsEndpoint, page: Page) -> None:
    page.is_broken = True
    status, _, body = get(endpoint.address)
    assert status == 500
    assert b"no page" not in body, "what broke is for the log"
    page.is_broken = False
    assert get(endpoint.address)[0] == 200


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET\r\n\r\n", b"GET /metrics HTTP/9.9\r\n\r\n", b""])
def test_garbage_disturbs_nobody(endpoint: MetricsEndpoint, junk: bytes) -> None:
    host, _, port = endpoint.address.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as stranger:
        stranger.sendall(junk)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(4096):
            pass
    assert get(endpoint.address)[0] == 200


def test_those_who_connect_and_say_nothing_cost_a_bounded_number_of_threads(endpoint: MetricsEndpoint) -> None:
    host, _, port = endpoint.address.rpartition(":")
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((host, int(port)), PATIENCE)) for _ in range(8)]
        one_more = stack.enter_context(socket.create_connection((host, int(port)), PATIENCE))
        assert one_more.recv(1) == b"", "hung up on"
        silent[0].close()
        until(lambda: _answers(endpoint.address))


def _answers(address: str) -> bool:
    try:
        return get(address)[0] == 200
    except (OSError, EOFError):
        return False


def test_a_busy_port_and_what_is_no_address(endpoint: MetricsEndpoint, page: Page) -> None:
    for address in (endpoint.address, "127.0.0.1:70000", "127.0.0.1:x", "203.0.113.1:0"):
        with pytest.raises(CannotListen, match="cannot listen on " + address.replace(".", r"\.")):
            MetricsEndpoint(address, page.render).start()


def test_only_the_given_host_is_bound(endpoint: MetricsEndpoint) -> None:
    port = int(endpoint.address.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), PATIENCE)


def test_a_closed_endpoint_gives_its_port_back(page: Page) -> None:
    first = MetricsEndpoint("127.0.0.1:0", page.render)
    first.start()
    assert get(first.address)[0] == 200
    first.close()
    first.close()
    second = MetricsEndpoint(first.address, page.render)
    second.start()
    assert get(second.address)[0] == 200
    second.close()
    MetricsEndpoint("127.0.0.1:0", page.render).close()
