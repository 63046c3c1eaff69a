"""Sends spans by OpenTelemetry's exporters, from a thread of the SDK's, through a bounded buffer.

What cannot be sent is dropped and counted; nobody waits for it.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Sequence

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import format_span_id, format_trace_id

from headrace.clock import SECOND
from headrace.ledger.histograms import DURATION_EDGES, WHOLE
from headrace.ledger.report import Example, key_of
from headrace.ledger.side import give_way
from headrace.ledger.tally import Tally
from headrace.telemetry import span_names as names
from headrace.telemetry.environment import Wish
from headrace.version import __version__

log = logging.getLogger(__name__)

MOST_AT_ONCE = 128
_EDGES = DURATION_EDGES.tolist()
_HISTOGRAM_OF = {names.REQUEST: WHOLE, names.QUEUE: "queue", names.EXECUTE: "execute"}
"""Spans that last what a histogram counts."""


def resource_of(pid: int, server: str) -> Resource:
    """What a server is, with whatever OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say over it."""
    own = {"service.name": "headrace", "service.version": __version__, "service.instance.id": server, "process.pid": pid}
    return Resource(own).merge(OTELResourceDetector().detect())


def exporter_of(wish: Wish) -> SpanExporter:
    """The SDK's. Endpoint, headers, certificates, timeout and compression it finds in the environment."""
    if wish.is_http:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter()
    from headrace.telemetry.encoding import GrpcExporter

    return GrpcExporter()


def shut_down(processor: BatchSpanProcessor, seconds: float) -> None:
    """Send what waits, for so long at most: the SDK's own shutdown waits for as long as its exporter likes."""
    ending = threading.Thread(target=processor.shutdown, name="headrace-flush", daemon=True)
    ending.start()
    ending.join(seconds)


class Sender:
    """Sends spans.

    Args:
        exporter: to whom.
        wish: how many may wait.
        tally: where to count.
    """

    def __init__(self, exporter: SpanExporter, wish: Wish, tally: Tally) -> None:
        self._tally, self._room = tally, wish.buffer
        self._counted = _Counted(exporter, wish.endpoint, tally)
        self._given = 0
        self._processor = BatchSpanProcessor(
            self._counted, max_queue_size=wish.buffer, max_export_batch_size=min(MOST_AT_ONCE, wish.buffer)
        )

    @property
    def examples(self) -> dict[str, dict[str, Example]]:
        """Of each histogram, for each of its buckets, the latest request in it whose trace the endpoint has."""
        return self._counted.examples()

    def add(self, spans: Sequence[ReadableSpan]) -> None:
        """Send these, all or none: where there is no room for them, they are counted."""
        if self._waiting + len(spans) > self._room:
            self._tally.spans_unbuffered += len(spans)
            return
        self._given += len(spans)
        for span in spans:
            self._processor.on_end(span)

    def close(self, seconds: float) -> None:
        """Send what waits, for so long; what then still waits is counted as dropped."""
        shut_down(self._processor, seconds)
        if left := self._waiting:
            self._tally.spans_unbuffered += left
            log.warning("%d spans were not sent: the endpoint took too long", left)

    @property
    def _waiting(self) -> int:
        return self._given - self._counted.done


class _Counted(SpanExporter):
    """Counts what becomes of spans, and remembers examples. Called by one thread."""

    def __init__(self, exporter: SpanExporter, endpoint: str, tally: Tally) -> None:
        self._exporter, self._endpoint, self._tally = exporter, endpoint, tally
        self._lock = threading.Lock()
        self._latest: dict[tuple[str, str, int, int], tuple[int, int, int, int]] = {}
        self._reason = _Reason()
        self._failed = 0
        self.done = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Have the exporter send them."""
        try:
            result = self._exporter.export(spans)
        except Exception:
            log.exception("an exporter raised; this is a bug")
            result = SpanExportResult.FAILURE
        give_way()
        if result is SpanExportResult.SUCCESS:
            self._tally.spans_sent += len(spans)
            if self._failed:
                log.warning("spans can be sent to %s again; %d were dropped", self._endpoint, self._failed)
                self._failed = 0
            with self._lock:
                for span in spans:
                    self._note(span)
        else:
            self._tally.spans_failed += len(spans)
            if not self._failed:
                log.error("spans cannot be sent to %s, they are dropped and counted: %s", self._endpoint, self._reason.said)
            self._failed += len(spans)
        self.done += len(spans)
        return result

    def shutdown(self) -> None:
        """End."""
        self._exporter.shutdown()
        self._reason.close()

    def examples(self) -> dict[str, dict[str, Example]]:
        """By histogram and bucket."""
        with self._lock:
            latest = dict(self._latest)
        found: dict[str, dict[str, Example]] = {}
        for (what, model, version, bucket), (lasted, end, trace, span) in latest.items():
            example = Example(lasted, end / SECOND, format_trace_id(trace), format_span_id(span))
            found.setdefault(key_of(what, model, version), {})[str(bucket)] = example
        return found

    def _note(self, span: ReadableSpan) -> None:
        what, about, context = _HISTOGRAM_OF.get(span.name), span.attributes, span.context
        if what is None or not about or context is None or span.start_time is None or span.end_time is None:
            return
        if about.get(names.OUTCOME, "answered") != "answered" or names.MODEL not in about:
            return
        lasted = span.end_time - span.start_time
        key = what, str(about[names.MODEL]), int(str(about[names.VERSION])), bisect_left(_EDGES, lasted)
        self._latest[key] = lasted, span.end_time, context.trace_id, context.span_id


class _Reason(logging.Handler):
    """The last thing that OpenTelemetry has said, which says it anew for every attempt."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said = "no reason was given"
        self._theirs = logging.getLogger("opentelemetry")
        self._theirs.addHandler(self)
        self._theirs.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Remember it."""
        self.said = record.getMessage()

    def close(self) -> None:
        """Let it speak for itself again."""
        self._theirs.removeHandler(self)
        self._theirs.propagate = True
        super().close()
