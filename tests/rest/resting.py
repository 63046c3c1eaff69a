"""Servers with REST and gRPC on one engine, and what is needed to talk to them in plain HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import tritonclient.http as triton

from headrace.backends.base import Backend
from headrace.clock import SECOND
from headrace.transport.control import Control
from headrace.transport.rest import RestTransport
from tests.transport.serving import PATIENCE, Server, serving

LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """Status and message, if it is an error as all are: JSON with one member."""
        (told,) = self.json.items()
        assert told[0] == "error"
        assert self.headers["content-type"] == "application/json"
        return self.status, told[1]


@dataclass(frozen=True)
class Rest:
    """A server in this process: `grpc` is the other way into the same engine."""

    transport: RestTransport
    grpc: Server
    client: triton.InferenceServerClient

    @property
    def place(self) -> tuple[str, int]:
        host, port = self.transport.address.rsplit(":", 1)
        return host, int(port)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request on a connection of its own; what is not text or bytes is sent as JSON."""
        content = body if body is None or isinstance(body, (bytes, str)) else json.dumps(body)
        connection = HTTPConnection(*self.place, timeout=PATIENCE)
        try:
            connection.request(method, path, content, {name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def infer(self, model: str, body: Any, **headers: str) -> Reply:
        return self.ask("POST", f"/v2/models/{model}/infer", body, **headers)

    def is_well(self) -> bool:
        """Whether it answers a good request to model `m` rightly."""
        return self.infer("m", GOOD).json == {
            "model_name": "m",
            "model_version": "1",
            "outputs": [
                {"name": "y", "datatype": "INT32", "shape": [1, 3], "data": [1, 2, 3]},
                {"name": "t", "datatype": "BYTES", "shape": [1, 1], "data": ["hi"]},
            ],
        }


GOOD = {
    "inputs": [
        {"name": "a", "datatype": "INT32", "shape": [1, 3], "data": [1, 2, 3]},
        {"name": "s", "datatype": "BYTES", "shape": [1, 1], "data": ["hi"]},
    ]
}
"""A request to model `m` of `tests.transport.asking`."""


@contextmanager
def resting(
    beside: str, repository: Path, backends: Mapping[str, Backend] | None = None, size: int = 1 << 26, **options: Any
) -> Iterator[Rest]:
    """A server for `repository`, on the queues of the gRPC transport `beside`; `size` is the limit of REST.

    `options` are the engine's.
    """
    allow_client_shm = options.get("allow_client_shm", False)
    with serving(beside, repository, backends, **options) as server:
        transport = RestTransport("127.0.0.1:0", max_input_bytes=size)
        transport.start(server.engine.routes, Control(server.engine, allow_client_shm=allow_client_shm))
        try:
            with triton.InferenceServerClient(transport.address, network_timeout=PATIENCE) as client:
                yield Rest(transport, server, client)
        finally:
            transport.close(server.engine.clock.now() + SECOND)
