"""A real Triton sends its spans: what it did is shown within our execution, as its own statistics have it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from headrace.budgets.outside import FAR, FAR_WAY
from headrace.ledger.identity import Identity, Part
from headrace.ledger.report import read_outside
from tests.budgets.making import OPENSLO
from tests.build_models import add_model
from tests.ledger.servers import Served, served
from tests.telemetry.exporting import GRPC, QUICK, attributes, receiving, set_environment, whom
from tests.triton.far import MODELS, Triton, write_model
from tests.triton.here import parameters
from tests.waiting import until
from tools.ports import free_port

TRACE = 7 << 64 | 8
STAGES: tuple[str, ...] = ("far_queue", "far_gather", "far_execute")
ATTEMPTS, PATIENCE = 20, 10.0
"""Triton loses the spans of one request in ten where the machine is busy: two are asked, until all of theirs are there."""


@pytest.fixture
def port() -> int:
    """Of gRPC; the next one is free, too."""
    return free_port(following=1)


@pytest.fixture
def traced(tmp_path: Path, port: int) -> Iterator[Triton]:
    """One that sends spans to the next port."""
    write_model(tmp_path / "far", "doubles", *MODELS["doubles"])
    options = ("mode=opentelemetry", f"opentelemetry,url=http://127.0.0.1:{port + 1}/v1/traces", "level=TIMESTAMPS", "rate=0")
    options += ("opentelemetry,bsp_schedule_delay=100",)
    with Triton(tmp_path / "far", tmp_path / "log", *(f"--trace-config={option}" for option in options)) as server:
        yield server


@pytest.mark.timeout(600)
def test_what_a_triton_did_is_within_our_execution(
    tmp_path: Path, port: int, traced: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model(tmp_path / "models", "doubles", None, f'backend: "triton"\n{parameters(url=traced.url)}')
    (tmp_path / "models" / "slo").mkdir()
    (tmp_path / "models" / "slo" / "m.yaml").write_text(OPENSLO.replace("model: m,", "model: doubles,"))
    x = triton.InferInput("x", [1, 4], "FP32").set_data_from_numpy(np.ones((1, 4), np.float32))
    with receiving(tmp_path) as receiver:
        set_environment(monkeypatch, receiver.environment(GRPC, **QUICK))
        with served(tmp_path / "models", f"--otlp=127.0.0.1:{port}") as server:
            until(lambda: bool(read_outside(server.neighbour.path).addresses), 30)
            server.client.infer("doubles", [x])
            tally, callers = server.neighbour.tally, count(1)
            for _ in range(ATTEMPTS):
                joined, counted, told = tally.spans_joined, stages_of(traced), told_of(server)
                for caller in islice(callers, 2):
                    server.client.infer("doubles", [x], headers={"traceparent": f"00-{TRACE:032x}-{caller:016x}-01"})
                with suppress(AssertionError):
                    until(lambda joined=joined: tally.spans_joined == joined + 6, PATIENCE)
                    break
            else:
                pytest.fail("Triton never sent all of the spans of two requests")
            runs = tally.spans_joined // 3
            until(lambda: f"headrace_outside_duration_seconds_count{{{part(FAR_WAY)}}} {runs}.0" in server.page(), 30)
            for name, ns in stages_of(traced).items():
                assert (told_of(server)[name] - told[name]) * 1e9 == pytest.approx(ns - counted[name], abs=1000), name
            execute = server.metric('headrace_stage_duration_seconds_sum{model="doubles",stage="execute",version="1"}')
            parts = [server.metric(f"headrace_outside_duration_seconds_sum{{{part(name)}}}") for name in (*FAR, FAR_WAY)]
            assert 0 < sum(parts) < execute
            until(lambda: bool(read_outside(server.neighbour.path).objectives), 30)
            shown = budget("--json")
            assert set(json.loads(shown)["objectives"][0]["outside"]) == {*FAR, FAR_WAY}, "no client has told anything"
            assert f"far away   (of {runs} executions at a Triton) usually queue" in budget()
            identity = Identity(server.neighbour.id)
            until(lambda: len(receiver.named("far doubles")) == runs, 30)
        executes = {whom(span)[1] for span in receiver.named("execute")}
        for span in receiver.named("far doubles"):
            assert whom(span)[0] == TRACE
            assert int.from_bytes(span.parent_span_id) in executes
            assert set(attributes(span)) >= {"headrace.far.queue_us", "headrace.far.execute_us", "headrace.far.way_us"}
        assert executes >= {identity.of(Part.EXECUTE, 1, 2)}


def told_of(server: Served) -> dict[str, float]:
    """What the server's metrics say of those stages, in s; they do not name what never was."""
    page, told = server.page(), dict[str, float].fromkeys(STAGES, 0.0)
    for name in STAGES:
        if found := re.search(rf"^headrace_outside_duration_seconds_sum{{{part(name)}}} (\S+)$", page, re.MULTILINE):
            told[name] = float(found[1])
    return told


def part(name: str) -> str:
    return f'model="doubles",part="{name}",version="1"'


def budget(*options: str) -> str:
    command = [sys.executable, "-m", "headrace", "budget", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def stages_of(server: Triton) -> dict[str, int]:
    """What Triton itself has counted, in ns: how long requests waited, and two of the parts of running them."""
    with server.client() as client:
        told: Any = client.get_inference_statistics("doubles")
    stats = told.model_stats[0].inference_stats
    return dict(zip(STAGES, (stats.queue.ns, stats.compute_input.ns, stats.compute_infer.ns), strict=True))
