"""A bug in native code costs its request, and a line in the log; never the server."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import grpc
import headrace_kernels
import pytest

from headrace.backends.fake import Script
from headrace.ledger.records import Outcome
from tests.transport.serving import ECHO, Server, fill, serving, tensor
from tests.transport.streaming import Raw, answers, one
from tests.waiting import until

TOLD = "a fault was injected at"


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    with serving("native", repository, {"fake": fill(repository, {"m": (ECHO, Script())})}) as started:
        yield started


def inject(point: str) -> None:
    assert headrace_kernels.inject is not None, "this build cannot inject faults: make test builds one that can"
    headrace_kernels.inject(point, 1)


def ask(server: Server) -> grpc.Call:
    return server.stub.ModelInfer.future(one(1), timeout=20)


@pytest.mark.parametrize("point", ["decode", "gather", "scatter", "io"])
def test_a_panic_fails_its_request_and_nothing_else(server: Server, point: str, caplog: pytest.LogCaptureFixture) -> None:
    inject(point)
    failed = ask(server)
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert f"{TOLD} {point.capitalize()}" in failed.details()
    assert "this is a bug in Headrace" in failed.details()
    until(lambda: any(TOLD in record.getMessage() and record.levelno >= logging.ERROR for record in caplog.records))
    assert server.client.infer("m", [tensor("x", [[7]])]).as_numpy("y").tolist() == [[7]]
    ends = {"decode": "FAILED", "gather": "FAILED", "scatter": "FAILED", "io": "FAILED"}
    server.wait_settled("m")
    server.engine.ledger.drain()
    told = server.engine.statistics.summary()
    assert told[ends[point].lower()] == 1


@pytest.mark.parametrize("point", ["decode", "scatter"])
def test_a_panic_in_a_stream_leaves_it_open(server: Server, point: str) -> None:
    with Raw(server) as raw:
        raw.ask(one(0))
        assert raw.next() == answers(range(1))[0]
        inject(point)
        raw.ask(one(1))
        told = raw.next()
        assert told.error.startswith(("decoding a request panicked", "an answer panicked"))
        raw.ask(one(2))
        assert raw.rest() == answers(range(2, 3))


def test_a_panic_while_one_request_is_scattered_spares_its_neighbours(server: Server) -> None:
    from headrace.backends.fake import Gate

    script = server.engine.catalog.running()[0].opened.sessions[0][0]._script  # type: ignore[attr-defined]
    script.gate = gate = Gate()
    first = ask(server)
    gate.wait_for(1)
    others = [ask(server) for _ in range(4)]
    until(lambda: server.waiting("m") == 4)
    gate.let(1)
    first.result(20)
    inject("scatter")
    gate.open()
    codes = sorted(other.code().name for other in others)
    assert codes == ["INTERNAL", "OK", "OK", "OK"]
    server.wait_settled("m")
    assert server.ledger("m")[Outcome.ANSWERED] == 4
