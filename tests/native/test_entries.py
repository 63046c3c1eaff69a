"""How often native code enters Python: twice a batch at the most, and never for a request."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import headrace_kernels
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from headrace.backends.fake import Script
from headrace.tensor import DTYPES
from tests.transport.serving import ECHO, PATIENCE, Server, fill, message, serving
from tests.transport.streaming import Raw
from tests.waiting import until

REQUESTS = 10_000
AT_ONCE = 64
MODELS = {
    "INT32": ECHO,
    "FP16": ECHO.replace("INT32", "FP16"),
    "BYTES": ECHO.replace("INT32", "STRING"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    # A millisecond each, so that requests have company.
    fake = fill(repository, {name: (config, Script(execute_ns=1_000_000)) for name, config in MODELS.items()})
    with serving("native", repository, {"fake": fake}, allow_client_shm=True) as started:
        yield started


def raw(kind: str, data: bytes) -> pb.ModelInferRequest:
    return message(kind, (("x", kind, (1, 1)),), (data,))


def typed() -> pb.ModelInferRequest:
    request = message("INT32", (("x", "INT32", (1, 1)),))
    request.inputs[0].contents.int_contents.append(7)
    return request


def placed() -> pb.ModelInferRequest:
    request = message("INT32", (("x", "INT32", (1, 1)),))
    for tensor in (request.inputs[0], request.outputs.add(name="y")):
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_byte_size"].int64_param = 4
    request.outputs[0].parameters["shared_memory_offset"].int64_param = 4
    return request


KINDS: dict[str, Callable[[], pb.ModelInferRequest]] = {
    "raw": lambda: raw("INT32", b"\7\0\0\0"),
    "FP16": lambda: raw("FP16", np.ones(1, DTYPES["FP16"]).tobytes()),
    "BYTES": lambda: raw("BYTES", b"\2\0\0\0hi"),
    "typed": typed,
    "shared memory": placed,
}


def unary(server: Server, request: pb.ModelInferRequest) -> None:
    call = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    payload = request.SerializeToString()
    under_way: list[Any] = []
    for _ in range(REQUESTS):
        if len(under_way) == AT_ONCE:
            under_way.pop(0).result()
        under_way.append(call.future(payload, timeout=PATIENCE))
    for one in under_way:
        one.result()


def stream(server: Server) -> None:
    request = KINDS["raw"]()
    with Raw(server, timeout=None) as talk:
        talk.ask(*[request] * REQUESTS)
        assert len(talk.rest()) == REQUESTS


def rows_in_batches(server: Server) -> int:
    """Rows of all batches that are in the ledger; each request has one."""
    server.engine.ledger.drain()
    versions = server.engine.statistics.versions.values()
    return sum(rows * each.execute.count for totals in versions for rows, each in totals.batches.items())


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", [*KINDS, "stream"])
def test_python_is_entered_twice_a_batch(server: Server, kind: str, tmp_path: Path) -> None:
    segment = Path("/dev/shm") / f"headrace-test-{os.getpid()}-entries"
    segment.write_bytes(bytes(8))
    server.client.register_system_shared_memory("r", f"/{segment.name}", 8)
    try:
        engine = server.engine
        rows = rows_in_batches(server)
        batches, entries = engine.ledger.written[1], headrace_kernels.python_entries()
        if kind == "stream":
            stream(server)
        else:
            unary(server, KINDS[kind]())
        # The account of the last batch may come after those of its requests.
        until(lambda: rows_in_batches(server) == rows + REQUESTS)
        entries = headrace_kernels.python_entries() - entries
        batches = engine.ledger.written[1] - batches
    finally:
        server.client.unregister_system_shared_memory("r")
        segment.unlink()
    assert REQUESTS / batches >= 4, "there was no company"
    # The thread of the news comes once for thousands of records.
    news = REQUESTS // 8192 + 1
    assert entries <= 2 * batches + news
