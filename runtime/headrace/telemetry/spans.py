"""Spans made from records, after the fact, by OpenTelemetry's SDK.

A request is a span of its caller's trace, or of one of its own; in it are `queue` and `execute`. A batch is a trace of its own: a
span with a link to each of its requests, and from the `execute` of each a link back. Its child is what ran it, whose children are
what a graph visited. All instants are the server's: those of the ledger, moved onto its wall clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from headrace.budgets.outside import FAR, FAR_WAY
from headrace.clock import MICROSECOND
from headrace.errors import Code
from headrace.ledger.home import Name
from headrace.ledger.identity import Identity, Part
from headrace.ledger.records import BatchRecord, Outcome, Refusal, RequestRecord
from headrace.protocol.origin import GIVEN
from headrace.scheduling.plan import Reason
from headrace.telemetry import span_names as names
from headrace.telemetry.cohorts import Cohort, Settled
from headrace.telemetry.joining import Run
from headrace.version import __version__

Attributes = dict[str, Any]

_SCOPE = InstrumentationScope("headrace", __version__)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_FAULTS = (Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE)
"""Codes that are errors of a server, as OpenTelemetry's conventions for RPC have it."""
_FAR = dict(
    zip((*FAR, FAR_WAY), (names.FAR_QUEUE, names.FAR_GATHER, names.FAR_EXECUTE, names.FAR_SCATTER, names.FAR_WAY), strict=True)
)
_FINE, _FAULT = Status(StatusCode.UNSET), Status(StatusCode.ERROR)


class _Model(NamedTuple):
    """What spans say of a model, in short or with its digest."""

    name: str
    short: Attributes
    whole: Attributes

    def named(self, span: str) -> str:
        """The name of such a span of it."""
        return f"{span} {self.name}" if self.name else span


class SpanMaker:
    """Of one server.

    Args:
        identity: makes the ids.
        model_names: what the numbers of models mean.
        resource: what the server is.
    """

    def __init__(self, identity: Identity, model_names: Mapping[int, Name], resource: Resource) -> None:
        self.identity, self._names, self._resource = identity, model_names, resource
        self._models: dict[int, _Model] = {0: _Model("", {}, {})}

    def spans_of(self, cohort: Cohort, wall_ahead: int) -> list[ReadableSpan]:
        """All that a cohort is; `wall_ahead` is how far the wall clock is ahead of its instants, in ns."""
        return _Making(self, cohort, wall_ahead).made

    def span_of_run(self, run: Run) -> ReadableSpan:
        """What a Triton did, in the execution that it did it for. Its instants are by the clock there."""
        record, model = run.record, self.model_of(run.record.model)
        execute = _context(run.trace, self.identity.of(Part.EXECUTE, record.model, record.number), TraceState())
        parts = {name: run.parts[part] / MICROSECOND for part, name in _FAR.items() if part in run.parts}
        own = _context(run.trace, run.span, TraceState())
        return self.span(model.named(names.FAR), own, execute, (run.start, run.end), {**model.short, **parts})

    def batch_context(self, model: int, number: int, state: TraceState) -> SpanContext:
        """The span of a batch, in the trace of its own."""
        return _context(self.identity.batch_trace(model, number), self.identity.of(Part.BATCH, model, number), state)

    def model_of(self, number: int) -> _Model:
        """What a model is; 0 is none."""
        if (known := self._models.get(number)) is not None:
            return known
        name, version, digest = self._names.get(number, (f"#{number}", 0, ""))
        short: Attributes = {names.MODEL: name, names.VERSION: version}
        made = _Model(name, short, {**short, names.DIGEST: digest})
        if number in self._names:
            self._models[number] = made
        return made

    def context_of_parent(self, record: RequestRecord, trace: int) -> SpanContext | None:
        """The span that a request is a child of: that of the request it is part of, or its caller's."""
        if record.parent:
            return _context(trace, self.identity.of(Part.REQUEST, record.parent_model, record.parent), TraceState())
        if record.context == GIVEN:
            return SpanContext(trace, record.span, is_remote=True, trace_flags=TraceFlags(record.trace_flags))
        return None

    def span(  # noqa: PLR0913
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        instants: tuple[int, int],
        attributes: Attributes,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
        status: Status = _FINE,
    ) -> ReadableSpan:
        """A span of this server, between two instants of the wall clock in ns."""
        return ReadableSpan(
            name,
            context,
            parent,
            self._resource,
            attributes,
            links=links,
            kind=kind,
            status=status,
            start_time=instants[0],
            end_time=max(instants),
            instrumentation_scope=_SCOPE,
        )


