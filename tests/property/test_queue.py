"""Whatever happens to a queue, in whatever order: every entry is answered once, settled once, and in the ledger once."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.errors import QueueClosed, QueueFull
from headrace.ledger.records import Outcome
from headrace.model import QueuePolicy
from headrace.scheduling.admission import Limits
from headrace.scheduling.entry import EntryState, PortableEntry
from tests.scheduling.support import House, spec


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.entries: list[PortableEntry] = []
        self.cancelled: set[str] = set()
        self.open: list = []
        self.parts: list = []
        self.gone: Counter[str] = Counter()
        self.pushed = 0
        self.started: dict[int, list[int]] = {}

    @initialize(
        levels=st.sampled_from([0, 3]),
        sequences=st.booleans(),
        timeout=st.sampled_from([0, 40]),
        delay=st.booleans(),
        requests=st.sampled_from([3, 1000]),
    )
    def build(self, levels: int, sequences: bool, timeout: int, delay: bool, requests: int) -> None:
        policy = QueuePolicy(timeout_ns=timeout, delay=delay)
        model = spec(sequences=sequences, priority_levels=levels, default_priority=min(levels, 2), policy=policy)
        self.house = House(model, Limits(requests=requests))

    @rule(
        rows=st.integers(0, 8),
        width=st.integers(1, 2),
        deadline=st.sampled_from([None, 30, 200]),
        priority=st.integers(0, 4),
        lane=st.integers(0, 2),
    )
    def push(self, rows: int, width: int, deadline: int | None, priority: int, lane: int) -> None:
        name = str(self.pushed)
        try:
            self.entries.append(self.house.push(name, rows, width, deadline=deadline, priority=priority, lane=lane))
        except QueueFull:
            assert self.house.queue.depth().requests >= 3
        except QueueClosed:
            assert self.house.queue._closed
        else:
            self.pushed += 1

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.entries)).cancel()

    @rule(by=st.integers(1, 60))
    def advance(self, by: int) -> None:
        self.house.clock.advance(by)
        self.house.queue.expire(self.house.clock.now())

    @precondition(lambda self: self.house.queue._order)
    @rule()
    def take(self) -> None:
        batch = self.house.take()
        if batch is None:
            return
        assert sum(r.inputs["x"].shape[0] for r in batch.requests) <= 8
        assert len({r.inputs["x"].shape[1] for r in batch.requests}) == 1
        for entry in batch._entries:
            assert entry.due.deadline > self.house.clock.now(), "nothing runs that is late already"
            if entry.lane is not None:
                self.started.setdefault(entry.lane, []).append(entry.number)
        self.open.append(batch)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), fails=st.booleans())
    def finish(self, data: st.DataObject, fails: bool) -> None:
        batch = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        with batch:
            if fails:
                raise ValueError("scripted")
            batch.reply({"y": batch.tensors()["x"]})

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def part(self, data: st.DataObject) -> None:
        batch = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        names = [request.id for request in batch.requests]
        with batch:
            self.parts += batch.part(lambda place: self.gone.update([names[place]]))

    @precondition(lambda self: self.parts)
    @rule(data=st.data(), fails=st.booleans())
    def answer(self, data: st.DataObject, fails: bool) -> None:
        with self.parts.pop(data.draw(st.integers(0, len(self.parts) - 1))) as part:
            if not fails:
                part.reply({"y": part.tensors()["x"]})

    @rule()
    @precondition(lambda self: self.pushed > 5)
    def close(self) -> None:
        self.house.queue.close()

    @invariant()
    def sequences_keep_their_order(self) -> None:
        for started in self.started.values():
            assert started == sorted(started)

    @invariant()
    def whoever_cancels_a_part_is_told_of_once(self) -> None:
        assert set(self.gone.values()) <= {1}
        for part in self.parts:
            (entry,) = part._entries
            assert self.gone[entry.request.id] == entry.cancelled

    @invariant()
    def depth_is_what_waits(self) -> None:
        waits = [e for e in self.entries if e.state in (EntryState.WAITING, EntryState.PARKED)]
        depth = self.house.queue.depth() if hasattr(self, "house") else None
        assert depth is None or (depth.requests, depth.rows) == (len(waits), sum(e.size.rows for e in waits))

    def teardown(self) -> None:
        if not hasattr(self, "house"):
            return
        house = self.house
        for part in self.parts:
            part.reply({"y": part.tensors()["x"]})
        while self.open or house.queue._order:
            for batch in self.open:
                with batch:
                    batch.reply({"y": batch.tensors()["x"]})
            self.open = [b for b in [house.take()] if b] if house.queue._order else []
        assert house.queue.wait_settled(house.clock.now())
        assert all(e.state is EntryState.SETTLED for e in self.entries)
        house.ledger.drain()
        numbers = Counter(n for part in house.records for n in part["number"].tolist())
        assert numbers == Counter(e.number for e in self.entries), "one record each"
        answered = Counter(a.entry.number for a in house.sink.answers)
        assert set(answered.values()) <= {1}, "one answer each"
        for part in house.records:
            for number, outcome in zip(part["number"].tolist(), part["outcome"].tolist(), strict=True):
                assert (answered[number] == 1) or outcome == Outcome.CANCELLED
        house.close()


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestQueue = QueueMachine.TestCase
