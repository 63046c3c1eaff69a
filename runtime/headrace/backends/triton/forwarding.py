"""What of a batch goes along to the server: how long there is, the trace it belongs to, parameters. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from headrace.backends.triton.messages import Header
from headrace.backends.triton.settings import Settings
from headrace.protocol.origin import leader_of, traceparent_of
from headrace.request import Head, Parameter

_PARENT, _STATE = "traceparent", "tracestate"


class Part(NamedTuple):
    """Neighbours in a batch whose parameters are the same, so that they can be one request."""

    start: int
    stop: int
    requests: Sequence[Head]


def latest_deadline(requests: Iterable[Head], *, timeout_is_deadline: bool = True) -> int | None:
    """When nobody waits any more, in ns: the latest deadline, so that an impatient client does not fail its neighbours.

    None when there is one who waits for ever.
    """
    latest: int | None = None
    for request in requests:
        deadlines = [] if request.deadline is None else [request.deadline]
        if request.timeout_ns and timeout_is_deadline:
            deadlines.append(request.received + request.timeout_ns)
        if not deadlines:
            return None
        latest = max(latest or 0, min(deadlines))
    return latest


def parts_of(heads: Sequence[Head], offsets: Sequence[int]) -> list[Part]:
    """The batch in parts of neighbours whose parameters are the same."""
    if len(offsets) != len(heads) + 1 or not any(head.parameters for head in heads):
        return [Part(0, offsets[-1], heads)]
    numbered = groupby(enumerate(heads), key=lambda each: _own_parameters(each[1]))
    groups = [[place for place, _ in group] for _, group in numbered]
    return [Part(offsets[g[0]], offsets[g[-1] + 1], [heads[place] for place in g]) for g in groups]


def _own_parameters(request: Head) -> Mapping[str, Parameter]:
    return {key: value for key, value in request.parameters.items() if key not in (_PARENT, _STATE)}


def trace_of(requests: Sequence[Head]) -> list[tuple[str, str]]:
    """The trace context of these requests: see `leader_of`. A `tracestate` is known only where headers become parameters."""
    leader = leader_of(requests)
    if leader is None:
        return []
    state = leader.parameters.get(_STATE)
    return [(_PARENT, traceparent_of(leader.origin)), *([(_STATE, str(state))] if state else [])]


def header_of(settings: Settings, requests: Sequence[Head], timeout_us: int) -> Header:
    """What goes along with the tensors of these requests, whose parameters are the same. An id is that of one request."""
    one = requests[0] if len(requests) == 1 else None
    parameters = _own_parameters(requests[0]) if requests and requests[0].parameters else {}
    return Header(settings.model, settings.version, one.id if one is not None else "", parameters, timeout_us)
