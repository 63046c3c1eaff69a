"""Traces of code that is not ours: what it traces itself joins the trace of the requests that it runs.

It does so by OpenTelemetry's API, for which a current span is all that is needed. Nothing here imports that: code that traces has
imported it, and for other code nothing is done.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from headrace.protocol.origin import leader_of, traceparent_of
from headrace.request import Head


class Traced(Protocol):
    """A batch, as far as its trace goes."""

    @property
    def heads(self) -> Iterable[Head]:
        """See `backends.base.Batch.heads`."""
        ...


class _Untraced:
    heads: Sequence[Head] = ()


UNTRACED: Traced = _Untraced()
"""What nobody has asked for."""


def joins() -> bool:
    """Whether the code of this process may trace: the API is imported, in full."""
    return hasattr(sys.modules.get("opentelemetry.trace"), "use_span")


def trace_of(heads: Iterable[Head]) -> str:
    """The context in which these run together, as a `traceparent`; empty if they are in no trace. See `leader_of`."""
    leader = leader_of(heads)
    return traceparent_of(leader.origin) if leader is not None else ""


def within(traceparent: str) -> AbstractContextManager[Any]:
    """While this lasts, the current span of this thread is that one."""
    if not traceparent or not joins():
        return nullcontext()
    api: Any = sys.modules["opentelemetry.trace"]
    _, trace, span, flags = traceparent.split("-")
    context = api.SpanContext(int(trace, 16), int(span, 16), True, api.TraceFlags(int(flags, 16)))
    return api.use_span(api.NonRecordingSpan(context))
