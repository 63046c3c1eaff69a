"""Messages are made as the SDK makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from headrace.telemetry import encoding
from headrace.telemetry.encoding import GrpcExporter, encoded
from tests.telemetry.exporting import receiving

RESOURCE, SCOPE = Resource({"service.name": "headrace", "process.pid": 7}), InstrumentationScope("headrace", "1.0")

words = st.text(max_size=8)
integers, floats = st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False)
values: st.SearchStrategy[Any] = st.one_of(
    words, integers, floats, st.booleans(), *(st.lists(each, max_size=3).map(tuple) for each in (words, integers, floats))
)
attributes = st.dictionaries(words, values, max_size=5)
contexts = st.builds(
    SpanContext,
    st.integers(1, (1 << 128) - 1),
    st.integers(1, (1 << 64) - 1),
    st.booleans(),
    st.just(TraceFlags(1)),
    st.sampled_from([TraceState(), TraceState([("ot", "th:0")]), TraceState([("ot", "th:8;rv:1"), ("b", "2")])]),
)
instants = st.integers(0, 1 << 62)


@st.composite
def spans(draw: st.DrawFn) -> ReadableSpan:
    return ReadableSpan(
        draw(words),
        draw(contexts),
        draw(st.none() | contexts),
        RESOURCE,
        draw(attributes),
        links=[Link(each, about) for each, about in draw(st.lists(st.tuples(contexts, st.none() | attributes), max_size=3))],
        kind=draw(st.sampled_from(SpanKind)),
        status=draw(st.sampled_from([Status(), Status(StatusCode.ERROR), Status(StatusCode.ERROR, "it broke")])),
        start_time=draw(instants),
        end_time=draw(instants),
        instrumentation_scope=SCOPE,
    )


@given(st.lists(spans(), min_size=1, max_size=4))
def test_a_message_is_the_sdks(given: Sequence[ReadableSpan]) -> None:
    assert encoded(given) == encode_spans(given)


def test_spans_that_the_sdk_has_made_are_the_same_too() -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=RESOURCE)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("headrace", "1.0", attributes={"a": 1})
    with tracer.start_as_current_span("outside", attributes={"rows": 3}):
        tracer.start_span("inside").end()
    assert encoded(kept.get_finished_spans()) == encode_spans(kept.get_finished_spans())


def test_the_exporter_sends_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[Any]()
    monkeypatch.setattr(encoding, "encoded", lambda given: made.append(encoded(given)) or made[-1])
    context = SpanContext(1, 2, is_remote=False)
    span = ReadableSpan("one", context, resource=RESOURCE, start_time=1, end_time=2, instrumentation_scope=SCOPE)
    with receiving(tmp_path) as receiver:
        exporter = GrpcExporter(f"http://{receiver.addresses['grpc']}")
        assert exporter.export([span]) is SpanExportResult.SUCCESS
        exporter.shutdown()
        assert len(made) == 1
        assert [each.name for each in receiver.spans] == ["one"]
