"""What spans of others say of requests, on a clock of the test: durations, each by one clock, and nothing that was not told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.budgets.attribution import Allowance
from headrace.budgets.outside import ABSENT, outside_of
from headrace.clock import MILLISECOND, SECOND
from headrace.ledger.identity import Identity, Part
from headrace.ledger.records import Outcome
from headrace.telemetry.joining import PATIENCE_NS, Fate, Joiner
from headrace.telemetry.otlp import Role, Span
from tests.budgets.making import NOON, objective, request, requests

IDENTITY = Identity("a server")
TRACE, CALLER = 5 << 64 | 6, 7
CALLED = {"context": 1, "trace_high": 5, "trace_low": 6, "span": CALLER, "trace_flags": 1, "number": 1, "batch": 1}
ELSEWHERE = 3 * 3600 * SECOND
"""What the clock of another machine says meanwhile."""


def called(at: int = NOON, outcome: Outcome = Outcome.ANSWERED, **more: float) -> dict[str, int]:
    """A request of 10 ms, of which 8 are its execution."""
    stages = {name: more.pop(name) for name in ("queue", "execute") if name in more}
    fields: Any = more
    return request(at, outcome, **{"queue": 2, "execute": 8, **stages}) | CALLED | fields


def span(id: int, parent: int, role: Role, ms: float, trace: int = TRACE, at: float = 0, **marks: float) -> Span:
    start = ELSEWHERE + round(at * MILLISECOND)
    told = {name: ELSEWHERE + round(instant * MILLISECOND) for name, instant in marks.items()}
    return Span(trace, id, parent, role, start, start + round(ms * MILLISECOND), told)


def client(ms: float, id: int = CALLER, **more: Any) -> Span:
    return span(id, 0, Role.CLIENT, ms, **more)


def said(records: list[dict[str, int]], *spans: Span) -> tuple[list[dict[str, float]], dict[Fate, int]]:
    """What was told of each request, in ms, and what became of the spans."""
    joiner = Joiner(IDENTITY)
    joiner.add_requests(requests(*records), NOON)
    joiner.add_spans(spans, NOON)
    joined = joiner.take(NOON, is_end=True)
    told = [
        {name: row[name] / MILLISECOND for name in joined.dtype.names or () if name != "record" and row[name] != ABSENT}
        for row in joined
    ]
    return told, {fate: count for fate, count in joiner.fates.items() if count}


def test_the_network_is_what_the_client_waited_and_we_did_not_take() -> None:
    assert said([called()], client(13)) == ([{"client": 13, "network": 3}], {Fate.JOINED: 1})


def test_without_a_span_of_the_client_nothing_is_said() -> None:
    assert said([called()]) == ([], {})
    assert said([called()], client(13, id=8)) == ([], {Fate.UNMATCHED: 1})
    assert said([called()], client(13, trace=TRACE + 1)) == ([], {Fate.UNMATCHED: 1})
    assert said([called(parent=3)], client(13)) == ([], {Fate.UNMATCHED: 1}), "rows that a graph sent on have no client"
    assert said([called(trace_flags=0)], client(13)) == ([], {Fate.UNMATCHED: 1}), "its caller records nothing"


@pytest.mark.parametrize("ms", [9.99, 3601 * 1000, 0])
def test_what_cannot_be_is_dropped_and_counted(ms: float) -> None:
    assert said([called()], client(ms)) == ([], {Fate.IMPLAUSIBLE: 1})


def test_a_span_over_several_requests_says_nothing_of_any() -> None:
    assert said([called(), called(number=2)], client(40)) == ([], {Fate.AMBIGUOUS: 1})


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.EXPIRED])
def test_whose_client_did_not_wait_is_left_out(outcome: Outcome) -> None:
    assert said([called(outcome=outcome)], client(13))[0] == []


REPLICA, ROUTE, PROXY = span(CALLER, 21, Role.RAY_REPLICA, 12), span(21, 22, Role.RAY_ROUTE, 1), span(22, 23, Role.RAY_PROXY, 15)


def test_ray_serve_is_around_us_and_the_network_around_that() -> None:
    told, fates = said([called()], PROXY, REPLICA, client(20, id=23), ROUTE)
    assert (told, fates) == ([{"client": 20, "ray": 5, "network": 5}], {Fate.JOINED: 4})
    assert said([called()], PROXY, REPLICA, ROUTE) == ([{"ray": 5}], {Fate.JOINED: 3}), "the client says nothing"
    told, fates = said([called()], REPLICA, client(20, id=21))
    assert (told, fates) == ([{"client": 20, "ray": 2, "network": 8}], {Fate.JOINED: 2}), "there was no proxy"


def test_ray_serve_may_end_its_span_when_its_client_has_its_answer() -> None:
    told, fates = said([called()], PROXY, REPLICA, ROUTE, client(14, id=23))
    assert (told, fates) == ([{"ray": 5}], {Fate.JOINED: 3, Fate.IMPLAUSIBLE: 1})


def test_a_part_of_ray_serve_is_not_taken_for_all_of_it() -> None:
    assert said([called()], REPLICA, ROUTE) == ([], {Fate.UNMATCHED: 2})
    assert said([called()], REPLICA, ROUTE, client(20, id=22)) == ([], {Fate.UNMATCHED: 3})
    assert said([called()], REPLICA, PROXY, client(20, id=23)) == ([], {Fate.UNMATCHED: 3})


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_what_is_told_adds_up_to_what_the_client_waited(ours: int, ray: int, network: int) -> None:
    spans = [
        Span(TRACE, CALLER, 22, Role.RAY_REPLICA, 1, 1 + ours, {}),
        Span(TRACE, 22, 23, Role.RAY_PROXY, 1, 1 + ours + ray, {}),
        Span(TRACE, 23, 0, Role.CLIENT, 1, 1 + ours + ray + network, {}),
    ]
    joiner = Joiner(IDENTITY)
    joiner.add_requests(requests(called() | {"received": NOON, "sent": NOON + ours}), NOON)
    joiner.add_spans(spans, NOON)
    (row,) = joiner.take(NOON, is_end=True)
    assert (row["client"], row["ray"], row["network"]) == (ours + ray + network, ray, network)


EXECUTE = IDENTITY.of(Part.EXECUTE, 1, 1)
STEPS = {"COMPUTE_START": 2.5, "COMPUTE_INPUT_END": 3, "COMPUTE_OUTPUT_START": 5, "COMPUTE_END": 5.25}


def far(**changes: float) -> list[Span]:
    """A Triton's spans of a request that it had for 6 of our 8 ms."""
    return [
        span(41, EXECUTE, Role.TRITON, 6),
        span(42, 41, Role.TRITON_PART, 5, QUEUE_START=1),
        span(43, 42, Role.TRITON_PART, 4, **(STEPS | changes)),
    ]


