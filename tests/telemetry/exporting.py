"""A server whose traces go to a receiver in a process of its own, and what its ledger says they have to be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from headrace.ledger.collect import REQUEST_KIND, Collector
from headrace.ledger.home import Neighbour
from headrace.ledger.identity import Identity, Part, ring_number
from headrace.ledger.records import BatchRecord, RequestRecord
from tests.telemetry.receiver import read_book

GRPC, HTTP = "grpc", "http/protobuf"
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "10"}
ALL = {"OTEL_TRACES_SAMPLER": "always_on", **QUICK}


@dataclass
class Receiver:
    """Where spans arrive."""

    book: Path
    addresses: dict[str, str]
    process: subprocess.Popen[str]

    def environment(self, protocol: str, **more: str) -> dict[str, str]:
        """What has a server send its traces there."""
        address = self.addresses["grpc" if protocol == GRPC else "http"]
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{address}", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, **more}

    @property
    def headers(self) -> list[dict[str, str]]:
        return [headers for headers, _ in read_book(self.book)]

    @property
    def resources(self) -> list[dict[str, Any]]:
        return [attributes(each.resource) for _, message in read_book(self.book) for each in message.resource_spans]

    @property
    def spans(self) -> list[Span]:
        messages = [message for _, message in read_book(self.book)]
        scopes = [scope for message in messages for resource in message.resource_spans for scope in resource.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@contextmanager
def receiving(directory: Path, *options: str) -> Iterator[Receiver]:
    book = directory / "book"
    command = [sys.executable, "-m", "tests.telemetry.receiver", str(book), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            addresses = dict(part.split("=") for part in process.stdout.readline().split())
            yield Receiver(book, addresses, process)
        finally:
            process.kill()


def set_environment(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def attributes(holder: Any) -> dict[str, Any]:
    """The attributes of a span, a link or a resource."""
    return {each.key: value_of(each.value) for each in holder.attributes}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [value_of(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def whom(span: Any) -> tuple[int, int]:
    """The trace and the span that a span is, or that a link leads to."""
    return int.from_bytes(span.trace_id), int.from_bytes(span.span_id)


@dataclass(frozen=True)
class Expected:
    """A span as the ledger has it: its name, parent, and instants on the wall clock."""

    name: str
    parent: int
    start: int
    end: int
    links: frozenset[tuple[int, int]] = frozenset()


class Books:
    """Everything in the rings of a server, and the spans that it makes."""

    def __init__(self, server: Neighbour) -> None:
        self._identity = Identity(server.id)
        self.names = server.learn()
        self.requests: list[tuple[RequestRecord, int, int]] = []
        self.batches: list[tuple[BatchRecord, int, int]] = []
        chunks, overrun = Collector(server).take()
        assert overrun == 0
        for chunk in chunks:
            self.ahead = chunk.wall_ahead
            for position, row in enumerate(chunk.records.tolist(), chunk.first):
                record = RequestRecord(*row) if chunk.kind == REQUEST_KIND else BatchRecord(*row)
                who = (record.model, record.number) if record.number else (ring_number(chunk.ring), position)
                into: list[Any] = self.requests if chunk.kind == REQUEST_KIND else self.batches
                into.append((record, *who))

    def trace_of(self, record: RequestRecord, model: int, number: int) -> int:
        if record.context == 1:
            return record.trace_high << 64 | record.trace_low
        if record.parent:
            return self._identity.trace(record.parent_model, record.parent)
        return self._identity.trace(model, number)

    def expected(self) -> dict[tuple[int, int], Expected]:
        """By trace and span."""
        return {**self._of_requests(), **self._of_batches()}

    def _of_requests(self) -> dict[tuple[int, int], Expected]:
        found: dict[tuple[int, int], Expected] = {}
        for record, model, number in self.requests:
            trace, span = self.trace_of(record, model, number), self._identity.of(Part.REQUEST, model, number)
            parent, name = record.span, "inference.GRPCInferenceService/ModelInfer"
            if record.parent:
                parent, name = (
                    self._identity.of(Part.REQUEST, record.parent_model, record.parent),
                    f"rows {self._name(record.model)}",
                )
            begin = record.queued if record.parent else record.received
            found[trace, span] = self._span(name, parent, begin, record.sent)
            if record.queued:
                queue = self._identity.of(Part.QUEUE, model, number)
                found[trace, queue] = self._span("queue", span, record.queued, record.taken or record.sent)
            if record.executed:
                execute = self._identity.of(Part.EXECUTE, model, number)
                back = frozenset({self.batch(record.model, record.batch)})
                found[trace, execute] = self._span("execute", span, record.gathered or record.taken, record.executed, back)
        return found

    def _of_batches(self) -> dict[tuple[int, int], Expected]:
        found: dict[tuple[int, int], Expected] = {}
        for record, model, number in self.batches:
            name = self._name(record.model)
            if not record.number:
                trace, _ = self.batch(record.parent_model, record.parent)
                parent = self._identity.of(Part.BACKEND, record.parent_model, record.parent)
                span = self._identity.of(Part.BATCH, model, number)
                found[trace, span] = self._span(f"node {name}", parent, record.taken, record.executed)
                continue
            mine = self.batch(model, number)
            links = frozenset(
                (self.trace_of(*each), self._identity.of(Part.REQUEST, *each[1:]))
                for each in self.requests
                if (each[0].model, each[0].batch) == (model, number)
            )
            found[mine] = self._span(f"batch {name}", 0, record.taken, record.scattered or record.executed, links)
            backend = mine[0], self._identity.of(Part.BACKEND, model, number)
            found[backend] = self._span(f"backend {name}", mine[1], record.gathered or record.taken, record.executed)
        return found

    def batch(self, model: int, number: int) -> tuple[int, int]:
        return self._identity.batch_trace(model, number), self._identity.of(Part.BATCH, model, number)

    def _name(self, model: int) -> str:
        return self.names[model][0]

    def _span(self, name: str, parent: int, start: int, end: int, links: frozenset[tuple[int, int]] = frozenset()) -> Expected:
        return Expected(name, parent, start + self.ahead, end + self.ahead, links)


def seen(spans: list[Span]) -> dict[tuple[int, int], Expected]:
    """The same of what arrived; none twice."""
    assert len({whom(span) for span in spans}) == len(spans)
    return {
        whom(span): Expected(
            span.name,
            int.from_bytes(span.parent_span_id),
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            frozenset(map(whom, span.links)),
        )
        for span in spans
    }
