"""What the tests of the scheduler share: specs, requests, a sink that collects, a queue on a virtual clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace.clock import VirtualClock
from headrace.errors import HeadraceError
from headrace.ledger.ledger import Ledger
from headrace.ledger.records import Outcome, Records
from headrace.model import Batching, ModelSpec
from headrace.request import Request, Response
from headrace.request import Sequence as Place
from headrace.scheduling.admission import Limits
from headrace.scheduling.entry import Answer
from headrace.scheduling.expiry import PortableQueues
from headrace.scheduling.plan import SetPoints, Unlearned, plan
from headrace.tensor import TensorSpec


def spec(max_batch_size: int = 8, *, sequences: bool = False, **batching: Any) -> ModelSpec:
    return ModelSpec(
        name="m",
        version=1,
        digest="d",
        backend="fake",
        platform="",
        max_batch_size=max_batch_size,
        inputs=(TensorSpec("x", "FP32", (-1,)),),
        outputs=(TensorSpec("y", "FP32", (-1,)),),
        batching=Batching(enabled=True, **batching),
        sequences=sequences,
    )


class Collector:
    """A sink that keeps what it gets, and settles it unless told to hold on."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.answers: list[Answer] = []
        self.calls = 0
        self.holds = False

    def deliver(self, answers: Sequence[Answer]) -> None:
        self.calls += 1
        self.answers += answers
        if not self.holds:
            self.settle()

    def settle(self) -> None:
        for answer in self.answers:
            if answer.is_final:
                answer.settle(self.clock.now())

    @property
    def errors(self) -> list[HeadraceError]:
        return [a.result for a in self.answers if isinstance(a.result, HeadraceError)]

    @property
    def responses(self) -> dict[str, Response]:
        return {a.entry.request.id: a.result for a in self.answers if isinstance(a.result, Response)}


QUEUES = {"transport": "portable"}
"""Which queues a house has; see the fixture `transport`."""


class House:
    """A queue, its ledger and its clock."""

    def __init__(self, model: ModelSpec | None = None, limits: Limits | None = None) -> None:
        self.clock = VirtualClock()
        self.records: list[Records] = []
        self.batches: list[Records] = []
        self.ledger = Ledger(self._fold)
        if QUEUES["transport"] == "native":
            from tests.scheduling import native

            self.clock, self.queues = native.queues(self.ledger)
        else:
            self.queues = PortableQueues(self.ledger, self.clock)
        self.spec = model or spec()
        self.queue: Any = self.queues(self.spec, limits or Limits())
        self.sink = Collector(self.clock)
        self.points = SetPoints.of(self.spec, 1)

    def _fold(self, requests: Records, batches: Records) -> None:
        self.records.append(requests)
        self.batches.append(batches)

    def request(
        self,
        name: str = "",
        rows: int = 1,
        width: int = 2,
        *,
        deadline: int | None = None,
        timeout: int = 0,
        priority: int = 0,
        lane: int = 0,
    ) -> Request:
        now = self.clock.now()
        value = float(sum(name.encode()))
        return Request(
            "m",
            {"x": np.full((rows, width), value, np.float32)},
            id=name,
            deadline=None if deadline is None else now + deadline,
            timeout_ns=timeout,
            priority=priority,
            sequence=Place(lane) if lane else None,
            received=now,
            decoded=now,
        )

    def push(self, name: str = "", rows: int = 1, width: int = 2, **keywords: Any) -> Any:
        entry = self.queue.push(self.request(name, rows, width, **keywords), self.sink)
        entry.wake()
        return entry

    def take(self) -> Any:
        """One turn with the real plan."""
        turn = self.queue.turn(self.clock.now())
        assert turn is not None
        with turn:
            return turn.take(plan(turn.view, Unlearned(), self.points, self.clock.now()), 0)

    def run(self) -> list[str]:
        """One turn; its batch echoes. The ids of its requests."""
        batch = self.take()
        if batch is None:
            return []
        with batch:
            batch.reply({"y": batch.tensors()["x"]})
        return [request.id for request in batch.requests]

    def hear(self) -> None:
        """What native code has to tell is told, which a thread does otherwise."""
        if QUEUES["transport"] == "native":
            self.queues.catch_up()  # type: ignore[attr-defined]

    def outcomes(self) -> list[Outcome]:
        self.ledger.drain()
        return [Outcome(o) for part in self.records for o in part["outcome"].tolist()]

    def close(self) -> None:
        self.queues.close()