def test_what_a_triton_did_is_within_our_execution() -> None:
    there = {"far_queue": 1.5, "far_gather": 0.5, "far_execute": 2, "far_scatter": 0.25, "far_way": 2}
    assert said([called()], *far()) == ([there], {Fate.JOINED: 3})
    assert said([called()], *far(), client(13)) == ([there | {"client": 13, "network": 3}], {Fate.JOINED: 4})


def test_what_a_triton_tidies_up_when_it_has_answered_nobody_waits_for() -> None:
    root = span(41, EXECUTE, Role.TRITON, 9, GRPC_SEND_START=5.125)
    ((told,), _) = said([called()], root, *far()[1:])
    assert told == {"far_queue": 1.5, "far_gather": 0.5, "far_execute": 2, "far_scatter": 0.125, "far_way": 2.875}
    backwards = span(41, EXECUTE, Role.TRITON, 6, GRPC_SEND_START=-1)
    assert said([called()], backwards, *far()[1:])[1] == {Fate.IMPLAUSIBLE: 3}


def test_of_an_ensemble_there_the_steps_are_added() -> None:
    later = {name: at + 0.5 for name, at in STEPS.items()}
    second = [span(44, 41, Role.TRITON_PART, 1, QUEUE_START=2.75), span(45, 44, Role.TRITON_PART, 1, **later)]
    ((told,), _) = said([called()], *far(), *second)
    assert told == {"far_queue": 1.75, "far_gather": 1, "far_execute": 4, "far_scatter": 0.5, "far_way": 2}


def test_a_mark_that_is_not_there_leaves_its_parts_out() -> None:
    spans = far()
    del spans[2].marks["COMPUTE_INPUT_END"]  # type: ignore[attr-defined]
    ((told,), _) = said([called()], *spans)
    assert told == {"far_queue": 1.5, "far_scatter": 0.25, "far_way": 2}


