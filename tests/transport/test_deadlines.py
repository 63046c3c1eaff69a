"""Deadlines that cannot be met: refused at the door, dropped by the plan, never run."""

from __future__ import annotations

import grpc
import pytest

from headrace.backends.fake import Gate, Script
from headrace.clock import MILLISECOND
from headrace.ledger.records import Outcome, Refusal
from headrace.scheduling.admission import SHARE_OF
from headrace.scheduling.steering import Steering
from tests.transport.serving import ECHO, PATIENCE, Serve, Server, message
from tests.waiting import until

SLOW = 50 * MILLISECOND
OPEN = ECHO + 'parameters { key: "admission" value { string_value: "open" } }'


def ask(server: Server, value: int, timeout_us: int = 0) -> grpc.Future:
    request = message("m", [("x", "INT32", (1, 1))], [value.to_bytes(4, "little")])
    if timeout_us:
        request.parameters["timeout"].int64_param = timeout_us
    return server.stub.ModelInfer.future(request, timeout=PATIENCE)


def refusals(server: Server) -> int:
    server.engine.ledger.drain()
    return sum(version.refusals[Refusal.CANNOT_MEET_DEADLINE] for version in server.engine.statistics.versions.values())


@pytest.fixture
def script() -> Script:
    return Script(execute_ns=SLOW)


def busy(serve: Serve, script: Script, config: str = ECHO) -> tuple[Server, Gate, list[grpc.Future]]:
    """A server that knows how long a batch takes; one runs for as long as the gate is closed, and one waits."""
    server = serve({"m": (config, script)})
    for value in range(3):
        ask(server, value).result()
    script.gate = gate = Gate()
    running = [ask(server, 0)]
    gate.wait_for(1)
    running.append(ask(server, 1))
    until(lambda: server.waiting("m") == 1)
    return server, gate, running


def test_what_cannot_be_done_in_time_is_refused_at_the_door(serve: Serve, script: Script) -> None:
    server, gate, running = busy(serve, script)
    refused = ask(server, 7, timeout_us=10_000)
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "ms after its deadline" in (refused.details() or "")
    (pushback,) = (value for key, value in refused.trailing_metadata() if key == "grpc-retry-pushback-ms")
    assert int(pushback) >= 1
    gate.open()
    assert [call.result().raw_output_contents[0][0] for call in running] == [0, 1]
    server.wait_settled("m")
    assert refusals(server) == 1
    # It did not run.
    assert sum(script.batches) == 5


def test_a_far_deadline_is_taken(serve: Serve, script: Script) -> None:
    server, gate, running = busy(serve, script)
    taken = ask(server, 7, timeout_us=60_000_000)
    until(lambda: server.waiting("m") == 2)
    gate.open()
    assert taken.result().raw_output_contents[0][0] == 7
    assert [call.result().raw_output_contents[0][0] for call in running] == [0, 1]


def test_an_objective_refuses_nobody_unless_the_model_sheds_by_it(serve: Serve, script: Script) -> None:
    """A client that gives a second is not sent away because the model would like to be quicker."""
    objective = ECHO + 'parameters { key: "objective_ms" value { string_value: "5" } }'
    server, gate, _ = busy(serve, script, objective)
    taken = ask(server, 7, timeout_us=60_000_000)
    until(lambda: server.waiting("m") == 2)
    gate.open()
    assert taken.result().raw_output_contents[0][0] == 7


def test_a_model_may_shed_by_its_objective(serve: Serve, script: Script) -> None:
    """Whoever asks while a batch runs would wait longer than the model wants anybody to."""
    objective = 'parameters { key: "objective_ms" value { string_value: "5" } }'
    sheds = 'parameters { key: "shed" value { string_value: "target" } }'
    script.execute_ns = 400 * MILLISECOND
    server = serve({"m": (ECHO + objective + sheds, script)})
    for value in range(3):
        ask(server, value).result()
    script.gate = gate = Gate()
    running = ask(server, 0)
    gate.wait_for(1)
    assert ask(server, 7, timeout_us=60_000_000).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    gate.open()
    assert running.result().raw_output_contents[0][0] == 0


def test_a_model_may_leave_the_door_open(serve: Serve, script: Script) -> None:
    server, gate, running = busy(serve, script, OPEN)
    expired = ask(server, 7, timeout_us=10_000)
    assert expired.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    gate.open()
    for call in running:
        call.result()
    server.wait_settled("m")
    assert server.ledger("m")[Outcome.EXPIRED] == 1
    assert sum(script.batches) == 5


def test_a_class_that_is_shed_is_refused_at_the_door_with_a_time_to_come_back(serve: Serve, script: Script) -> None:
    levels = ECHO.replace("dynamic_batching {}", "dynamic_batching { priority_levels: 2 default_priority_level: 1 }")
    script.execute_ns = 0
    server = serve({"m": (levels, script)})
    (running,) = server.engine.catalog.running()
    running.forecast.steer(Steering(shed={2: SHARE_OF}))

    def ask_as(priority: int) -> grpc.Future:
        request = message("m", [("x", "INT32", (1, 1))], [b"\1\0\0\0"])
        request.parameters["priority"].uint64_param = priority
        return server.stub.ModelInfer.future(request, timeout=PATIENCE)

    ask_as(1).result()
    refused = ask_as(2)
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "class 2 is not taken at present" in (refused.details() or "")
    assert ("grpc-retry-pushback-ms", "1000") in [tuple(pair) for pair in refused.trailing_metadata()]
    server.engine.ledger.drain()
    totals = server.engine.statistics.versions[running.route.queue.model_number]
    assert totals.refusals[Refusal.CLASS_SHED] == 1
    running.forecast.steer(Steering())
    ask_as(2).result()
