"""A real server that takes spans: what its clients' exporters send shows where the time was that it did not have itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from headrace.clock import MILLISECOND, SECOND
from headrace.config import server_config
from headrace.errors import CannotListen, InvalidRepository
from headrace.ledger.report import read_outside
from headrace.server.extras import check_spans
from tests.budgets.making import OPENSLO
from tests.ledger.servers import Gate, Served, served
from tests.telemetry.exporting import Books
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)

SKEW = 5 * 3600 * SECOND
"""What the client's clock is ahead of the server's."""


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Path]:
    gate = Gate(tmp_path)
    gate.add_model(tmp_path / "models", rows=8)
    (tmp_path / "models" / "slo").mkdir()
    (tmp_path / "models" / "slo" / "m.yaml").write_text(OPENSLO)
    yield tmp_path / "models"
    gate.end()


def budget(*options: str) -> str:
    command = [sys.executable, "-m", "headrace", "budget", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def told() -> dict[str, Any]:
    return json.loads(budget("--json"))["objectives"][0]


def call(server: Served, exporter: SpanExporter, on_the_way: int) -> int:
    """Ask as an instrumented client does, from which the server is so many ns away; how long that took, in ns, by its clock."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    begun = time.time_ns()
    span = provider.get_tracer("a client").start_span("call", kind=SpanKind.CLIENT, start_time=begun + SKEW - on_the_way)
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers, set_span_in_context(span))
    server.infer(headers=headers)
    ended = time.time_ns()
    span.end(ended + SKEW)
    provider.shutdown()
    return ended - begun + on_the_way


def exporters(server: Served) -> tuple[Callable[[], SpanExporter], Callable[[], SpanExporter]]:
    """Of the two protocols, to where it listens now."""
    server.side  # noqa: B018  # waits for it
    until(lambda: bool(read_outside(server.neighbour.path).addresses), 30)
    at = read_outside(server.neighbour.path).addresses
    return lambda: GrpcExporter(f"http://{at['grpc']}", insecure=True), lambda: HttpExporter(f"http://{at['http']}/v1/traces")


def fates(server: Served) -> dict[str, float]:
    """What became of spans."""
    found = re.findall(r'headrace_spans_taken_total\{fate="(\w+)"\} (\S+)', server.page())
    return {fate: float(count) for fate, count in found if float(count)}


def test_the_networks_share_is_shown_when_the_clients_span_is_there_and_else_nothing(models: Path) -> None:
    with served(models, "--otlp=127.0.0.1:0") as server:
        over_grpc, over_http = exporters(server)
        server.infer(3)
        server.infer(1, headers={"traceparent": f"00-{5:032x}-{6:016x}-01"})  # its client's span does not come
        assert "outside" not in told()
        assert "outside" not in budget()
        assert "headrace_outside_duration_seconds" not in server.page()

        lasted = [call(server, exporter(), 50 * MILLISECOND) for exporter in (over_grpc, over_http)]
        tally = server.neighbour.tally
        until(lambda: tally.spans_joined == 2, 60)
        records = [record for record, _, _ in Books(server.neighbour).requests if record.trace_high and record.span != 6]
        network = [ns - (record.sent - record.received) for ns, record in zip(lasted, records, strict=True)]
        until(lambda: bool(read_outside(server.neighbour.path).objectives), 30)
        shown = told()
        outside = shown["outside"]
        assert set(outside) == {"network", "clients"}, "no Ray Serve, no Triton"
        assert outside["network"]["requests"] == 2
        assert outside["network"]["usual_ms"] == pytest.approx(sum(network) / 2 / MILLISECOND)
        assert outside["network"]["share"] == pytest.approx(sum(network) / sum(lasted))
        assert (outside["clients"]["late"], shown["bad"]) == (2, 0), "20 ms are promised, and 50 went on the way"
        assert outside["clients"]["charged"]["network"] > 1.5
        page = budget()
        assert "outside    (of 2 of the latest requests; 2 were late for their clients)" in page
        assert "    network  █" in page
        of = 'model="m",part="network",version="1"'
        assert server.metric(f"headrace_outside_duration_seconds_count{{{of}}}") == 2
        assert server.metric(f"headrace_outside_duration_seconds_sum{{{of}}}") == pytest.approx(sum(network) / SECOND)

        # Whoever kills the side process loses what it held, and no request.
        killed = server.side
        os.kill(killed, signal.SIGKILL)
        server.infer(2)
        until(lambda: server.neighbour.tally.pid not in (0, killed), 60)
        until(lambda: not read_outside(server.neighbour.path).objectives, 30)
        call(server, exporters(server)[0](), MILLISECOND)
        until(lambda: tally.spans_joined == 3, 60)
        until(lambda: server.metric(f"headrace_outside_duration_seconds_count{{{of}}}") == 3, 30)
        assert fates(server) == {"joined": 3}
        server.stop()
        assert server.process.returncode == 0


def test_where_spans_cannot_be_taken_a_server_does_not_start(models: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRepository, match="option --otlp is 'here': expected HOST:PORT"):
        server_config(None, {"otlp": "here"})
    with pytest.raises(CannotListen, match=r"cannot listen on 203\.0\.113\.1:4317"):
        check_spans("203.0.113.1:4317")
    (tmp_path / "opentelemetry.py").touch()  # in front of those that are installed
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "headrace", "serve", "--repository", str(models), "--http=none", "--metrics=none"]
    command += ["--grpc=127.0.0.1:0", "--otlp=127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "taking spans needs OpenTelemetry's messages: pip install 'headrace[traces]'" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_ray_serve_takes_around_us_is_shown_when_its_spans_are_there(models: Path) -> None:
    """Ray Serve's own spans, of its proxy and a replica."""
    with served(models, "--otlp=127.0.0.1:0") as server:
        exporters(server)
        spans_to = f"http://{read_outside(server.neighbour.path).addresses['http']}/v1/traces"
        command = [sys.executable, "-m", "tests.telemetry.ray_app", server.grpc, spans_to]
        subprocess.run(command, check=True, timeout=400)
        tally = server.neighbour.tally
        until(lambda: tally.spans_joined + tally.spans_implausible + tally.spans_unmatched == 12, 60)
        # Of each call proxy, route and replica, and the client, whose span may end before that of the proxy does.
        assert fates(server).get("joined", 0) >= 9
        assert "unmatched" not in fates(server)
        until(lambda: bool(read_outside(server.neighbour.path).objectives), 30)
        outside = told()["outside"]
        assert (outside["ray"]["requests"], outside["ray"]["usual_ms"] > 0) == (3, True)
        assert "    ray      █" in budget()
