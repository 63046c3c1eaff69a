"""Spans of a batch job: one for a run of it, and in that one for each split that it finished, read to recorded."""

from __future__ import annotations

import os
from collections.abc import Mapping

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Status, StatusCode, set_span_in_context

from headrace.errors import HeadraceError, sentence
from headrace.telemetry import span_names as names
from headrace.telemetry.environment import Wish
from headrace.telemetry.export import MOST_AT_ONCE, exporter_of, resource_of, shut_down
from headrace.version import __version__

_FLUSH_SECONDS = 5.0


class JobTrace:
    """A run of a job, from now until it is closed.

    Args:
        wish: how traces are to be made.
        job: the id of the job.
        graph: what it runs: `span_names.MODEL`, `VERSION` and `DIGEST`.
        exporter: what sends the spans, where that is not what the environment says.
    """

    def __init__(self, wish: Wish, job: str, graph: Mapping[str, str | int], exporter: SpanExporter | None = None) -> None:
        self._processor = BatchSpanProcessor(
            exporter or exporter_of(wish), max_queue_size=wish.buffer, max_export_batch_size=min(MOST_AT_ONCE, wish.buffer)
        )
        provider = TracerProvider(resource=resource_of(os.getpid(), job), shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("headrace", __version__)
        self._graph = graph[names.MODEL]
        self._run = self._tracer.start_span(f"{names.JOB} {self._graph}", attributes={**graph, names.JOB_ID: job})
        self._inside = set_span_in_context(self._run)

    def split(self, began: int, attributes: Mapping[str, str | int]) -> None:
        """A split has been recorded that was begun to be read at `began`, in ns since 1970."""
        name = f"{names.SPLIT} {self._graph}"
        self._tracer.start_span(name, context=self._inside, start_time=began, attributes=dict(attributes)).end()

    def rows(self, rows: int, rejected: int) -> None:
        """What the run has done: rows that ran, or were rejected."""
        self._run.set_attributes({names.REQUEST_ROWS: rows, names.JOB_REJECTED: rejected})

    def close(self, error: BaseException | None) -> None:
        """The run ends; what was not sent yet has some seconds to be."""
        if error is not None:
            code = error.code.name if isinstance(error, HeadraceError) else type(error).__name__
            self._run.set_attribute(names.ERROR_TYPE, code)
            self._run.set_status(Status(StatusCode.ERROR, sentence(error)))
        self._run.end()
        shut_down(self._processor, _FLUSH_SECONDS)
