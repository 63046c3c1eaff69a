"""Messages with spans of others: what is understood, what is left, and that nothing in them does harm."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Theirs

from headrace.errors import Code, InvalidRequest
from headrace.telemetry.otlp import Role, Span, Told, answer, read_message, refusal

TRACE, ID, PARENT = bytes(range(16)), bytes(range(1, 9)), bytes(range(2, 10))
BASE = {"trace_id": TRACE, "span_id": ID, "start_time_unix_nano": 100, "end_time_unix_nano": 175}


def theirs(name: str = "call", kind: int = Theirs.SPAN_KIND_CLIENT, **fields: Any) -> Theirs:
    return Theirs(**{"name": name, "kind": kind, **BASE, **fields})


def message(*spans: Theirs) -> bytes:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.extend(spans)
    return request.SerializeToString()


def read(*spans: Theirs) -> Told:
    return read_message(message(*spans), is_json=False)


def test_a_span_is_read() -> None:
    (span,) = read(theirs(parent_span_id=PARENT)).spans
    numbers = (int.from_bytes(each) for each in (TRACE, ID, PARENT))
    assert span == Span(*numbers, Role.CLIENT, 100, 175, {})
    assert span.lasts == 75


@pytest.mark.parametrize(
    ("span", "role"),
    [
        (theirs(kind=Theirs.SPAN_KIND_INTERNAL), None),
        (theirs(kind=Theirs.SPAN_KIND_SERVER), None),
        (theirs("proxy_grpc_request /x", Theirs.SPAN_KIND_SERVER), Role.RAY_PROXY),
        (theirs("route_to_replica m"), Role.RAY_ROUTE),
        (theirs("replica_handle_request app#m", Theirs.SPAN_KIND_SERVER), Role.RAY_REPLICA),
        (theirs("replica_handle_requests"), Role.CLIENT),
        (theirs("InferRequest", Theirs.SPAN_KIND_SERVER), Role.TRITON),
        (theirs("m", 1, events=[Theirs.Event(name="COMPUTE_START", time_unix_nano=120)]), Role.TRITON_PART),
    ],
)
def test_whose_a_span_is(span: Theirs, role: Role | None) -> None:
    told = read(span)
    assert [each.role for each in told.spans] == ([] if role is None else [role])
    assert (told.unused, told.malformed) == (role is None, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"trace_id": bytes(16)},
        {"trace_id": TRACE[:8]},
        {"trace_id": b""},
        {"span_id": bytes(8)},
        {"span_id": TRACE},
        {"parent_span_id": TRACE},
        {"start_time_unix_nano": 0},
        {"end_time_unix_nano": 99},
        {"end_time_unix_nano": 1 << 63},
    ],
)
def test_what_is_no_span_is_counted_and_the_others_are_read(wrong: dict[str, Any]) -> None:
    told = read(theirs(), theirs(**wrong), theirs())
    assert (len(told.spans), told.malformed) == (2, 1)


JSON = {
    "resourceSpans": [
        {
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "app"}}]},
            "scopeSpans": [
                {
                    "spans": [
                        {
                            "traceId": TRACE.hex().upper(),
                            "spanId": ID.hex(),
                            "parentSpanId": PARENT.hex(),
                            "name": "m",
                            "kind": 3,
                            "startTimeUnixNano": "100",
                            "endTimeUnixNano": 175,
                            "attributes": [{"key": "x", "value": {"bytesValue": "never looked at"}}],
                            "links": [{"traceId": TRACE.hex(), "spanId": ID.hex()}],
                            "events": [{"name": "QUEUE_START", "timeUnixNano": "110", "whatIsThis": 1}],
                            "comesWithTheNextVersion": {},
                        }
                    ]
                }
            ],
        }
    ]
}


def test_json_is_read_as_otlp_writes_it() -> None:
    (span,) = read_message(json.dumps(JSON).encode(), is_json=True).spans
    event = Theirs.Event(name="QUEUE_START", time_unix_nano=110)
    assert [span] == read(theirs("m", parent_span_id=PARENT, events=[event])).spans


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"1",
        b"{",
        b"\xff",
        b'{"resourceSpans": 1}',
        b'{"resourceSpans": [1]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "no"}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": 7}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "x"}]}]}]}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 100_000,
    ],
)
def test_what_is_no_json_of_otlp_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="no ExportTraceServiceRequest in JSON"):
        read_message(body, is_json=True)


@given(st.binary(max_size=200), st.integers(0, 100), st.booleans())
def test_garbage_is_refused_or_holds_no_span(garbage: bytes, at: int, is_json: bool) -> None:
    whole = json.dumps(JSON).encode() if is_json else message(theirs())
    for body in (garbage, whole[:at] + garbage + whole[at:], whole[:at]):
        try:
            told = read_message(body, is_json=is_json)
        except InvalidRequest:
            continue
        assert len(told.spans) + told.unused + told.malformed <= 100


def test_answers_say_what_was_not_taken_and_why() -> None:
    assert answer(0, "", is_json=False) == b""
    assert json.loads(answer(0, "", is_json=True)) == {}
    told = ExportTraceServiceResponse.FromString(answer(3, "no room", is_json=False)).partial_success
    assert (told.rejected_spans, told.error_message) == (3, "no room")
    assert json.loads(answer(3, "no room", is_json=True)) == {"partialSuccess": {"rejectedSpans": "3", "errorMessage": "no room"}}
    assert Status.FromString(refusal(Code.RESOURCE_EXHAUSTED, "too large", is_json=False)) == Status(code=8, message="too large")
    assert json.loads(refusal(Code.INVALID_ARGUMENT, "no", is_json=True)) == {"code": 3, "message": "no"}
