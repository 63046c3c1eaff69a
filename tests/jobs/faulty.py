"""A loopback S3 server, and between it and who asks a proxy that loses, delays and cuts what it is told to.

The proxy understands Google's words for conditions and versions, too. That shows what a job does with them, and not that Google
Cloud Storage does as is assumed here.
"""

from __future__ import annotations

import http.client
import threading
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import quote, unquote

import obstore
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from headrace.jobs.stores.urls import split_url


class Asked(NamedTuple):
    """A request: its method, the name of the object below the bucket, and what it expects to find there."""

    method: str
    name: str
    condition: str


Fault = Callable[[Asked], str | None]
"""What is to go wrong with a request: one of KINDS, or nothing."""
KINDS = ("503 before", "503 after", "cut before", "cut after", "cut within", "slow")
"""Before or after it took effect; `within` is in the middle of the answer."""
_SLOW_SECONDS = 0.3
_SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


class FaultyS3:
    """S3 at `endpoint`, without faults at `direct`. `asked` has what was asked; `fault` decides what goes wrong."""

    def __init__(self) -> None:
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        host, port = self._moto.get_host_and_port()
        self.direct = f"http://{host}:{port}"
        self.asked: list[Asked] = []
        self.etags: dict[str, str] = {}
        self.fault: Fault = lambda asked: None
        owner = self

        class Handler(_Handler):
            server_of, address = owner, (host, port)

        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._proxy.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stop()

    def bucket(self, name: str) -> str:
        """A new bucket, and nothing goes wrong any more."""
        self.fault = lambda asked: None
        urllib.request.urlopen(urllib.request.Request(f"{self.direct}/{name}", method="PUT")).close()
        self.asked.clear()
        return f"s3://{name}"

    def put(self, url: str, content: bytes) -> None:
        """Write an object, past the proxy, whatever is there."""
        bucket, name = split_url(url)
        obstore.put(S3Store(bucket[5:], endpoint=self.direct, client_options={"allow_http": True}), name, content)

    def check_credentials(self, is_on: bool) -> None:
        """Let in only whom it knows, which is nobody; or everybody, as it does at first."""
        count = b"0" if is_on else b"inf"
        urllib.request.urlopen(
            urllib.request.Request(
                f"{self.direct}/moto-api/reset-auth", method="POST", data=count, headers={"Content-Type": "text/plain"}
            )
        ).close()

    def opened(self) -> set[str]:
        """Names of the objects of which something was read."""
        return {asked.name for asked in self.asked if asked.method == "GET" and asked.name}


class _Handler(BaseHTTPRequestHandler):
    server_of: FaultyS3
    address: tuple[str, int]
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path, sign, query = self.path.partition("?")
        path = unquote(path).strip("/")
        generation = self.headers.get("x-goog-if-generation-match")
        condition = self.headers.get("if-match") or self.headers.get("if-none-match") or generation or ""
        asked = Asked(self.command, path.partition("/")[2], condition)
        kind = self.server_of.fault(asked)
        self.server_of.asked.append(asked)
        if kind == "slow":
            threading.Event().wait(_SLOW_SECONDS)
        if kind == "cut before":
            self.close_connection = True
            return
        if kind == "503 before":
            self._answer(503, [], b"")
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        if generation is not None:  # Google's words for the same
            headers["if-none-match" if generation == "0" else "if-match"] = self.server_of.etags.get(generation, "*")
        if headers.get("authorization", "Bearer").startswith("Bearer"):
            headers["authorization"] = _SIGNED
        connection = http.client.HTTPConnection(*self.address)
        connection.request(self.command, f"/{quote(path)}{sign}{query}", body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if kind == "cut after":
            self.close_connection = True
        elif kind == "503 after":
            self._answer(503, [], b"")
        else:
            if kind == "cut within":
                self.close_connection = True
            given = answer.getheaders()
            if (etag := answer.getheader("etag")) is not None:
                number = str(int(etag.strip('"')[:12], 16))
                self.server_of.etags[number] = etag
                given.append(("x-goog-generation", number))
            self._answer(answer.status, given, content, cut=kind == "cut within")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", str(len(content)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, format: str, *args: object) -> None:
        pass
