"""`GET /metrics` for Prometheus, and nothing else, at an address of its own.

A scrape runs in a thread of its own and never touches the event loops of the transports.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from headrace.errors import CannotListen

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

_MOST_CALLS = 8
_PATIENCE_SECONDS = 10.0


class MetricsEndpoint:
    """Answers scrapes.

    Args:
        address: `HOST:PORT`; only this host's interface is bound, and port 0 picks a free one.
        render: from an `Accept` header to the page and its content type.
    """

    def __init__(self, address: str, render: Callable[[str], tuple[bytes, str]]) -> None:
        self.address = address
        self._render = render
        self._server: _Server | None = None

    def start(self) -> None:
        """Listen. `address` has the port from now on.

        Raises:
            CannotListen: the address cannot be had.
        """
        host, _, port = self.address.rpartition(":")
        try:
            family, _, _, _, where = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)[0]
            self._server = _Server(family, (where[0], int(port), *where[2:]))
        except (OSError, ValueError, OverflowError) as error:
            raise CannotListen(self.address, getattr(error, "strerror", None) or str(error)) from None
        self._server.set_app(self._answer)
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="headrace-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening. Scrapes that run are left to their threads."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None

    def _answer(self, environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environment["PATH_INFO"] != "/metrics":
            return _say(start, "404 Not Found", b"there is only /metrics here\n")
        if environment["REQUEST_METHOD"] != "GET":
            return _say(start, "405 Method Not Allowed", b"only GET\n", ("Allow", "GET"))
        try:
            page, content_type = self._render(environment.get("HTTP_ACCEPT", ""))
        except Exception:
            log.exception("metrics could not be rendered; this is a bug in Headrace")
            return _say(start, "500 Internal Server Error", b"the metrics could not be rendered; the log says why\n")
        start("200 OK", [("Content-Type", content_type), ("Content-Length", str(len(page)))])
        return [page]


def _say(start: StartResponse, status: str, sentence: bytes, *headers: tuple[str, str]) -> Iterable[bytes]:
    plain = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(sentence)))]
    start(status, [*plain, *headers])
    return [sentence]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 2 * _MOST_CALLS

    def __init__(self, family: int, where: Any) -> None:
        self.address_family = family
        self._places = threading.BoundedSemaphore(_MOST_CALLS)
        super().__init__(where, _Call)

    def server_bind(self) -> None:
        # The inherited one asks the DNS for our own name, which can take long where there is none.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A call that finds all places taken is hung up on: slow readers must not cost threads without end."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a scrape broke off", exc_info=True)


class _Call(WSGIRequestHandler):
    timeout = _PATIENCE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
