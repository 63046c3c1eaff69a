"""Real servers for the tests of the ways in, and what is needed to talk to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from headrace import kernels
from headrace.backends.base import Backend
from headrace.backends.fake import FakeBackend, Script
from headrace.clock import SECOND
from headrace.engine.engine import Engine
from headrace.ledger.records import Outcome
from headrace.transport.base import Transport
from headrace.transport.control import Control
from headrace.transport.ways import open_transport
from tests.build_models import add_model
from tests.settling import wait_settled

TRANSPORTS = ("portable", "native") if kernels.are_installed() else ("portable",)
"""Every test of this directory runs over each of them; `make test` says so where the native one is missing."""

SERVICE = "/inference.GRPCInferenceService/"
PATIENCE = 20.0
"""Seconds until a test gives up; nothing takes that long."""

ECHO = """
backend: "fake"
max_batch_size: 8
input { name: "x" data_type: TYPE_INT32 dims: -1 }
output { name: "y" data_type: TYPE_INT32 dims: -1 }
dynamic_batching {}
"""
"""y is x, in any width."""


@dataclass(frozen=True)
class Server:
    """A server in this process."""

    engine: Engine
    transport: Transport
    channel: grpc.Channel
    client: triton.InferenceServerClient

    @property
    def address(self) -> str:
        return self.transport.address

    @property
    def stub(self) -> service_pb2_grpc.GRPCInferenceServiceStub:
        return service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def call(self, method: str, payload: bytes, timeout: float = PATIENCE) -> bytes:
        """One unary call, bytes to bytes; `method` may leave the service out."""
        path = method if method.startswith("/") else SERVICE + method
        return self.channel.unary_unary(path)(payload, timeout=timeout)

    def ledger(self, model: str) -> dict[Outcome, int]:
        """How the requests for a model ended, all versions together; call it when nothing is on its way."""
        self.engine.ledger.drain()
        counts = dict.fromkeys(Outcome, 0)
        for number, totals in self.engine.statistics.versions.items():
            if self.engine.ledger.model(number)[0] == model:
                for outcome, count in totals.outcomes.items():
                    counts[outcome] += count
        return counts

    def waiting(self, model: str) -> int:
        """How many requests for a model are queued."""
        return self.engine.routes.resolve(model).queue.depth().requests

    def wait_settled(self, model: str) -> None:
        """See `tests.settling`."""
        wait_settled(self.engine, model)


@contextmanager
def serving(
    transport: str,
    repository: Path,
    backends: Mapping[str, Backend] | None = None,
    *,
    allow_client_shm: bool = False,
    transport_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[Server]:
    """A server for `repository`; `options` are the engine's."""
    way_in = open_transport(transport, "127.0.0.1:0", **(transport_options or {}))
    engine = Engine(repository, backends=backends, queues=way_in.queues, **options)
    way_in.start(engine.routes, Control(engine, allow_client_shm=allow_client_shm))
    try:
        engine.start()
        with grpc.insecure_channel(way_in.address) as channel, triton.InferenceServerClient(way_in.address) as client:
            yield Server(engine, way_in, channel, client)
    finally:
        now = engine.clock.now()
        way_in.close(now + SECOND)
        engine.close(now + SECOND)


Serve = Callable[..., Server]
"""`serve({name: (config, script)}, **options)`: see the fixture."""


def fill(repository: Path, models: Mapping[str, tuple[str, Script]]) -> FakeBackend:
    """Write fake models into a repository; the backend that runs their scripts."""
    for name, (config, _) in models.items():
        add_model(repository, name, None, config)
    return FakeBackend({name: script for name, (_, script) in models.items()})


def tensor(name: str, values: Any, datatype: str = "INT32") -> triton.InferInput:
    """An input for tritonclient."""
    kinds: dict[str, Any] = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "BYTES": np.object_}
    array = np.asarray(values, kinds[datatype])
    given = triton.InferInput(name, list(array.shape), datatype)
    return given.set_data_from_numpy(array)


def message(
    model: str, inputs: Sequence[tuple[str, str, Sequence[int]]], raw: Sequence[bytes] = (), **fields: Any
) -> pb.ModelInferRequest:
    """A request as it goes over the wire: inputs are (name, datatype, shape), `raw` their contents."""
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=raw, **fields)
    for name, datatype, shape in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


@contextmanager
def fails(code: grpc.StatusCode, text: str) -> Iterator[None]:
    """The call inside ends with exactly this code and message, whether it is raised by grpc or by tritonclient."""
    with pytest.raises((grpc.RpcError, InferenceServerException)) as caught:
        yield
    error: Any = caught.value
    if isinstance(error, InferenceServerException):
        assert (error.status(), error.message()) == (str(code), text)
    else:
        assert (error.code(), error.details()) == (code, text)


class Asked:
    """tritonclient's asynchronous call, as something to wait for."""

    def __init__(self, server: Server, model: str, inputs: Sequence[triton.InferInput], **options: Any) -> None:
        self._done: Future[triton.InferResult] = Future()
        self.call = server.client.async_infer(model, list(inputs), self._finish, **options)

    def _finish(self, result: Any, error: Any) -> None:
        if error is not None:
            self._done.set_exception(error)
        else:
            self._done.set_result(result)

    def result(self) -> triton.InferResult:
        return self._done.result(PATIENCE)
