"""Spans as OTLP tells them: the message that the SDK's `encode_spans` makes of spans of ours, in a fifth of its time.

The SDK makes each attribute, span and scope as a message of its own, and protobuf copies it whole into the one around it, and
that into the next: every attribute four times. Here they are made where they are to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import SpanFlags
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceState

from headrace.ledger.side import give_way
from headrace.telemetry.otlp import SPAN_BYTES, TRACE_BYTES

_IS_KNOWN = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_IS_REMOTE = _IS_KNOWN | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


class GrpcExporter(OTLPSpanExporter):
    """The SDK's, but for how a message is made."""

    def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        return encoded(data)


def encoded(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
    """A message with these spans, one or more: all of one resource and scope, and without events."""
    message = ExportTraceServiceRequest()
    of = message.resource_spans.add(schema_url=spans[0].resource.schema_url)
    _put(of.resource.attributes, spans[0].resource.attributes)
    scope = of.scope_spans.add()
    if (told := spans[0].instrumentation_scope) is not None:
        scope.scope.name, scope.scope.version, scope.schema_url = told.name, told.version or "", told.schema_url or ""
        _put(scope.scope.attributes, told.attributes)
    for span in spans:
        _add(scope.spans, span)
        give_way()
    return message


def _add(to: Any, span: ReadableSpan) -> None:
    context, parent, status = span.context, span.parent, span.status
    assert context is not None, "it has an id"
    made = to.add(
        trace_id=context.trace_id.to_bytes(TRACE_BYTES),
        span_id=context.span_id.to_bytes(SPAN_BYTES),
        trace_state=_words(context.trace_state),
        name=span.name,
        kind=span.kind.value + 1,  # of OTLP's, 0 is not said
        start_time_unix_nano=span.start_time,
        end_time_unix_nano=span.end_time,
        flags=_flags(parent),
    )
    if parent is not None:
        made.parent_span_id = parent.span_id.to_bytes(SPAN_BYTES)
    made.status.code = status.status_code.value
    if status.description:
        made.status.message = status.description
    _put(made.attributes, span.attributes)
    for link in span.links:
        other = link.context
        added = made.links.add(
            trace_id=other.trace_id.to_bytes(TRACE_BYTES), span_id=other.span_id.to_bytes(SPAN_BYTES), flags=_flags(other)
        )
        _put(added.attributes, link.attributes)


def _put(to: Any, attributes: Mapping[str, Any] | None) -> None:
    for key, value in (attributes or {}).items():
        added = to.add()
        added.key = key
        _set(added.value, value)


def _set(to: AnyValue, value: Any) -> None:
    kind = type(value)
    if kind is str:
        to.string_value = value
    elif kind is float:
        to.double_value = value
    elif kind is int:
        to.int_value = value
    elif kind is bool:
        to.bool_value = value
    else:
        to.array_value.SetInParent()  # one without values is still one
        for each in value:
            _set(to.array_value.values.add(), each)


def _flags(other: SpanContext | None) -> int:
    return _IS_REMOTE if other is not None and other.is_remote else _IS_KNOWN


def _words(state: TraceState) -> str:
    return ",".join(f"{key}={value}" for key, value in state.items())
