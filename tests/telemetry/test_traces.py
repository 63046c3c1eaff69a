"""From a client's call to spans in another process, through both real exporters, and back to the ledger."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from headrace.ledger.report import read_report
from tests.ledger.servers import Gate, Served, counts, one, served
from tests.python.conftest import write_node
from tests.telemetry.exporting import ALL, GRPC, HTTP, QUICK, Books, attributes, receiving, seen, set_environment, whom
from tests.telemetry.test_openmetrics import exemplars_of
from tests.transport.serving import TRANSPORTS
from tests.waiting import until

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER = "inference.GRPCInferenceService/ModelInfer"
PLAIN = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: -1 }
output { name: "y" data_type: TYPE_FP32 dims: -1 }
"""
GRAPH = """
max_batch_size: 8
inputs: {NUMBER: "FP32[1]"}
outputs: {OUT: "FP32[-1,1]"}
nodes:
  split: {run: "nodes.py:Split", inputs: {number: NUMBER}, outputs: {part: part}}
  work: {model: work, inputs: {x: part}, outputs: {y: OUT}}
"""
NODES = """
import numpy as np
from headrace.node import Rows

class Split:
    inputs = {"number": "FP32[1]"}
    outputs = {"part": "FP32[1]"}
    rows = "many"
    def load(self, context):
        pass
    def run(self, tensors):
        counts = tensors["number"][:, 0].astype(int)
        return Rows({"part": np.concatenate([np.arange(c) for c in counts]).reshape(-1, 1).astype(np.float32)}, counts.tolist())
"""


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    gate.add_model(tmp_path / "models", rows=256, waiting=300)
    yield gate
    gate.end()


def traceparent(flags: str = "01", span: str = CALLER) -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{span}-{flags}"}


def add_graph(repository: Path) -> None:
    (repository / "work" / "1").mkdir(parents=True)
    write_node(repository / "work" / "1", "return {'y': x * 2}")
    (repository / "work" / "config.pbtxt").write_text(PLAIN)
    (repository / "count").mkdir()
    (repository / "count" / "graph.yaml").write_text(GRAPH)
    (repository / "count" / "nodes.py").write_text(NODES)


def ask_graph(server: Served, count: int, **options: Any) -> None:
    given = triton.InferInput("NUMBER", [1, 1], "FP32").set_data_from_numpy(np.full((1, 1), count, np.float32))
    assert server.client.infer("count", [given], **options).as_numpy("OUT").shape == (1, count, 1)


def ask_stream(server: Served) -> None:
    answers: list[object] = []
    server.client.start_stream(lambda result, error: answers.append(error))
    server.client.async_stream_infer("m", [one()])
    until(lambda: bool(answers), 30)
    server.client.stop_stream()
    assert answers == [None]


def do_everything(server: Served, gate: Gate) -> None:
    """Batches of one, of several, requests of which nothing came, a stream, REST, a graph."""
    server.infer(2)
    server.client.infer("m", [one()], headers=traceparent())
    server.client.infer("m", [one()], headers={"traceparent": f"00-{TRACE}-nonsense-01"})
    server.client.infer("m", [one()], timeout=9_000_000_000_000_000)
    with pytest.raises(InferenceServerException, match="unexpected inference input"):
        server.client.infer("m", [one("z")])
    with pytest.raises(InferenceServerException, match="unknown model"):
        server.client.infer("nobody", [one()])
    done: list[object] = []
    gate.close()
    server.client.async_infer("m", [one()], lambda result, error: done.append(error))
    gate.wait_for_somebody()
    for number in range(5):
        timeout = 500_000 if number == 0 else None
        server.client.async_infer("m", [one()], lambda result, error: done.append(error), timeout=timeout)
    until(lambda: len(done) == 1, 30)
    gate.open()
    until(lambda: len(done) == 6, 30)
    ask_stream(server)
    server.post("m", traceparent=traceparent()["traceparent"])
    ask_graph(server, 3)
    ask_graph(server, 2, headers=traceparent(span="00f067aa0ba902b8"))


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("transport", "protocol"), list(zip(TRANSPORTS, (GRPC, HTTP), strict=False)))
def test_each_record_has_its_spans_and_each_span_its_record(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, transport: str, protocol: str
) -> None:
    add_graph(tmp_path / "models")
    with receiving(tmp_path) as receiver:
        more = {"OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=mill", "OTEL_RESOURCE_ATTRIBUTES": "service.name=wheel,river=Isar"}
        set_environment(monkeypatch, receiver.environment(protocol, **ALL, **more))
        with served(tmp_path / "models", transport=transport) as server:
            do_everything(server, gate)
            until(lambda: server.metric('headrace_requests_total{model="count",outcome="answered",version="1"}') == 2, 30)
            until(lambda: len(Books(server.neighbour).expected()) == server.metric("headrace_spans_sent_total"), 30)
            books = Books(server.neighbour)
            if protocol == HTTP:
                until(lambda: len(exemplars_of(server.metrics)) > 3, 30)
                check_exemplars(server, {f"{trace:032x}" for trace, _ in books.expected()})
            told = server.stop()
        assert seen(receiver.spans) == books.expected()
        assert {headers["x-tenant"] for headers in receiver.headers} == {"mill"}
        assert {(each["service.name"], each["river"]) for each in receiver.resources} == {("wheel", "Isar")}
        assert "ERROR" not in told
        check_contents(receiver.spans, books)


