"""Puts together what was together: a batch, its requests, and what a graph ran for it; and decides on each as a whole.

A request that was in no batch is alone. A batch is decided on when all of its requests have settled, or after `PATIENCE_NS`,
with those that have. Rows that a graph sent on, and calls of one model by another, wait for the request they are part of: they
are kept if that is, and if they have a reason themselves, it is kept for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.clock import SECOND
from headrace.ledger.collect import REQUEST_KIND, Chunk
from headrace.ledger.identity import Identity, ring_number
from headrace.ledger.records import BATCH, REQUEST, BatchRecord, RequestRecord, at, bytes_of, concatenated
from headrace.ledger.side import give_way
from headrace.protocol.origin import GIVEN
from headrace.telemetry.asked import Asked
from headrace.telemetry.sampling import Cap, Policy, Why, hashed, randomness, tracestate_of, whys_of, whys_of_batches

PATIENCE_NS = 5 * SECOND
"""How long a batch waits for the last of its requests, and a part for the request it belongs to."""
_LONG_PATIENCE_NS = 60 * SECOND
"""How long a batch waits for the first of its requests, which may be answered later, each by itself."""
_MOST = 1 << 17
"""Records that may wait. Above that, everything is decided on as it is."""
_MOST_WAITING = 1 << 12
_MOST_REMEMBERED = 1 << 14

_BESIDES = [("key", "u8"), ("id_model", "u8"), ("id", "u8"), ("seen", "i8"), ("why", "u1")]
HELD_REQUEST: np.dtype[Any] = np.dtype([("record", REQUEST), *_BESIDES], align=True)
HELD_BATCH: np.dtype[Any] = np.dtype([("record", BATCH), *_BESIDES], align=True)
"""A record; `key` is the same for a batch and its requests, and for a batch and what was visited for it. `id_model` and `id` are
what its ids are made of: model and number, or what stands for them. `seen` is when it came, `why` bits of `Why`."""
Held = NDArray[np.void]
_Id = tuple[int, int]


class Settled(NamedTuple):
    """A request: its record, what its ids are made of, and the id of its trace."""

    record: RequestRecord
    id: _Id
    trace: int


@dataclass(frozen=True, slots=True)
class Cohort:
    """What is kept together.

    `requests` are in the order of the batch; `tracestate` is the value of `ot` in that of each. `batch` is None where there was
    none, or none is known. `visits` are what a graph ran, and what their ids are made of.
    """

    requests: Sequence[Settled]
    why: Why
    tracestate: str
    batch: BatchRecord | None
    visits: Sequence[tuple[BatchRecord, _Id]]

    @property
    def spans(self) -> int:
        """How many spans that makes."""
        of_requests = sum(1 + (record.queued > 0) + (record.executed > 0) for record, _, _ in self.requests)
        of_batch = 0 if self.batch is None else 1 + (1 + len(self.visits) if self.batch.executed else 0)
        return of_requests + of_batch


class _Verdict(NamedTuple):
    """What became of a request that may have parts: empty `tracestate` if it was not kept."""

    trace: int
    tracestate: str


@dataclass(slots=True, eq=False)
class _Found:
    """A batch, or a request that was in none, before the verdict; `lot` is its random number.

    `requests` are its records, each with what its ids are made of; `parents` the requests that these are part of.
    `is_allowed`: it is within the cap.
    """

    requests: Sequence[tuple[RequestRecord, _Id]]
    why: Why
    lot: int
    batch: BatchRecord | None
    visits: Sequence[tuple[BatchRecord, _Id]]
    until: int
    is_allowed: bool
    parents: set[_Id] = field(init=False)

    def __post_init__(self) -> None:
        self.parents = {(record.parent_model, record.parent) for record, _ in self.requests if record.parent}

    @property
    def ids(self) -> list[_Id]:
        """What the ids of its requests are made of."""
        return [who for _, who in self.requests]


class Cohorts:
    """Of one server.

    Args:
        identity: makes its ids.
        policy: what to keep.
        asked: what clients want kept.
        cap: how much of it may be.
    """

    def __init__(self, identity: Identity, policy: Policy, asked: Asked, cap: Cap) -> None:
        self._identity, self._policy, self._asked, self._cap = identity, policy, asked, cap
        self._requests: Held = np.zeros(0, HELD_REQUEST)
        self._batches: Held = np.zeros(0, HELD_BATCH)
        self._visits: Held = np.zeros(0, HELD_BATCH)
        self._alone: list[Held] = []
        self._waiting: list[_Found] = []
        self._wanted: dict[_Id, None] = {}
        self._parents: set[int] = set()
        self._verdicts: dict[_Id, _Verdict] = {}
        self._late: dict[int, int] = {}

    @property
    def held(self) -> int:
        """How many records wait."""
        return len(self._requests) + len(self._batches) + len(self._visits) + sum(len(each.requests) for each in self._waiting)

    def take(self, chunks: Iterable[Chunk], now: int, *, is_end: bool = False) -> Iterator[Cohort]:
        """Add these records, and what of it is decided and kept. To be exhausted.

        Args:
            chunks: of records.
            now: in ns.
            is_end: nothing more will come.
        """
        for chunk in chunks:
            self._add(chunk, now)
            give_way()
        if not self.held and not self._alone:
            return
        is_over = is_end or self.held > _MOST
        found = [*self._gather(now, is_over=is_over), *self._gather_alone(now)]
        self._waiting += [each for each in found if each.parents]
        self._want()
        for each in found:
            if not each.parents and (kept := self._judge(each, "", now)):
                yield kept
        waiting = -1
        while len(self._waiting) != waiting:  # what waited for one of these may be what others wait for
            waiting = len(self._waiting)
            yield from self._resolve(now, is_over=is_over)
        for known in (self._late, self._verdicts, self._wanted):
            _forget(known)

    def _add(self, chunk: Chunk, now: int) -> None:
        records = chunk.records
        of_requests = chunk.kind == REQUEST_KIND
        held = np.empty(len(records), HELD_REQUEST if of_requests else HELD_BATCH)
        bytes_of(held["record"])[:] = bytes_of(records)
        held["seen"] = now
        is_numbered = records["number"] > 0
        held["id_model"] = np.where(is_numbered, records["model"], np.uint64(ring_number(chunk.ring)))
        held["id"] = np.where(is_numbered, records["number"], chunk.first + np.arange(len(records), dtype=np.uint64))
        if of_requests:
            held["key"] = _keys(records["model"], records["batch"])
            held["why"] = whys_of(records) | self._asked.whys_of(records)
            self._parents.update(np.unique(records["parent_model"][records["parent"] > 0]).tolist())
            is_alone = records["batch"] == 0
            if self._late:
                is_alone |= np.isin(held["key"], list(self._late))
            if is_alone.any():
                self._alone.append(at(held, is_alone))
            self._requests = concatenated(self._requests, at(held, ~is_alone))
        else:
            made_by = _keys(records["parent_model"], records["parent"])
            held["key"] = np.where(is_numbered, _keys(records["model"], records["number"]), made_by)
            held["why"] = whys_of_batches(records, self._policy)
            self._batches = concatenated(self._batches, at(held, is_numbered))
            self._visits = concatenated(self._visits, at(held, ~is_numbered))

    def _gather_alone(self, now: int) -> Iterator[_Found]:
        """Those who were in no batch, or come after the decision on theirs, unless they are dull."""
        if not self._alone:
            return
        alone = concatenated(self._requests[:0], *self._alone)
        self._alone.clear()
        whys = alone["why"]
        if self._late:
            whys = whys | np.array([self._late.get(key, 0) for key in alone["key"].tolist()], np.uint8)
        whys, lots = self._with_lots(whys, alone)
        has_family = (alone["record"]["parent"] > 0) | self._may_have_parts(alone)
        chosen = np.flatnonzero((whys > 0) | has_family)
        waits = has_family[chosen].tolist()
        # What is above the cap is dropped before anything is made of it, unless it is not yet known whether it is kept.
        spans = _spans_of(alone)[chosen].tolist()
        chosen = chosen[[each or self._cap.allows(size, now) for each, size in zip(waits, spans, strict=True)]]
        columns = (column[chosen].tolist() for column in (whys, lots, has_family))
        for member, why, lot, is_waiting in zip(_members_of(at(alone, chosen)), *columns, strict=True):
            yield _Found([member], Why(why), lot, None, (), now + PATIENCE_NS, not is_waiting)

    def _gather(self, now: int, *, is_over: bool) -> Iterator[_Found]:
        """The batches that are complete, unless they are dull."""
        batches = at(self._batches, np.argsort(self._batches["key"], kind="stable"))
        requests, old = self._requests, now - PATIENCE_NS
        order = np.argsort(requests["key"], kind="stable")
        sorted_keys = requests["key"][order]
        starts = np.flatnonzero(np.append(True, sorted_keys[1:] != sorted_keys[:-1])[: len(requests)])
        keys, counts = sorted_keys[starts], np.diff(np.append(starts, len(requests)))
        places = np.searchsorted(batches["key"], keys)
        has_batch = places < len(batches)
        has_batch[has_batch] = batches["key"][places[has_batch]] == keys[has_batch]
        give_way()
        whys, missing = np.zeros(len(keys), np.uint8), np.ones(len(keys), np.int64)
        has_family, spans = np.zeros(len(keys), bool), np.zeros(len(keys), np.int64)
        is_ripe = np.full(len(keys), is_over)
        if len(keys):
            whys |= np.bitwise_or.reduceat(requests["why"][order], starts)
            is_part = requests["record"]["parent"] > 0
            has_family |= np.logical_or.reduceat((is_part | self._may_have_parts(requests))[order], starts)
            spans += np.add.reduceat(_spans_of(requests)[order], starts)
            is_ripe |= np.minimum.reduceat(requests["seen"][order], starts) <= old
            mine = at(batches, places[has_batch])
            whys[has_batch] |= mine["why"]
            spans[has_batch] += 1 + (mine["record"]["executed"] > 0)
            missing[has_batch] = mine["record"]["requests"].astype(np.int64) - counts[has_batch]
            is_ripe |= missing <= 0
        give_way()
        whys, lots = self._with_lots(whys, at(requests, order[starts]))
        give_way()
        for place in np.flatnonzero(is_ripe & (missing > 0)).tolist():
            self._late[int(keys[place])] = int(whys[place])
        is_chosen = is_ripe & ((whys > 0) | has_family)
        visits = [self._visits_of(key) if is_known else () for key, is_known in _rows(is_chosen, keys, has_batch)]
        waits = has_family[is_chosen].tolist()
        sizes = spans[is_chosen] + [len(each) for each in visits]
        allowed = [each or self._cap.allows(size, now) for each, size in zip(waits, sizes.tolist(), strict=True)]
        is_chosen[is_chosen] = allowed
        give_way()
        chosen = at(requests, order[np.repeat(is_chosen, counts)])
        members = _members_of(at(chosen, np.lexsort((chosen["record"]["place"], chosen["key"]))))
        known = iter([BatchRecord(*row) for row in at(batches, places[is_chosen & has_batch])["record"].tolist()])
        of = iter(compress(visits, allowed))
        for count, why, lot, is_known, is_waiting in _rows(is_chosen, counts, whys, lots, has_batch, has_family):
            batch = next(known) if is_known else None
            yield _Found(list(islice(members, count)), Why(why), lot, batch, next(of), now + PATIENCE_NS, not is_waiting)
        give_way()
        self._requests = at(requests, order[np.repeat(~is_ripe, counts)])
        is_open = batches["seen"] > now - _LONG_PATIENCE_NS
        is_open[places[has_batch & is_ripe]] = False
        self._batches = at(batches, is_open)
        if len(self._visits):
            is_open = ~np.isin(self._visits["key"], keys[is_ripe]) & (self._visits["seen"] > now - _LONG_PATIENCE_NS)
            self._visits = at(self._visits, is_open)

    def _visits_of(self, key: int) -> Sequence[tuple[BatchRecord, _Id]]:
        if not len(self._visits):
            return ()
        mine = at(self._visits, self._visits["key"] == key)
        return [(BatchRecord(*row), who) for row, who in zip(mine["record"].tolist(), _ids_of(mine), strict=True)]

    def _with_lots(self, whys: NDArray[np.uint8], held: Held) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """Those that have no reason draw a lot each, batches one together."""
        batch = held["record"]["batch"]
        lots = randomness(self._identity.seed, held["id_model"], np.where(batch > 0, batch, held["id"]))
        return np.where((whys == 0) & (lots >= self._policy.threshold), Why.BASELINE, whys).astype(np.uint8), lots

    def _may_have_parts(self, held: Held) -> NDArray[np.bool_]:
        if not self._parents:
            return np.zeros(len(held), bool)
        return np.isin(held["record"]["model"], list(self._parents))

    def _want(self) -> None:
        """What has a reason wants the requests it is part of to be kept, and so on upwards."""
        rest = self._waiting
        while wanting := [each for each in rest if each.why & ~Why.BASELINE or not self._wanted.keys().isdisjoint(each.ids)]:
            for each in wanting:
                self._wanted.update(dict.fromkeys(each.parents))
            done = set(wanting)
            rest = [each for each in rest if each not in done]

    def _resolve(self, now: int, *, is_over: bool) -> Iterator[Cohort]:
        """Decide on those that waited for others, on whom is decided now."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            verdicts = [self._verdicts.get(parent) for parent in each.parents]
            if all(verdicts) or is_over or each.until <= now or len(waiting) > _MOST_WAITING:
                states = [verdict.tracestate for verdict in verdicts if verdict is not None and verdict.tracestate]
                if cohort := self._judge(each, states[0] if states else "", now):
                    yield cohort
            else:
                self._waiting.append(each)

    def _judge(self, found: _Found, family: str, now: int) -> Cohort | None:
        """The verdict on it; `family` is the tracestate of a request it is part of, that is kept."""
        why = found.why
        if not self._wanted.keys().isdisjoint(found.ids):
            why |= Why.FAMILY
        own = tracestate_of(why, self._policy.threshold, found.lot) if why else ""
        state = own if own == "th:0" or not family else family
        if family:
            why |= Why.FAMILY
        requests = [Settled(record, who, self._trace_of(record, who)) for record, who in found.requests]
        for _, who, trace in requests:
            self._wanted.pop(who, None)
            if who[0] in self._parents:
                self._verdicts[who] = _Verdict(trace, state)
        cohort = Cohort(requests, why, state, found.batch, found.visits)
        return cohort if why and (found.is_allowed or self._cap.allows(cohort.spans, now)) else None

    def _trace_of(self, record: RequestRecord, who: _Id) -> int:
        if record.context == GIVEN:
            return record.trace_high << 64 | record.trace_low
        if record.parent:
            who = record.parent_model, record.parent
            if known := self._verdicts.get(who):
                return known.trace
        return self._identity.trace(*who)


