"""Traces go on: what a model's own code traces, and what it asks of others, names the execution that our spans are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.ledger.identity import Identity, Part
from headrace.ledger.records import RequestRecord
from headrace.protocol.origin import leader_of, origin_of
from headrace.request import Request
from tests.ledger.reading import Reader, reading
from tests.ledger.servers import served
from tests.transport.serving import TRANSPORTS, Asked, Server, serving, tensor
from tests.waiting import until

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"
OTHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
IDENTITY = Identity("a server")

TRACER = """
import json, os, time

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult


class Lines(SpanExporter):
    def export(self, spans):
        with open({lines!r}, "a") as file:
            for span in spans:
                parent = span.parent and f"{{span.parent.span_id:016x}}"
                told = {{"name": span.name, "pid": os.getpid(), "trace": f"{{span.context.trace_id:032x}}", "parent": parent}}
                file.write(json.dumps(told) + "\\n")
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Lines()))
tracer = provider.get_tracer("of a model")
"""
NODE = """
from headrace.node import Rows


class Model:
    inputs = {"x": "FP32[1]"}
    outputs = {"y": "FP32[1]"}

    def load(self, context):
        self.name = context.name

    def run(self, tensors):
        with tracer.start_as_current_span(self.name):
            return {"y": tensors["x"]}


class Border(Model):
    rows = "ragged"

    def run(self, tensors):
        return Rows({"y": list(super().run(tensors)["y"])})
"""
TRITON = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        with tracer.start_as_current_span("triton"):
            for request in requests:
                x = pb_utils.get_input_tensor_by_name(request, "x")
                while x.as_numpy().min() < 0 and os.path.exists({gate!r}):
                    open({gate!r} + " met", "a").close()
                    time.sleep(0.01)
                asked = pb_utils.InferenceRequest(
                    model_name="thread", requested_output_names=["y"], inputs=[x],
                    **({{"trace": request.trace()}} if x.as_numpy().max() > 1 else {{}}),
                )
                answers.append(pb_utils.InferenceResponse(asked.exec().output_tensors()))
        return answers
"""
CONFIG = """
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
dynamic_batching {}
"""
ISOLATION = 'parameters { key: "isolation" value { string_value: "process" } }'
PYTHON = 'backend: "python"'
GRAPH = """
max_batch_size: 4
inputs: {x: "FP32[1]"}
outputs: {y: "FP32[1]"}
nodes:
  before: {run: "model.py:Model", inputs: {x: x}, outputs: {y: a}, isolation: process}
  border: {run: "model.py:Border", inputs: {x: a}, outputs: {y: b}}
  behind: {run: "model.py:Model", inputs: {x: b}, outputs: {y: y}}
"""


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


class House:
    """Models that trace, and the server that runs them."""

    def __init__(self, root: Path) -> None:
        self.root, self._lines, self.gate = root / "models", root / "lines", root / "gate"
        self._tracer = TRACER.format(lines=str(self._lines))
        self.server: Server
        self.ledger: Reader

    def add(self, name: str, text: str = NODE, more: str = "") -> None:
        (self.root / name / "1").mkdir(parents=True)
        (self.root / name / "1" / "model.py").write_text(self._tracer + text)
        (self.root / name / "config.pbtxt").write_text(CONFIG + more)

    def add_graph(self) -> None:
        (self.root / "graph").mkdir(parents=True)
        (self.root / "graph" / "model.py").write_text(self._tracer + NODE)
        (self.root / "graph" / "graph.yaml").write_text(GRAPH)

    def ask(self, model: str, value: float = 0.0, trace: str = SAMPLED) -> Asked:
        return Asked(self.server, model, [tensor("x", [[value]], "FP32")], headers={"traceparent": trace} if trace else None)

    def spans(self) -> dict[str, dict[str, Any]]:
        """What models have traced since the last time, by name."""
        told = [json.loads(line) for line in self._lines.read_text().splitlines()] if self._lines.exists() else []
        self._lines.unlink(missing_ok=True)
        return {span["name"]: span for span in told}

    def records(self, count: int) -> dict[str, list[RequestRecord]]:
        """The records of so many requests, by the names of their models."""
        found: dict[str, list[RequestRecord]] = {}

        def look() -> bool:
            for model, record in self.ledger.take():
                found.setdefault(model, []).append(record)
            return sum(map(len, found.values())) >= count

        until(look)
        return found


@pytest.fixture
def house(tmp_path: Path, transport: str) -> Iterator[House]:
    house = House(tmp_path)
    house.add("thread")
    house.add("process", more=ISOLATION)
    house.add("triton", TRITON.format(gate=str(house.gate)), PYTHON)
    house.add_graph()
    with serving(transport, house.root) as house.server, reading(house.server.engine) as house.ledger:
        house.server.engine.ledger.identity = IDENTITY
        house.spans()
        yield house


