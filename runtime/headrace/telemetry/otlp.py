"""Spans as others tell them: messages of OTLP, read and answered. Nothing in them is believed before it was looked at.

As its specification (https://opentelemetry.io/docs/specs/otlp/) has it: protobuf, or JSON in which ids are hexadecimal. Of a
span is kept what it says of time that a request of ours took elsewhere; whatever says nothing of that is counted, and left.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1 import trace_pb2

from headrace.errors import Code, InvalidRequest, sentence

TRACE_BYTES, SPAN_BYTES = 16, 8

_RAY = re.compile(
    r"(?:(?P<RAY_PROXY>proxy_\w+_request)|(?P<RAY_ROUTE>route_to_replica)|(?P<RAY_REPLICA>replica_handle_request))\b"
)
"""How Ray Serve calls its spans, from the outermost to the one in which a replica answers."""
_TRITON = "InferRequest"
"""How Triton calls a request; in it is a span for each model, and in that one for each execution."""
QUEUED, BEGUN, GATHERED, EXECUTED, SCATTERED, SENDS = (
    "QUEUE_START",
    "COMPUTE_START",
    "COMPUTE_INPUT_END",
    "COMPUTE_OUTPUT_START",
    "COMPUTE_END",
    "GRPC_SEND_START",
)
MARKS = frozenset((QUEUED, BEGUN, GATHERED, EXECUTED, SCATTERED, SENDS))
"""What Triton notes in its spans as events."""


class Role(IntEnum):
    """Whose a span is, and of what."""

    CLIENT = 1
    """A call, by whoever made it."""
    RAY_PROXY = 2
    """Ray Serve's proxy, from a request to its answer."""
    RAY_ROUTE = 3
    """In that, a replica was chosen: over before it answers."""
    RAY_REPLICA = 4
    """What the replica made of it."""
    TRITON = 5
    """A Triton's request."""
    TRITON_PART = 6
    """What it did for that."""


class Span(NamedTuple):
    """What is kept of a span. All of its instants are by one clock, that of who made it, in ns."""

    trace: int
    id: int
    parent: int
    role: Role
    start: int
    end: int
    marks: Mapping[str, int]

    @property
    def lasts(self) -> int:
        """How long it was, in ns."""
        return self.end - self.start


class Told(NamedTuple):
    """A message: the spans that may be of use, and how many were not, or were no spans."""

    spans: list[Span]
    unused: int
    malformed: int


def read_message(body: bytes, *, is_json: bool) -> Told:
    """The spans of an `ExportTraceServiceRequest`.

    Raises:
        InvalidRequest: it is none.
    """
    message = _from_json(body) if is_json else _from_protobuf(body)
    found, unused, malformed = list[Span](), 0, 0
    for span in (span for of in message.resource_spans for scope in of.scope_spans for span in scope.spans):
        role = _role_of(span)
        if not _is_whole(span):
            malformed += 1
        elif role is None:
            unused += 1
        else:
            trace, id, parent = (int.from_bytes(each) for each in (span.trace_id, span.span_id, span.parent_span_id))
            marks = {event.name: event.time_unix_nano for event in span.events if event.name in MARKS}
            found.append(Span(trace, id, parent, role, span.start_time_unix_nano, span.end_time_unix_nano, marks))
    return Told(found, unused, malformed)


def answer(rejected: int, why: str, *, is_json: bool) -> bytes:
    """What a message that could be read is answered with: of its spans, how many were not taken, and why."""
    response = ExportTraceServiceResponse()
    if rejected:
        response.partial_success.rejected_spans = rejected
        response.partial_success.error_message = why
    return _written(response, is_json=is_json)


def refusal(code: Code, why: str, *, is_json: bool) -> bytes:
    """What any other message is answered with over HTTP: a `google.rpc.Status`."""
    return _written(Status(code=code.value, message=why), is_json=is_json)


def _written(message: Message, *, is_json: bool) -> bytes:
    return json_format.MessageToJson(message, indent=None).encode() if is_json else message.SerializeToString()


def _from_protobuf(body: bytes) -> ExportTraceServiceRequest:
    try:
        return ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise InvalidRequest(f"the message is no ExportTraceServiceRequest: {sentence(error)}") from None


def _from_json(body: bytes) -> ExportTraceServiceRequest:
    try:
        told = json.loads(body)
        for of in told.get("resourceSpans", ()):
            for scope in of.get("scopeSpans", ()):
                for span in scope.get("spans", ()):
                    _mend(span)
        return json_format.ParseDict(told, ExportTraceServiceRequest(), ignore_unknown_fields=True)
    except (json_format.Error, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidRequest(f"the message is no ExportTraceServiceRequest in JSON: {sentence(error)}") from None


def _mend(span: dict[str, Any]) -> None:
    """Make of OTLP's JSON what protobuf calls JSON, in which bytes are base64; what is not wanted goes."""
    for key in ("attributes", "links", "status"):
        span.pop(key, None)
    for key in ("traceId", "spanId", "parentSpanId"):
        if key in span:
            span[key] = b64encode(binascii.unhexlify(span[key])).decode()


def _is_whole(span: trace_pb2.Span) -> bool:
    ids = len(span.trace_id) == TRACE_BYTES and len(span.span_id) == SPAN_BYTES and any(span.trace_id) and any(span.span_id)
    parent = len(span.parent_span_id) in (0, SPAN_BYTES)
    return ids and parent and 0 < span.start_time_unix_nano <= span.end_time_unix_nano < 1 << 63


def _role_of(span: trace_pb2.Span) -> Role | None:
    if span.name == _TRITON:
        return Role.TRITON
    if any(event.name in MARKS for event in span.events):
        return Role.TRITON_PART
    if (found := _RAY.match(span.name)) is not None and found.lastgroup is not None:
        return Role[found.lastgroup]
    return Role.CLIENT if span.kind == trace_pb2.Span.SPAN_KIND_CLIENT else None
