"""Which request a span of somebody else belongs to, and what it says of that one's time. Pure: records and spans to durations.

A call is joined by the ids of its trace and of the span that called: what the record of the request has as its parent. Around
our own wall time there may be what Ray Serve took, and around that the call as its client saw it; what is between two of them is
the difference of two *durations*, each by one clock. No two clocks are ever compared, and what is not there is not guessed:

    client ─────────────────────────────────        network = client - (Ray Serve, or ours)
       Ray Serve ─────────────────────────          ray = Ray Serve - ours
          received ─────────────── sent             ours, by the ledger

What a Triton did for a batch is within the stage execute of the request that the batch was sent for. It is mapped onto our stages
as its statistics are: queue, compute input (gather), compute infer (execute), compute output (scatter); `way` is the rest of our
stage, in which it had not got the request or was done with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.budgets.outside import ABSENT, CLIENT, FAR, FAR_WAY, JOINED, NETWORK, RAY
from headrace.clock import SECOND
from headrace.ledger.identity import Identity, Part
from headrace.ledger.records import REQUEST, Outcome, Records, RequestRecord, at, concatenated
from headrace.protocol.origin import GIVEN
from headrace.telemetry.otlp import BEGUN, EXECUTED, GATHERED, QUEUED, SCATTERED, SENDS, Role, Span
from headrace.telemetry.sampling import SAMPLED, hashed

PATIENCE_NS = 6 * SECOND
"""How long spans of a trace are waited for: a little longer than an SDK collects its own, unless it was told otherwise."""
_HELD_NS = 60 * SECOND
"""How long a request waits for the spans of others."""
_MOST_REQUESTS = 1 << 17
_MOST_PARENTS = 16
_LONGEST_NS = 3600 * SECOND
"""What is said to have lasted longer is not believed."""
_RAY = (Role.RAY_PROXY, Role.RAY_ROUTE, Role.RAY_REPLICA)


class Fate(IntEnum):
    """What became of a span."""

    JOINED = 0
    UNMATCHED = 1
    """No request of ours is known that it belongs to."""
    AMBIGUOUS = 2
    """Several requests have it as their parent: it says nothing of any one of them."""
    IMPLAUSIBLE = 3
    """What it encloses lasted longer, or it lasted an hour."""


@dataclass(slots=True)
class _Trace:
    since: int
    spans: dict[int, Span] = field(default_factory=dict[int, Span])


class _Verdict(NamedTuple):
    """What some spans say of the request at a place among those that are held; nothing, unless their fate is to be joined."""

    place: int
    spans: Sequence[Span]
    fate: Fate
    parts: Mapping[str, int]


class Run(NamedTuple):
    """What a Triton did for an execution: ids of trace and span, begin and end by the clock there, how long its parts took."""

    record: RequestRecord
    trace: int
    span: int
    start: int
    end: int
    parts: Mapping[str, int]


class Joiner:
    """Of one server.

    Attributes:
        fates: what became of spans, counted.
        runs: what Tritons did; whoever wants to know takes it out.

    Args:
        identity: makes the ids of the spans that it hands on.
    """

    def __init__(self, identity: Identity) -> None:
        self._seed = identity.seed
        self._requests: Records = np.zeros(0, REQUEST)
        self._seen = np.zeros(0, np.int64)
        self._is_called, self._is_run = np.zeros(0, bool), np.zeros(0, bool)
        self._traces: dict[int, _Trace] = {}
        self.fates: Counter[Fate] = Counter()
        self.runs: list[Run] = []

    @property
    def held(self) -> int:
        """How many spans wait."""
        return sum(len(trace.spans) for trace in self._traces.values())

    def add_requests(self, records: Records, now: int) -> None:
        """Add records of requests; `now` is in ns. Held are those whose caller has its trace recorded, and got an answer."""
        wanted = (records["context"] == GIVEN) & (records["trace_flags"] & SAMPLED != 0)
        wanted &= (records["outcome"] != Outcome.EXPIRED) & (records["outcome"] != Outcome.CANCELLED)
        more = at(records, wanted)[-_MOST_REQUESTS:]
        keep = self._seen > now - _HELD_NS
        keep[: max(0, len(keep) + len(more) - _MOST_REQUESTS)] = False
        if keep.all() and not len(more):
            return
        none = np.zeros(len(more), bool)
        self._requests = concatenated(at(self._requests, keep), more)
        self._seen = np.concatenate([self._seen[keep], np.full(len(more), now)])
        self._is_called = np.concatenate([self._is_called[keep], none])
        self._is_run = np.concatenate([self._is_run[keep], none])

    def add_spans(self, spans: Iterable[Span], now: int) -> None:
        """Add spans; `now` is in ns. One that was sent twice is one."""
        for span in spans:
            self._traces.setdefault(span.trace, _Trace(now)).spans[span.id] = span

    def take(self, now: int, *, is_end: bool = False) -> Records:
        """What is known of requests whose spans have been waited for: an array of `JOINED`.

        Args:
            now: in ns.
            is_end: nothing more will come.
        """
        due = [key for key, trace in self._traces.items() if is_end or trace.since <= now - PATIENCE_NS]
        known = {(span.trace, span.id): span for key in due for span in self._traces.pop(key).spans.values()}
        if not known:
            return np.zeros(0, JOINED)
        found: dict[int, dict[str, int]] = {}
        left = set(known)
        for verdict in (*self._calls(known), *self._runs(known)):
            mine = left.intersection((span.trace, span.id) for span in verdict.spans)
            left -= mine
            self.fates[verdict.fate] += len(mine)
            if verdict.fate is Fate.JOINED:
                found.setdefault(verdict.place, {}).update(verdict.parts)
        self.fates[Fate.UNMATCHED] += len(left)
        joined = np.zeros(len(found), JOINED)
        joined["record"] = self._requests[list(found)]
        for name in JOINED.names[1:]:  # pyright: ignore[reportOptionalSubscript]
            joined[name] = [parts.get(name, ABSENT) for parts in found.values()]
        return joined

    def _calls(self, known: Mapping[tuple[int, int], Span]) -> Iterator[_Verdict]:
        """Of spans that are the parent of a request, and what is around them."""
        mine = np.flatnonzero(~self._is_called & (self._requests["parent"] == 0))
        of = at(self._requests, mine)
        spans = list(known.values())
        high, low, ids = np.array([(*divmod(span.trace, 1 << 64), span.id) for span in spans], np.uint64).T
        wanted = self._key(high, low, ids)
        for span, places in zip(spans, _places(self._key(of["trace_high"], of["trace_low"], of["span"]), wanted), strict=True):
            if len(places):
                place = int(mine[places[0]])
                self._is_called[mine[places]] = True
                for shell, parts in _shells(self._requests[place], _chain(span, known)):
                    yield _Verdict(place, shell, Fate.AMBIGUOUS if len(places) > 1 else _fate_of(parts), parts)

    def _runs(self, known: Mapping[tuple[int, int], Span]) -> Iterator[_Verdict]:
        """Of what a Triton did for an execution."""
        roots = [span for span in known.values() if span.role is Role.TRITON]
        if not roots:
            return
        can_be = ~self._is_run & (self._requests["executed"] > 0) & (self._requests["number"] > 0)
        mine = np.flatnonzero(can_be)
        of = at(self._requests, mine)
        keys = hashed(self._seed, of["model"].astype(np.uint64) << np.uint64(8) | np.uint64(Part.EXECUTE), of["number"])
        runs: dict[int, list[Span]] = {}
        for root, places in zip(roots, _places(keys, np.array([root.parent for root in roots], np.uint64)), strict=True):
            if len(places):
                runs.setdefault(int(mine[places[0]]), []).append(root)
        paths: dict[tuple[int, int], list[list[Span]]] = {}
        for span in known.values():
            if span.role is Role.TRITON_PART:
                path = _upwards(span, known)
                paths.setdefault((path[-1].trace, path[-1].id), []).append(path)
        for place, its in runs.items():
            within = [(root, paths.get((root.trace, root.id), [])) for root in its]
            parts = _parts_within(self._requests[place], within)
            self._is_run[place] = True
            verdict = _Verdict(place, [*its, *(path[0] for _, its_paths in within for path in its_paths)], _fate_of(parts), parts)
            if verdict.fate is Fate.JOINED:
                record = RequestRecord(*self._requests[place].tolist())
                start, end = min(root.start for root in its), max(root.end for root in its)
                self.runs.append(Run(record, its[0].trace, its[0].id, start, end, parts))
            yield verdict

    def _key(self, high: NDArray[Any], low: NDArray[Any], span: NDArray[Any]) -> NDArray[np.uint64]:
        return hashed(self._seed, hashed(self._seed, high, low), span)


def _places(keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> Iterator[NDArray[np.intp]]:
    """Where each of `wanted` is among `keys`."""
    order = np.argsort(keys, kind="stable")
    ends = (np.searchsorted(keys[order], wanted, side=side).tolist() for side in ("left", "right"))
    return (order[begin:end] for begin, end in zip(*ends, strict=True))


def _fate_of(parts: Mapping[str, int]) -> Fate:
    if not parts:
        return Fate.UNMATCHED
    return Fate.JOINED if all(0 <= part <= _LONGEST_NS for part in parts.values()) else Fate.IMPLAUSIBLE


def _chain(span: Span, known: Mapping[tuple[int, int], Span]) -> list[Span]:
    """A span, and those around it: Ray Serve's, and who called that."""
    chain = [span]
    while chain[-1].role in _RAY and len(chain) < _MOST_PARENTS:
        above = known.get((span.trace, chain[-1].parent))
        if above is None:
            break
        chain.append(above)
    return chain