class _Making:
    """The spans of one cohort."""

    def __init__(self, maker: SpanMaker, cohort: Cohort, wall_ahead: int) -> None:
        self._maker, self._cohort, self._wall_ahead = maker, cohort, wall_ahead
        self._state = _state_of(cohort.tracestate)
        self._why = cohort.why.words
        self.made: list[ReadableSpan] = []
        self._straggler = straggler_of(cohort.requests) if cohort.batch is not None and cohort.batch.padding else None
        first, batch = cohort.requests[0].record, cohort.batch
        self._batch = maker.batch_context(first.model, first.batch if batch is None else batch.number, self._state)
        links = [self._request(each) for each in cohort.requests]
        if cohort.batch is not None:
            self._add_batch(cohort.batch, links)

    def _request(self, request: Settled) -> Link:
        """Add the spans of a request, and give the link to it."""
        maker, (record, who, trace) = self._maker, request
        model = maker.model_of(record.model)
        context = _context(trace, maker.identity.of(Part.REQUEST, *who), self._state)
        about, code = self._about(record), Code(record.code)
        is_fault = code in _FAULTS
        if is_fault:
            about[names.ERROR_TYPE] = code.name
        is_part = record.parent > 0
        # Rows that were sent on were received with their request.
        begin = record.queued or record.received if is_part else record.received
        self.made.append(
            maker.span(
                model.named(names.ROWS) if is_part else names.REQUEST,
                context,
                maker.context_of_parent(record, trace),
                self._wall(begin, record.sent),
                {**model.whole, **about},
                kind=SpanKind.INTERNAL if is_part else SpanKind.SERVER,
                status=_FAULT if is_fault else _FINE,
            )
        )
        short = {**model.short, names.OUTCOME: about[names.OUTCOME]}
        if record.queued:
            queue = _context(trace, maker.identity.of(Part.QUEUE, *who), self._state)
            instants = self._wall(record.queued, record.taken or record.sent)
            self.made.append(maker.span(names.QUEUE, queue, context, instants, short))
        if record.executed:
            self._add_execute(request, context, short)
        late = {names.SLACK: about[names.SLACK]} if record.deadline else {}
        return Link(context, {names.PLACE: record.place, **late})

    def _about(self, record: RequestRecord) -> Attributes:
        about: Attributes = {} if record.parent else {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: names.METHOD}
        about |= {
            names.RPC_STATUS: Code(record.code).name,
            names.OUTCOME: Outcome(record.outcome).name.lower(),
            names.CLASS: record.level,
            names.REQUEST_ROWS: record.rows,
            names.BYTES_IN: record.bytes_in,
            names.BYTES_OUT: record.bytes_out,
            names.KEPT: self._why,
        }
        if record.client:
            about[names.CLIENT] = f"{record.client:016x}"
        if record.refusal:
            about[names.REFUSAL] = Refusal(record.refusal).name.lower()
        if record.deadline:
            about[names.DEADLINE] = _us(record.received, record.deadline)
            about[names.SLACK] = _us(record.sent, record.deadline)
        for name, begin, end in (
            (names.RECEIVE_US, 0 if record.parent else record.received, record.queued),
            (names.GATHER_US, record.taken, record.gathered),
            (names.SCATTER_US, record.executed, record.scattered),
            (names.SEND_US, record.scattered, record.sent),
        ):
            if begin and end:
                about[name] = _us(begin, end)
        return about

    def _add_execute(self, request: Settled, parent: SpanContext, model: Attributes) -> None:
        maker, batch, record = self._maker, self._cohort.batch, request.record
        about = {**model, names.NUMBER: record.batch, names.PLACE: record.place}
        if record.predicted:
            about[names.PREDICTED] = record.predicted / MICROSECOND
        if batch is not None:
            about |= {names.BATCH_ROWS: batch.rows, names.BATCH_REQUESTS: batch.requests, names.PADDING: batch.padding}
            about |= {names.REASON: Reason(batch.reason).name.lower(), names.INSTANCE: batch.instance}
        if self._straggler is not None:
            about[names.IS_STRAGGLER] = self._straggler == record.place
        context = _context(parent.trace_id, maker.identity.of(Part.EXECUTE, *request.id), self._state)
        instants = self._wall(record.gathered or record.taken, record.executed)
        self.made.append(maker.span(names.EXECUTE, context, parent, instants, about, links=[Link(self._batch)]))

    def _add_batch(self, batch: BatchRecord, links: Sequence[Link]) -> None:
        maker, model = self._maker, self._maker.model_of(batch.model)
        about: Attributes = {
            **model.whole,
            names.NUMBER: batch.number,
            names.REASON: Reason(batch.reason).name.lower(),
            names.BATCH_ROWS: batch.rows,
            names.BATCH_REQUESTS: batch.requests,
            names.BATCH_FAILED: batch.failed,
            names.PADDING: batch.padding,
            names.INSTANCE: batch.instance,
            names.KEPT: self._why,
        }
        if batch.predicted:
            about[names.PREDICTED] = batch.predicted / MICROSECOND
        if batch.gathered and batch.executed:
            about[names.ACTUAL] = _us(batch.gathered, batch.executed)
        if self._straggler is not None:
            about[names.STRAGGLER] = self._straggler
        status = _FAULT if batch.failed else _FINE
        instants = self._wall(batch.taken, batch.scattered or batch.executed)
        self.made.append(maker.span(model.named(names.BATCH), self._batch, None, instants, about, links=links, status=status))
        if batch.executed:
            backend = _context(self._batch.trace_id, maker.identity.of(Part.BACKEND, batch.model, batch.number), self._state)
            instants = self._wall(batch.gathered or batch.taken, batch.executed)
            self.made.append(maker.span(model.named(names.BACKEND), backend, self._batch, instants, model.short, status=status))
            self._add_visits(backend)

    def _add_visits(self, parent: SpanContext) -> None:
        for visit, who in self._cohort.visits:
            model = self._maker.model_of(visit.model)
            context = _context(parent.trace_id, self._maker.identity.of(Part.BATCH, *who), self._state)
            about = {
                **model.whole,
                names.BATCH_ROWS: visit.rows,
                names.BATCH_REQUESTS: visit.requests,
                names.BATCH_FAILED: visit.failed,
            }
            status = _FAULT if visit.failed else _FINE
            instants = self._wall(visit.taken, visit.executed)
            self.made.append(self._maker.span(model.named(names.NODE), context, parent, instants, about, status=status))

    def _wall(self, begin: int, end: int) -> tuple[int, int]:
        return begin + self._wall_ahead, end + self._wall_ahead


def straggler_of(requests: Sequence[Settled]) -> int:
    """The place of the request that the others of a padded batch were padded to: the most bytes a row."""
    return max((record for record, _, _ in requests), key=lambda record: record.bytes_in / max(1, record.rows)).place


def _context(trace: int, span: int, state: TraceState) -> SpanContext:
    return SpanContext(trace, span, is_remote=False, trace_flags=_SAMPLED, trace_state=state)


@lru_cache(64)
def _state_of(ot: str) -> TraceState:
    return TraceState([("ot", ot)])


def _us(begin: int, end: int) -> float:
    return (end - begin) / MICROSECOND