def execution(record: RequestRecord) -> str:
    return f"{IDENTITY.of(Part.EXECUTE, record.model, record.number):016x}"


def test_code_of_a_model_is_in_the_trace_of_its_request(house: House) -> None:
    for model in ("thread", "process"):
        house.ask(model).result()
        (record,) = house.records(1)[model]
        (span,) = house.spans().values()
        assert (span["trace"], span["parent"]) == (TRACE, execution(record)), model
        house.ask(model, trace=UNSAMPLED).result()
        assert house.spans() == {}, "nobody wants it"
        house.ask(model, trace="").result()
        (span,) = house.spans().values()
        assert (span["trace"] != TRACE, span["parent"]) == (True, None), "it is its own, as without a server"
        house.records(2)


def test_nodes_of_a_graph_are_in_the_trace_of_its_request(house: House) -> None:
    house.ask("graph").result()
    records = house.records(2)
    (whole,), (rows,) = records["graph"], records["graph#2"]
    assert (rows.parent, rows.parent_model, rows.span) == (whole.number, whole.model, int(execution(whole), 16))
    spans = house.spans()
    assert {span["trace"] for span in spans.values()} == {TRACE}
    parents = {name.removeprefix("graph/"): span["parent"] for name, span in spans.items()}
    assert parents == {"before": execution(whole), "border": execution(whole), "behind": execution(rows)}


def test_a_model_that_asks_another_is_its_parent(house: House) -> None:
    house.ask("triton").result()
    records = house.records(2)
    (asking,), (asked,) = records["triton"], records["thread"]
    assert (asked.parent, asked.parent_model, asked.span) == (asking.number, asking.model, int(execution(asking), 16))
    assert f"{asked.trace_high:016x}{asked.trace_low:016x}" == TRACE
    spans = house.spans()
    assert {span["trace"] for span in spans.values()} == {TRACE}
    assert (spans["triton"]["parent"], spans["thread"]["parent"]) == (execution(asking), execution(asked))
    house.ask("triton", trace="").result()
    records = house.records(2)
    (asking,), (asked,) = records["triton"], records["thread"]
    assert (asked.parent, asked.parent_model, asked.context) == (asking.number, asking.model, 0)


def test_a_batch_is_in_the_first_sampled_trace_and_a_call_in_that_of_its_request(house: House) -> None:
    house.gate.touch()
    first = house.ask("triton", -1.0, "")
    until(Path(f"{house.gate} met").exists)
    asked = [house.ask("triton", value, trace) for value, trace in ((0.0, ""), (1.0, UNSAMPLED), (1.0, SAMPLED), (2.0, OTHER))]
    until(lambda: house.server.waiting("triton") == 4)
    house.gate.unlink()
    for each in (first, *asked):
        each.result()
    records = house.records(10)
    batch = [record for record in sorted(records["triton"], key=lambda record: record.number) if record.batch == 2]
    assert len(batch) == 4, "together"
    assert house.spans()["triton"]["parent"] == execution(batch[2])
    # Of the calls, the last was made for the request whose trace it was given; the others are those of the whole batch.
    parents = [record.parent for record in sorted(records["thread"], key=lambda record: record.number)][1:]
    assert parents == [batch[2].number] * 3 + [batch[3].number]


@pytest.mark.parametrize(
    ("traces", "leader"),
    [([], None), (["", ""], None), (["nonsense", UNSAMPLED, OTHER, SAMPLED], 2), (["", UNSAMPLED, UNSAMPLED], 1), ([SAMPLED], 0)],
)
def test_who_leads_a_batch(traces: list[str], leader: int | None) -> None:
    requests = [Request("m", {}, origin=origin_of([("traceparent", trace)] if trace else [], 1)) for trace in traces]
    found = leader_of(requests)
    assert found is (None if leader is None else requests[leader])


@pytest.mark.timeout(120)
def test_a_server_names_its_own_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those make them who read its ledger: by its id, and by the numbers that are there."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # somebody wants them
    house = House(tmp_path)
    house.add("thread")
    with served(house.root) as server:
        server.client.infer("thread", [tensor("x", np.ones((1, 1)), "FP32")], headers={"traceparent": SAMPLED})
        spans: dict[str, dict[str, Any]] = {}
        until(lambda: bool(spans.update(house.spans()) or "thread" in spans), 30)
        me = server.neighbour
        (number,) = [number for number, (model, _, _) in me.learn().items() if model == "thread"]
        expected = Identity(me.id).of(Part.EXECUTE, number, 1)
        assert (spans["thread"]["trace"], spans["thread"]["parent"]) == (TRACE, f"{expected:016x}")