def _shells(record: Any, chain: Sequence[Span]) -> Iterator[tuple[Sequence[Span], dict[str, int]]]:
    """What a chain of spans says of a request, from the inside out: Ray Serve's, then the client's.

    Each shell is judged for itself: Ray Serve may end its span when the client has long read the answer.
    """
    ours = int(record["sent"] - record["received"])
    client = chain[-1] if chain[-1].role is Role.CLIENT else None
    if rays := [span for span in chain if span.role in _RAY]:
        # Which replica, is decided before that answers: it is not around us. Nor is a replica all of it, if a proxy called.
        if rays[-1].role is Role.RAY_ROUTE or (rays[-1].role is Role.RAY_REPLICA and client is None):
            return
        yield rays, {RAY: rays[-1].lasts - ours}
        ours = max(ours, rays[-1].lasts)
    if client is not None:
        yield (client,), {CLIENT: client.lasts, NETWORK: client.lasts - ours}


def _parts_within(record: Any, runs: Iterable[tuple[Span, Iterable[Sequence[Span]]]]) -> dict[str, int]:
    """What a Triton did for an execution: the sums over its requests, and over what is in each, with the path up to it."""
    parts = {FAR_WAY: int(record["executed"] - record["gathered"])}
    for root, paths in runs:
        # What it does when the answer is on its way – it tidies up, then ends its spans –, nobody waits for.
        answered = root.marks.get(SENDS, root.end)
        if answered < root.start:
            return {FAR_WAY: ABSENT}
        parts[FAR_WAY] -= answered - root.start
        for path in (path for path in paths if BEGUN in path[0].marks):
            marks = {name: min(at, answered) for span in reversed(path) for name, at in span.marks.items()}
            for name, (begin, end) in zip(FAR, pairwise((QUEUED, BEGUN, GATHERED, EXECUTED, SCATTERED)), strict=True):
                if begin in marks and end in marks:
                    took = marks[end] - marks[begin]
                    parts[name] = parts.get(name, 0) + took if took >= 0 else -_LONGEST_NS
    return parts


def _upwards(span: Span, known: Mapping[tuple[int, int], Span]) -> list[Span]:
    """A part of what a Triton did, and what that is in, up to its request, as far as it is known."""
    path = [span]
    while path[-1].role is not Role.TRITON and len(path) < _MOST_PARENTS:
        if (above := known.get((span.trace, path[-1].parent))) is None:
            break
        path.append(above)
    return path