def check_exemplars(server: Served, traces: set[str]) -> None:
    for sample in exemplars_of(server.metrics):
        assert sample.exemplar is not None
        assert sample.exemplar.labels["trace_id"] in traces
        assert sample.exemplar.value <= float(sample.labels["le"])


def check_contents(spans: list[Any], books: Books) -> None:
    requests = [(span, attributes(span)) for span in spans if span.name == SERVER]
    outcomes = sorted(about["headrace.outcome"] for _, about in requests)
    assert outcomes == sorted(["answered"] * (len(outcomes) - 3) + ["invalid"] * 2 + ["expired"])
    given = [span for span, _ in requests if int.from_bytes(span.trace_id) == int(TRACE, 16)]
    assert sorted(span.parent_span_id.hex() for span in given) == [CALLER, CALLER, "00f067aa0ba902b8"], "gRPC, REST, a graph"
    (late,) = [(span, about) for span, about in requests if about["headrace.outcome"] == "expired"]
    assert late[1]["headrace.slack_us"] < 0 < late[1]["headrace.deadline_us"]
    assert (late[1]["rpc.status_code"], late[1]["error.type"]) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert late[0].status.code == 2
    assert late[1]["headrace.kept"] == ["late"]
    assert [about["rpc.status_code"] for _, about in requests if about["headrace.outcome"] == "invalid"] == [
        "INVALID_ARGUMENT",
        "NOT_FOUND",
    ]
    rows = [span for span in spans if span.name.startswith("rows ")]
    servers = {whom(span): span for span, _ in requests}
    assert sorted(attributes(row)["headrace.rows"] for row in rows) == [2, 3], "of each request"
    for row in rows:
        parent = servers[int.from_bytes(row.trace_id), int.from_bytes(row.parent_span_id)]
        assert parent.start_time_unix_nano < row.start_time_unix_nano
        assert row.end_time_unix_nano <= parent.end_time_unix_nano
    assert {span.name for span in spans if span.name.startswith("node ")} == {"node count/split", "node work"}
    assert all(span.trace_state in ("ot=th:0",) for span in spans)