def test_a_triton_that_had_it_for_longer_than_we_did_or_whose_marks_go_back_is_not_believed() -> None:
    assert said([called(execute=5.9)], *far())[1] == {Fate.IMPLAUSIBLE: 3}
    assert said([called()], *far(COMPUTE_END=4))[1] == {Fate.IMPLAUSIBLE: 3}
    assert said([called(number=2)], *far())[1] == {Fate.UNMATCHED: 3}, "another execution"


def test_spans_of_a_trace_are_waited_for_and_requests_for_their_spans() -> None:
    joiner = Joiner(IDENTITY)
    joiner.add_requests(requests(called()), NOON)
    later = NOON + 20 * SECOND
    joiner.add_spans([client(13)], later)
    assert len(joiner.take(later + PATIENCE_NS - 1)) == 0
    assert joiner.held == 1
    joiner.add_spans([client(13), *far()], later + PATIENCE_NS - 1)
    (row,) = joiner.take(later + PATIENCE_NS)
    assert (row["network"], row["far_way"], joiner.held) == (3 * MILLISECOND, 2 * MILLISECOND, 0)
    joiner.add_spans([client(13)], later + PATIENCE_NS)
    assert len(joiner.take(later, is_end=True)) == 0, "it was sent once more"
    assert joiner.fates == {Fate.JOINED: 4, Fate.UNMATCHED: 1}


def test_the_requests_that_are_held_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.telemetry.joining._MOST_REQUESTS", 3)
    joiner = Joiner(IDENTITY)
    for span_id in range(1, 6):
        joiner.add_requests(requests(called(span=span_id, number=span_id)), NOON)
    joiner.add_requests(requests(), NOON)
    joiner.add_spans([client(13, id=span_id) for span_id in range(1, 6)], NOON)
    assert joiner.take(NOON, is_end=True)["record"]["span"].tolist() == [3, 4, 5]
    joiner.add_requests(requests(called()), NOON)
    joiner.add_requests(requests(), NOON + 61 * SECOND)
    joiner.add_spans([client(13)], NOON + 61 * SECOND)
    assert len(joiner.take(NOON, is_end=True)) == 0


ALLOWED = Allowance(20 * MILLISECOND, np.array([1, 4, 1, 12, 1, 1]) * float(MILLISECOND), np.ones(6))
NAMES = {1: ("m", 1, "d")}


def outside(records: list[dict[str, int]], *spans: Span) -> dict[str, Any]:
    joiner = Joiner(IDENTITY)
    joiner.add_requests(requests(*records), NOON)
    joiner.add_spans(spans, NOON)
    return outside_of(objective(), ALLOWED, joiner.take(NOON, is_end=True), NAMES)


def test_an_objective_is_told_what_was_late_for_clients_and_where() -> None:
    """Of 20 ms. One is late by the network; one is 12 ms late in its execution, and waits 4 ms outside, 3 in Ray Serve."""
    records = [called(), called(span=8, number=2, execute=24), called(span=9, number=3)]
    spans = [client(30), client(13, id=9), span(8, 88, Role.RAY_PROXY, 29), span(88, 0, Role.CLIENT, 30)]
    told = outside(records, *spans)
    assert told["clients"] == {
        "requests": 3,
        "late": 2,
        "charged": {
            **dict.fromkeys(("receive", "queue", "gather", "scatter", "send"), 0.0),
            "execute": pytest.approx(12 / 16),
            "network": pytest.approx(1 + 1 / 16),
            "ray": pytest.approx(3 / 16),
        },
    }
    assert told["network"] == {"requests": 3, "usual_ms": 3, "long_ms": pytest.approx(18.3), "share": pytest.approx(24 / 73)}
    assert told["ray"] == {"requests": 1, "usual_ms": 3, "long_ms": 3, "share": pytest.approx(3 / 30)}


def test_an_objective_is_told_nothing_that_was_not_told_and_nothing_of_others() -> None:
    assert outside([called()]) == {}
    assert outside([called(model=2)], client(13)) == {}
    assert outside([called(outcome=Outcome.INVALID)], client(13)) == {}
    assert set(outside([called()], *far())) == {"far_queue", "far_gather", "far_execute", "far_scatter", "far_way"}
