"""An OTLP receiver in a process of its own: whatever it is sent, it writes to a file, and `Received` reads that.

    python -m tests.telemetry.receiver FILE [--delay SECONDS] [--refuse] [--tls CERTIFICATE KEY]

Prints `grpc=HOST:PORT http=HOST:PORT`. With a delay it answers late, with `--refuse` it says no.
"""

from __future__ import annotations

import argparse
import gzip
import ssl
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

_LENGTH = struct.Struct("<II")


class Book:
    """The file: of each message, the bytes of headers and of itself, then these."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()

    def write(self, headers: dict[str, str], message: bytes) -> None:
        told = "\n".join(f"{name.lower()}: {value}" for name, value in headers.items()).encode()
        with self._lock:
            self._file.write(_LENGTH.pack(len(told), len(message)) + told + message)


def read_book(path: Path) -> list[tuple[dict[str, str], ExportTraceServiceRequest]]:
    """What has come so far, with its headers."""
    content, found, at = path.read_bytes() if path.exists() else b"", [], 0
    while len(content) >= at + _LENGTH.size:
        told, length = _LENGTH.unpack_from(content, at)
        at += _LENGTH.size
        if len(content) < at + told + length:
            break
        headers = dict(line.split(": ", 1) for line in content[at : at + told].decode().splitlines())
        found.append((headers, ExportTraceServiceRequest.FromString(content[at + told : at + told + length])))
        at += told + length
    return found


class Service(TraceServiceServicer):
    def __init__(self, book: Book, delay: float, refuses: bool) -> None:
        self._book, self._delay, self._refuses = book, delay, refuses

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        time.sleep(self._delay)
        if self._refuses:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        headers = {str(name): str(value) for name, value in context.invocation_metadata()}
        self._book.write(headers, request.SerializeToString())
        return ExportTraceServiceResponse()


def handler_of(book: Book, delay: float, refuses: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(delay)
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            is_fine = self.path == "/v1/traces" and not refuses
            if is_fine:
                book.write(dict(self.headers.items()), body)
            self.send_response(200 if is_fine else 400)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--refuse", action="store_true")
    parser.add_argument("--tls", type=Path, nargs=2)
    given = parser.parse_args()
    book = Book(given.file)
    server = grpc.server(ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(Service(book, given.delay, given.refuse), server)
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(book, given.delay, given.refuse))
    if given.tls is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        certificate, key = given.tls
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    server.start()
    print(f"grpc=127.0.0.1:{port} http=127.0.0.1:{http.server_port}", flush=True)
    http.serve_forever()


if __name__ == "__main__":
    main()