@pytest.mark.timeout(180)
def test_a_batch_of_200_shows_200(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(tmp_path) as receiver:
        set_environment(monkeypatch, receiver.environment(GRPC, **QUICK, OTEL_TRACES_SAMPLER="parentbased_always_off"))
        with served(tmp_path / "models") as server:
            done: list[object] = []
            gate.close()
            server.client.async_infer("m", [one()], lambda result, error: done.append(error))
            gate.wait_for_somebody()
            for number in range(200):
                headers = traceparent() if number == 99 else None
                server.client.async_infer("m", [one()], lambda result, error: done.append(error), headers=headers)
            until(lambda: server.metric('headrace_queue_requests{model="m",version="1"}') == 200, 60)
            gate.open()
            until(lambda: len(done) == 201, 60)
            server.stop()
        assert done == [None] * 201
        (batch,) = receiver.named("batch m")
        assert len(batch.links) == 200
        assert attributes(batch)["headrace.batch.requests"] == attributes(batch)["headrace.batch.rows"] == 200
        assert "upstream" in attributes(batch)["headrace.kept"], "one asked for it, and all who shared its batch are there"
        requests, executes = receiver.named(SERVER), receiver.named("execute")
        assert {whom(link) for link in batch.links} == {whom(span) for span in requests}
        assert len(requests) == len(executes) == 200
        assert {whom(link) for span in executes for link in span.links} == {whom(batch)}
        assert sorted(attributes(link)["headrace.batch.place"] for link in batch.links) == list(range(200))


def given(server: Served) -> float:
    """How many spans there were, whatever became of them."""
    dropped = (server.metric(f'headrace_spans_dropped_total{{reason="{reason}"}}') for reason in ("rate", "buffer", "export"))
    return server.metric("headrace_spans_sent_total") + sum(dropped)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("protocol", [GRPC, HTTP])
@pytest.mark.parametrize("trouble", ["dead", "refuses"])
def test_an_endpoint_that_takes_nothing_costs_spans_and_nothing_else(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, protocol: str, trouble: str
) -> None:
    with receiving(tmp_path, "--refuse") as receiver:
        set_environment(monkeypatch, receiver.environment(protocol, **ALL | {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}))
        if trouble == "dead":
            receiver.process.kill()
            receiver.process.wait()
        with served(tmp_path / "models") as server:
            server.infer(10)
            until(lambda: server.metric('headrace_spans_dropped_total{reason="export"}') == 50, 60)
            assert given(server) == 50
            server.infer(10)
            told = server.stop()
            assert server.process.returncode == 0
        (line,) = [line for line in told.splitlines() if '"ERROR"' in line]
        assert "spans cannot be sent to http://127.0.0.1" in line
        assert "Failed to export" in line
        assert '"answered": 20' in told
        assert receiver.spans == []


@pytest.mark.timeout(180)
def test_a_slow_endpoint_fills_a_buffer_that_has_an_end(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(tmp_path, "--delay=120") as receiver:
        more = {"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "100"}
        set_environment(monkeypatch, receiver.environment(GRPC, **ALL | more))
        with served(tmp_path / "models") as server:
            server.infer(100)
            until(lambda: server.metric('headrace_spans_dropped_total{reason="buffer"}') == 400, 60)
            assert given(server) == 400, "the others are on their way, or wait"
            told = server.stop()
            assert server.process.returncode == 0
        assert "100 spans were not sent: the endpoint took too long" in told


@pytest.mark.timeout(120)
def test_above_the_cap_spans_are_dropped_and_counted(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(tmp_path) as receiver:
        set_environment(monkeypatch, receiver.environment(GRPC, **ALL))
        with served(tmp_path / "models", "--spans-per-second=1") as server:
            server.infer(50)
            until(lambda: given(server) == 250, 60)
            assert server.metric('headrace_spans_dropped_total{reason="rate"}') >= 200
            until(lambda: len(receiver.spans) == server.metric("headrace_spans_sent_total") > 0, 30)


@pytest.mark.timeout(120)
def test_what_cannot_be_made_is_told_and_the_ledger_is_kept(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"})
    with served(tmp_path / "models", "--ledger", tmp_path / "ledger") as server:
        server.infer(3)
        assert server.side
        told = server.stop()
    assert "no traces can be made: could not convert string to float: 'soon'" in told
    assert counts(tmp_path / "ledger") == {"answered": 3}


@pytest.mark.timeout(120)
def test_a_client_asks_for_traces_by_tritons_settings(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(tmp_path) as receiver:
        set_environment(monkeypatch, receiver.environment(GRPC, **QUICK, OTEL_TRACES_SAMPLER="parentbased_always_off"))
        with served(tmp_path / "models") as server:
            assert server.side
            server.infer(3)
            wanted = {"trace_level": ["TIMESTAMPS"], "trace_rate": ["2"], "trace_count": ["2"]}
            server.client.update_trace_settings("m", wanted)
            until(lambda: "m" in read_report(server.neighbour.path).left, 30)
            server.infer(7)
            until(lambda: server.client.get_trace_settings("m").settings["trace_count"].value == ["0"], 30)
            server.stop()
        assert sum("asked" in attributes(span)["headrace.kept"] for span in receiver.named(SERVER)) == 2


@pytest.mark.timeout(120)
def test_who_kills_the_server_leaves_its_traces(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(tmp_path) as receiver:
        set_environment(monkeypatch, receiver.environment(GRPC, **ALL))
        with served(tmp_path / "models") as server:
            assert server.side
            server.infer(5)
            until(lambda: len(Books(server.neighbour).expected()) == 25, 30)
            books = Books(server.neighbour)
            server.process.kill()
            told = server.process.communicate(timeout=50)[1]
        assert "ended without a word; its traces were sent" in told
        assert seen(receiver.spans) == books.expected()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_certificates_are_those_that_the_variables_name(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    made += ["-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # the library below the HTTP exporter lets them win
        monkeypatch.delenv(name, raising=False)
    with receiving(tmp_path, "--tls", str(certificate), str(key)) as receiver:
        environment = receiver.environment(protocol, **ALL, OTEL_EXPORTER_OTLP_CERTIFICATE=str(certificate))
        endpoint = environment["OTEL_EXPORTER_OTLP_ENDPOINT"].replace("http://", "https://")
        set_environment(monkeypatch, {**environment, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
        with served(tmp_path / "models") as server:
            server.infer(2)
            until(lambda: server.metric("headrace_spans_sent_total") == 10, 60)
        assert len(receiver.spans) == 10


@pytest.mark.timeout(120)
def test_without_the_packages_it_serves_and_says_what_is_missing(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "opentelemetry.py").touch()  # in front of those that are installed
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with served(tmp_path / "models") as server:
        server.infer()
        assert "there will be none: making traces needs OpenTelemetry's SDK and exporters: pip install" in server.stop()


@pytest.mark.timeout(120)
def test_a_server_that_was_started_without_is_traced_by_hand(tmp_path: Path, gate: Gate) -> None:
    observe = [sys.executable, "-m", "headrace", "observe"]
    with receiving(tmp_path) as receiver, served(tmp_path / "models") as server:
        idle = subprocess.run(observe, capture_output=True, text=True, check=False)
        assert (idle.returncode, idle.stderr.startswith("headrace: nothing to do: give --ledger DIR, or say")) == (2, True)
        server.infer(3)
        environment = {**os.environ, **receiver.environment(HTTP, **ALL)}
        by_hand = subprocess.Popen([*observe, f"--of={server.neighbour.path}"], env=environment)
        assert server.side == by_hand.pid
        tally = server.neighbour.tally
        until(lambda: tally.spans_sent == 15, 60)
        server.infer(2)
        server.stop()
        assert by_hand.wait(timeout=50) == 0
        assert len(receiver.spans) == 25
