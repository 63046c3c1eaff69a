"""An independent viewer is sent traces, and asked for them again: what it has understood is what the ledger says."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.ledger.servers import Gate, served
from tests.telemetry.exporting import ALL, GRPC, HTTP, Books, set_environment
from tests.telemetry.test_traces import add_graph, ask_graph, traceparent
from tests.waiting import until
from tools import phoenix
from tools.ports import free_port

pytestmark = pytest.mark.slow


class Phoenix:
    """What it says over HTTP."""

    def __init__(self, process: subprocess.Popen[bytes], http: int, grpc: int) -> None:
        self.process, self.addresses = process, {GRPC: f"http://127.0.0.1:{grpc}", HTTP: f"http://127.0.0.1:{http}"}

    def get(self, path: str) -> Any:
        with urlopen(f"{self.addresses[HTTP]}/v1/{path}", timeout=30) as answer:
            return json.load(answer)["data"]

    @property
    def is_up(self) -> bool:
        assert self.process.poll() is None
        try:
            return bool(self.get("projects"))
        except (URLError, OSError):
            time.sleep(0.5)
            return False

    @property
    def spans(self) -> dict[tuple[int, int], tuple[str, int, int, int]]:
        """Name, parent, begin and end in µs, by trace and span."""
        return {
            (int(each["context"]["trace_id"], 16), int(each["context"]["span_id"], 16)): (
                each["name"],
                int(each["parent_id"] or "0", 16),
                microseconds(each["start_time"]),
                microseconds(each["end_time"]),
            )
            for each in self.get("projects/default/spans?limit=1000")
        }


def microseconds(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1e6)


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Phoenix]:
    ports = free_port(), free_port()
    (tmp_path / "phoenix").mkdir()
    process = phoenix.start(tmp_path / "phoenix", *ports)
    started = Phoenix(process, *ports)
    try:
        until(lambda: started.is_up, 300)
        yield started
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(1200)
def test_it_has_understood_what_the_ledger_says(tmp_path: Path, viewer: Phoenix, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(tmp_path)
    gate.add_model(tmp_path / "models")
    add_graph(tmp_path / "models")
    expected: dict[tuple[int, int], tuple[str, int, int, int]] = {}
    for protocol, address in viewer.addresses.items():
        where = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        set_environment(monkeypatch, {**ALL, **where})
        with served(tmp_path / "models") as server:
            server.infer(3)
            server.infer(headers=traceparent())
            ask_graph(server, 4)
            until(lambda: len(Books(server.neighbour).expected()) == server.metric("headrace_spans_sent_total") > 25, 60)
            found = Books(server.neighbour).expected()
            server.stop()
        expected |= {ids: (each.name, each.parent, each.start // 1000, each.end // 1000) for ids, each in found.items()}
    gate.end()
    until(lambda: len(viewer.spans) >= len(expected), 60)
    spans = viewer.spans
    assert {ids: (name, parent) for ids, (name, parent, _, _) in spans.items()} == {
        ids: (name, parent) for ids, (name, parent, _, _) in expected.items()
    }
    for ids, (_, _, begin, end) in spans.items():
        assert abs(begin - expected[ids][2]) <= 1, "it rounds, and we cut"
        assert abs(end - expected[ids][3]) <= 1
