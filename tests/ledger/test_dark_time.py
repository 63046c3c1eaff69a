"""No time is dark: the client's own clock is the judge. A delay between two stamps is in their stage, in no other, and in one."""

from __future__ import annotations

import importlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from headrace import kernels
from headrace.clock import MILLISECOND
from headrace.engine import instance
from headrace.ledger.records import STAGES, RequestRecord
from headrace.scheduling import batch
from headrace.transport import portable, rest, streams, unary
from tests.ledger.reading import Reader, reading
from tests.rest.resting import Rest, resting
from tests.transport.serving import PATIENCE, TRANSPORTS, message
from tests.transport.streaming import Raw
from tests.waiting import until

DELAY = 400 * MILLISECOND
LITTLE = DELAY // 2
"""Of what is not delayed, on a machine that has other things to do."""

NODE = """
import time

from headrace.node import Rows


class Model:
    inputs = {"x": "FP32[1]"}
    outputs = {"y": "FP32[1]"}

    def load(self, context):
        pass

    def run(self, tensors):
        time.sleep(float(tensors["x"].max()))
        return {"y": tensors["x"]}


class Border(Model):
    rows = "ragged"

    def run(self, tensors):
        return Rows({"y": list(tensors["x"])})
"""
TRITON = """
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        time.sleep(float(inputs[0].max()))
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in inputs]
"""
CONFIG = """
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
backend: "python"
instance_group { count: 1 kind: KIND_CPU }
parameters { key: "isolation" value { string_value: "%s" } }
"""
GRAPH = """
max_batch_size: 4
inputs: {x: "FP32[1]"}
outputs: {y: "FP32[1]"}
nodes:
  before: {run: "model.py:Model", inputs: {x: x}, outputs: {y: a}}
  border: {run: "model.py:Border", inputs: {x: a}, outputs: {y: b}}
  behind: {run: "model.py:Model", inputs: {x: b}, outputs: {y: y}, isolation: process}
"""


MODELS = ("thread", "process", "triton", "graph")


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def server(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    root = tmp_path_factory.mktemp("models")
    for name, text, isolation in (("thread", NODE, "thread"), ("process", NODE, "process"), ("triton", TRITON, "process")):
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.py").write_text(text)
        (root / name / "config.pbtxt").write_text(CONFIG % isolation)
    (root / "graph").mkdir()
    (root / "graph" / "model.py").write_text(NODE)
    (root / "graph" / "graph.yaml").write_text(GRAPH)
    with resting(transport, root) as started:
        for model in MODELS:  # what is done once is done
            for way in WAYS.values():
                way(started, model, 0.0)
        yield started


@pytest.fixture(scope="module")
def ledger(server: Rest) -> Iterator[Reader]:
    with reading(server.grpc.engine) as reader:
        yield reader


def by_unary(server: Rest, model: str, value: float) -> None:
    server.grpc.stub.ModelInfer(asking(model, value), timeout=PATIENCE)


def by_stream(server: Rest, model: str, value: float) -> None:
    with Raw(server.grpc) as raw:
        raw.ask(asking(model, value))
        assert not raw.next().error


def by_rest(server: Rest, model: str, value: float) -> None:
    assert server.infer(model, content_of(value)).status == 200


def content_of(value: float) -> str:
    return json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}]})


WAYS: dict[str, Callable[[Rest, str, float], None]] = {"unary": by_unary, "stream": by_stream, "rest": by_rest}


ASKED = [
    ("unary", "thread"), ("stream", "thread"), ("rest", "thread"), ("unary", "process"), ("stream", "triton"), ("unary", "graph"),
    ("rest", "graph"),
]  # fmt: skip


def asking(model: str, value: float) -> Any:
    return message(model, (("x", "FP32", (1, 1)),), (np.float32(value).tobytes(),))


