"""What goes along: how long there is, the trace, parameters. The model there says what it got; only order is compared."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from headrace.ledger.identity import Identity, Part
from tests.ledger.reading import reading
from tests.transport.serving import Asked, Server, tensor
from tests.triton.far import Triton
from tests.triton.here import Here
from tests.triton.proxy import Proxy
from tests.waiting import until

FAR_OFF = 100_000
"""Seconds; no machine is so slow."""
MICROSECONDS = 1_000_000

ONE, OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def told(answer: Any) -> tuple[int, str, dict[str, Any], int]:
    """The timeout in us, the id, the parameters and the rows of the request that the model there got."""
    request_id, parameters, rows = json.loads(answer.as_numpy("told")[0, 0])
    return int(answer.as_numpy("timeout")[0, 0]), request_id, parameters, rows


def row(count: int = 1) -> list[triton.InferInput]:
    return [tensor("x", np.zeros((count, 1)), "FP32")]


def test_one_request(here: Here, far: Triton, transport: str) -> None:
    here.add("tells", far.url)
    server = here.serve(transport)
    timeout, request_id, parameters, rows = told(
        server.client.infer(
            "tells",
            row(2),
            request_id="mine",
            client_timeout=2 * FAR_OFF,
            timeout=FAR_OFF * MICROSECONDS,
            parameters={"n": 3, "flag": True, "text": "é"},
            headers={"traceparent": ONE, "tracestate": "a=b", "x-other": "stays here"},
        )
    )
    # The earlier of the two, less what has passed.
    assert 0 < timeout <= FAR_OFF * MICROSECONDS
    assert request_id == "mine"
    assert parameters == {"n": 3, "flag": True, "text": "é", "traceparent": ONE, "tracestate": "a=b"}
    assert rows == 2


def test_nothing_that_nobody_said(here: Here, far: Triton, transport: str) -> None:
    here.add("tells", far.url)
    assert told(here.serve(transport).client.infer("tells", row())) == (0, "", {}, 1)


def together(server: Server, far: Triton, proxy: Proxy, *requests: dict[str, Any]) -> list[tuple[int, str, dict[str, Any], int]]:
    """What the model there was told of requests that came while another one was under way."""
    proxy.hold()
    ran = len(far.runs("tells"))
    first = Asked(server, "tells", row(), client_timeout=FAR_OFF)
    until(lambda: len(far.runs("tells")) > ran)
    asked = [Asked(server, "tells", row(), **request) for request in requests]
    until(lambda: server.waiting("tells") == len(requests))
    proxy.let()
    first.result()
    return [told(each.result()) for each in asked]


def test_an_impatient_client_does_not_fail_its_neighbours(here: Here, far: Triton, proxy: Proxy, transport: str) -> None:
    here.add("tells", proxy.url)
    server = here.serve(transport)
    answers = together(
        server, far, proxy, {"client_timeout": FAR_OFF}, {"client_timeout": 3 * FAR_OFF}, {"timeout": 2 * FAR_OFF * MICROSECONDS}
    )
    assert {rows for _, _, _, rows in answers} == {3}
    (timeout,) = {timeout for timeout, _, _, _ in answers}
    # Clients round their deadlines up, by a minute when they are so far off.
    assert 2 * FAR_OFF * MICROSECONDS < timeout < 4 * FAR_OFF * MICROSECONDS
    answers = together(server, far, proxy, {"client_timeout": FAR_OFF}, {})
    assert answers == [(0, "", {}, 2)] * 2


def test_the_trace_goes_on_from_the_execution_of_the_request(here: Here, far: Triton, transport: str) -> None:
    here.add("tells", far.url)
    server = here.serve(transport)
    server.engine.ledger.identity = identity = Identity("here")
    with reading(server.engine) as ledger:
        parameters = told(server.client.infer("tells", row(), headers={"traceparent": ONE, "tracestate": "a=b"}))[2]
        server.wait_settled("tells")
        ((_, record),) = ledger.take()
    span = identity.of(Part.EXECUTE, record.model, record.number)
    assert parameters == {"traceparent": f"{ONE[:36]}{span:016x}-01", "tracestate": "a=b"}


def test_the_trace_of_a_batch_is_the_first_that_is_sampled(here: Here, far: Triton, proxy: Proxy, transport: str) -> None:
    here.add("tells", proxy.url)
    server = here.serve(transport)
    headers = [{"traceparent": trace} for trace in (f"{OTHER[:-2]}00", ONE, OTHER)]
    answers = together(server, far, proxy, {}, *({"headers": each} for each in headers))
    assert len(answers) == 4
    assert {rows for _, _, _, rows in answers} == {4}
    # Which of them is first is the queue's affair: here, that of arrival.
    assert answers[0][2] == {"traceparent": ONE}


def test_requests_of_other_parameters_go_apart(here: Here, far: Triton, proxy: Proxy, transport: str) -> None:
    here.add("tells", proxy.url)
    server = here.serve(transport)
    given = [{"k": 1}, {"k": 1}, {"k": 2}, {}, {}, {"k": 1}]
    answers = together(server, far, proxy, *({"parameters": each} if each else {} for each in given))
    assert [parameters for _, _, parameters, _ in answers] == given
    assert [rows for _, _, _, rows in answers] == [2, 2, 1, 2, 2, 1]


def test_a_timeout_that_is_the_queues_is_not_passed_on(here: Here, far: Triton, transport: str) -> None:
    policy = f"default_timeout_microseconds: {2 * FAR_OFF * MICROSECONDS} allow_timeout_override: true"
    here.add("tells", far.url, config=f"dynamic_batching {{ default_queue_policy {{ {policy} }} }}")
    answer = here.serve(transport).client.infer("tells", row(), timeout=FAR_OFF * MICROSECONDS)
    assert told(answer)[0] == 0