def _members_of(held: Held) -> Iterator[tuple[RequestRecord, _Id]]:
    """Requests, and what their ids are made of."""
    return zip([RequestRecord(*row) for row in held["record"].tolist()], _ids_of(held), strict=True)


def _rows(chosen: NDArray[np.bool_], *columns: NDArray[Any]) -> Iterator[tuple[Any, ...]]:
    """What is chosen of these columns, row by row."""
    return zip(*(column[chosen].tolist() for column in columns), strict=True)


def _ids_of(held: Held) -> list[_Id]:
    return list(zip(held["id_model"].tolist(), held["id"].tolist(), strict=True))


def _spans_of(requests: Held) -> NDArray[np.int64]:
    """How many spans each is."""
    return 1 + (requests["record"]["queued"] > 0).astype(np.int64) + (requests["record"]["executed"] > 0)


def _keys(models: NDArray[Any], numbers: NDArray[Any]) -> NDArray[np.uint64]:
    """One number for a batch. That two of those that wait have the same one by chance will not happen: it is one of 2**64."""
    return hashed(0, models, numbers)


def _forget(known: dict[Any, Any]) -> None:
    """The oldest of what is remembered; there is no end to it otherwise."""
    while len(known) > _MOST_REMEMBERED:
        del known[next(iter(known))]