def delay(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, holds: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Once, what is called `where.name` takes longer."""
    function, left = getattr(where, name), [1]

    def slow(*arguments: Any, **keywords: Any) -> Any:
        if left and holds(*arguments, **keywords):
            left.clear()
            time.sleep(DELAY / 1e9)
        return function(*arguments, **keywords)

    monkeypatch.setattr(where, name, slow)


def inject(monkeypatch: pytest.MonkeyPatch, stage: str, transport: str, way: str, model: str) -> None:
    """A delay in a stage; that of `execute` is the model's own."""

    def is_asked_for(request: Any, *_: Any, **__: Any) -> bool:
        return request.model == model  # and is not what a graph has sent on

    native_points = {"receive": "decode", "queue": "take", "gather": "gather", "scatter": "scatter", "send": "io"}
    is_native, is_rest = transport == "native", way == "rest"
    if stage == "execute":
        return
    if is_native and (not is_rest or stage in ("queue", "gather")):
        inject_there = kernels.load().inject
        assert inject_there is not None, "this build cannot inject faults: make test builds one that can"
        inject_there(native_points[stage], 1, DELAY)
        return
    match stage:
        case "receive":
            delay(monkeypatch, rest if is_rest else portable, "decode_inference" if is_rest else "decode_request")
        case "queue":
            delay(monkeypatch, instance, "plan")
        case "gather":
            delay(monkeypatch, batch, "concatenate")
        case "scatter":
            where = importlib.import_module("headrace.scheduling.native") if is_native else batch
            delay(monkeypatch, where, "response_of", is_asked_for)
        case _:
            where, name = {
                "unary": (unary, "encode_response"),
                "stream": (streams, "encode_stream_response"),
                "rest": (rest, "encode_inference"),
            }[way]
            delay(monkeypatch, where, name)


def record_of(ledger: Reader, model: str) -> RequestRecord:
    """The record of the one request for a model."""
    found: list[RequestRecord] = []

    def look() -> bool:
        found.extend(record for name, record in ledger.take() if name == model)
        return bool(found)

    until(look)
    (record,) = found
    return record


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("way", "model"), ASKED)
def test_a_delay_is_in_its_stage_and_in_no_other(
    server: Rest, ledger: Reader, transport: str, way: str, model: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.grpc.wait_settled(model)
    ledger.take()
    inject(monkeypatch, stage, transport, way, model)
    begun = time.monotonic_ns()
    WAYS[way](server, model, DELAY / 1e9 if stage == "execute" else 0.0)
    ended = time.monotonic_ns()
    record = record_of(ledger, model)
    took = {name: getattr(record, end) - getattr(record, begin) for name, (begin, end) in STAGES.items()}
    most = 2 * DELAY if stage == "execute" and model == "graph" else DELAY  # of which two nodes sleep
    assert min(took.values()) >= 0
    assert sum(took.values()) == record.sent - record.received
    assert begun <= record.received
    # Of a stream of grpc.aio an answer is sent when that has taken it, which the client may see before we do.
    assert record.sent <= ended + (LITTLE if (way, transport) == ("stream", "portable") else 0)
    assert most <= took.pop(stage) < most + LITTLE
    assert max(took.values()) < LITTLE, f"{took}, while {stage} is delayed"
    assert ended - begun - (record.sent - record.received) < LITTLE, "what the client has waited for, and nobody has told"


def test_stages_add_up_to_what_clients_wait_for(server: Rest, ledger: Reader) -> None:
    """Within a hundredth, of requests that take long: of each model, most of them because another one is in front.

    A client may be kept from seeing its answer by what else the machine does: then it is asked again.
    """
    assert any(dark_part(server, ledger) < 0.01 for _ in range(5))


def dark_part(server: Rest, ledger: Reader) -> float:
    """The most that is in no stage, as a part of what the client has waited for."""
    long = 15 * DELAY
    for model in MODELS:
        server.grpc.wait_settled(model)
    ledger.take()
    waited: dict[str, list[int]] = {model: [] for model in MODELS}
    asked = list[Future[None]]()

    def ask(model: str, way: str, value: float) -> None:
        begun = time.monotonic_ns()
        WAYS[way](server, model, value)
        waited[model].append(time.monotonic_ns() - begun)

    with ThreadPoolExecutor(len(MODELS) * len(WAYS)) as clients:
        for model in MODELS:
            sleeps = 2 if model == "graph" else 1
            asked += [clients.submit(ask, model, way, long / sleeps / 1e9 if way == "unary" else 0.0) for way in WAYS]
        for each in asked:
            each.result(PATIENCE)
    for model in MODELS:
        server.grpc.wait_settled(model)
    told: dict[str, list[int]] = {model: [] for model in MODELS}
    for model, record in ledger.take():
        if model in told:  # what a graph sends on is of its segments
            told[model].append(sum(getattr(record, end) - getattr(record, begin) for begin, end in STAGES.values()))
    pairs = [pair for model in MODELS for pair in zip(sorted(told[model]), sorted(waited[model]), strict=True)]
    assert all(stages <= wall + LITTLE for stages, wall in pairs)
    return max((wall - stages) / wall for stages, wall in pairs if wall > long / 2)  # who came before it does not wait


def test_a_request_over_rest_begins_with_its_first_bytes(server: Rest, ledger: Reader, transport: str) -> None:
    """Also where the connection was used before."""
    head, content = "POST /v2/models/thread/infer HTTP/1.1\r\nHost: x\r\n", content_of(0.0)
    with socket.create_connection(server.place, PATIENCE) as connection:
        for _ in range(2):
            server.grpc.wait_settled("thread")
            ledger.take()
            begun = time.monotonic_ns()
            connection.sendall(head.encode())
            time.sleep(DELAY / 1e9)
            connection.sendall(f"Content-Length: {len(content)}\r\n\r\n{content}".encode())
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
            record = record_of(ledger, "thread")
            assert begun <= record.received < begun + LITTLE
            assert record.queued - record.received > LITTLE


def test_a_message_of_a_stream_begins_with_its_first_bytes(server: Rest, ledger: Reader, transport: str) -> None:
    """The native transport sees it come; grpc.aio hands over what is complete."""
    payload = asking("thread", 0.0).SerializeToString()
    message = struct.pack(">BI", 0, len(payload)) + payload
    server.grpc.wait_settled("thread")
    ledger.take()
    host, port = server.grpc.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        begun = time.monotonic_ns()
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, b"") + frame(1, 4, HEAD) + frame(0, 0, message[:9]))
        time.sleep(DELAY / 1e9)
        connection.sendall(frame(0, 0, message[9:]))
        record = record_of(ledger, "thread")
    assert begun <= record.received
    assert (record.queued - record.received > LITTLE) == (transport == "native")


def frame(kind: int, flags: int, payload: bytes) -> bytes:
    """One of HTTP/2: DATA is 0, HEADERS 1, SETTINGS 4, which is of the connection."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, 0 if kind == 4 else 1) + payload


HEAD = b"".join(
    b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    for name, value in {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/inference.GRPCInferenceService/ModelStreamInfer",
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
    }.items()
)
"""Headers as HPACK has them that remembers nothing."""
