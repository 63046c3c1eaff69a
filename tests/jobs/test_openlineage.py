"""OpenLineage is told of jobs, in events as its schema has them, and never stands in a job's way."""

from __future__ import annotations

import inspect
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from openlineage.client import event_v2, facet_v2

from headrace.errors import JobFailed
from headrace.jobs import openlineage
from headrace.jobs.openlineage import Account, Data, told
from tests.jobs.conftest import Run
from tests.jobs.files import write


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """The client writes variables of its own into the environment."""
    yield
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
        del os.environ[name]


def account() -> Account:
    columns = [("id", "int64"), ("text", "string")]
    inputs = [Data("/data/*.parquet", columns, rows=20, nbytes=1000, files=2)]
    return Account(
        "embed",
        inputs,
        Data("s3://bucket/a/out", [("vector", "fixed_size_list<float>[384]")]),
        {"graph": {"digest": "ab"}, "job": "7"},
    )


def tell(of: Account) -> None:
    with told(of):
        of.output = replace(of.output, rows=19, nbytes=500, files=1)


CLASSES = {
    kind._get_schema(): kind
    for module in (event_v2, *vars(facet_v2).values())
    if inspect.ismodule(module)
    for kind in vars(module).values()
    if inspect.isclass(kind) and hasattr(kind, "_get_schema")
} | {facet_v2.RunFacet._get_schema(): facet_v2.RunFacet}


def as_the_schema_has_it(event: dict[str, Any]) -> None:
    """The client's classes are generated from OpenLineage's schema, and check what they are made of."""
    runs, jobs = event["run"], event["job"]
    for facet in _facets(event):
        own = {key: value for key, value in facet.items() if not key.startswith("_")}
        assert facet["_producer"] == event["producer"]
        kind = CLASSES[facet["_schemaURL"]]
        if kind is not facet_v2.RunFacet:
            kind(**own)
    event_v2.RunEvent(
        eventTime=event["eventTime"],
        eventType=event_v2.RunState(event["eventType"]),
        producer=event["producer"],
        run=event_v2.Run(**{**runs, "facets": {}}),
        job=event_v2.Job(**{**jobs, "facets": {}}),
        inputs=[event_v2.InputDataset(**data) for data in event["inputs"]],
        outputs=[event_v2.OutputDataset(**data) for data in event["outputs"]],
    )
    assert event["schemaURL"] == event_v2.RunEvent._get_schema()


def _facets(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for holder in (event["run"], event["job"], *event["inputs"], *event["outputs"]):
        for key in ("facets", "inputFacets", "outputFacets"):
            yield from holder.get(key, {}).values()


def test_the_story_of_a_job_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    transport = {"type": "file", "log_file_path": str(path), "append": True}
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT", json.dumps(transport))
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "mill")
    tell(account())
    with pytest.raises(OSError, match="disk"), told(account()):
        raise OSError("the disk is full")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["eventType"] for event in events] == ["START", "COMPLETE", "START", "FAIL"]
    assert events[0]["run"]["runId"] == events[1]["run"]["runId"] != events[2]["run"]["runId"] == events[3]["run"]["runId"]
    for event in events:
        as_the_schema_has_it(event)
        assert (event["job"]["namespace"], event["job"]["name"]) == ("mill", "embed")
        assert event["run"]["facets"]["headrace_manifest"]["graph"] == {"digest": "ab"}
        assert event["inputs"][0]["inputFacets"]["inputStatistics"]["rowCount"] == 20
        assert event["inputs"][0]["facets"]["schema"]["fields"][1]["type"] == "string"
        assert (event["inputs"][0]["namespace"], event["inputs"][0]["name"]) == ("file", "/data/*.parquet")
        assert (event["outputs"][0]["namespace"], event["outputs"][0]["name"]) == ("s3://bucket", "a/out")
    assert events[1]["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 19
    assert events[3]["run"]["facets"]["errorMessage"]["message"] == "the disk is full"


@pytest.fixture
def taken() -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    got: list[tuple[str, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()


def test_the_story_of_a_job_over_http(
    taken: tuple[str, list[tuple[str, dict[str, Any]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, got = taken
    monkeypatch.setenv("OPENLINEAGE_URL", url)
    tell(account())
    assert [(path, event["eventType"]) for path, event in got] == [("/api/v1/lineage", "START"), ("/api/v1/lineage", "COMPLETE")]
    for _, event in got:
        as_the_schema_has_it(event)


def test_nobody_is_told_unless_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    with told(account(), {}):
        assert threading.active_count() == before


@pytest.mark.parametrize("how", ["nobody listens", "nobody answers", "no file"])
def test_who_does_not_take_events_does_not_stop_a_job(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openlineage, "_PATIENCE", 0.2)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        if how == "nobody answers":
            deaf.listen()
        if how == "no file":
            transport = {"type": "file", "log_file_path": str(tmp_path / "no" / "such" / "file"), "append": True}
        else:
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            transport = {"type": "http", "url": url, "timeout": 1, "retry": {"total": 0}}
        monkeypatch.setenv("OPENLINEAGE__TRANSPORT", json.dumps(transport))
        with caplog.at_level(logging.WARNING, openlineage.__name__):
            tell(account())
    assert [record for record in caplog.records if record.name == openlineage.__name__]


def test_openlineage_is_told_of_a_job(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "told.jsonl"
    transport = {"type": "file", "log_file_path": str(path), "append": True}
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT", json.dumps(transport))
    rows = write(tmp_path / "in.parquet", pa.table({"i": [1, None, 3]}))
    run("lookup", rows)
    with pytest.raises(JobFailed):
        run("lookup", rows, "strict", most_rejected=0)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["eventType"] for event in events] == ["START", "COMPLETE", "START", "FAIL"]
    for event in events:
        as_the_schema_has_it(event)
    complete = events[1]
    assert complete["job"]["name"] == "batch.lookup"
    assert complete["inputs"][0]["name"] == str(rows)
    assert complete["inputs"][0]["inputFacets"]["inputStatistics"]["rowCount"] == 3
    amount = complete["outputs"][0]["outputFacets"]["outputStatistics"]
    assert (amount["rowCount"], amount["fileCount"]) == (2, 1)
    assert amount["size"] == sum(part.stat().st_size for part in (tmp_path / "out").glob("*.parquet"))
    facet = complete["run"]["facets"]["headrace_manifest"]
    manifest = json.loads((tmp_path / "out" / "_headrace" / "manifest.json").read_text())
    assert facet["graph"] == manifest["graph"]
    assert "rows were rejected" in events[3]["run"]["facets"]["errorMessage"]["message"]
