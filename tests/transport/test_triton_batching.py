"""What `dynamic_batching` says in Triton's words means here what it means there, whatever the model foretells.

Queue policies without anything foretold are in test_waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest

from headrace.backends.base import Batch
from headrace.backends.fake import Gate, Script
from headrace.clock import MILLISECOND, SECOND
from headrace.ledger.records import Outcome
from headrace.protocol.validate import bucket_of
from headrace.scheduling.admission import Estimate, Limits, Line
from tests.transport.serving import ECHO, PATIENCE, Asked, Serve, Server, fails, tensor
from tests.transport.streaming import PARALLEL, SINGLY, values_of
from tests.waiting import until

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
FULL, TIMEOUT = "[request id: r] Exceeds maximum queue size", "Request timeout expired"
A_MINUTE = "max_queue_delay_microseconds: 60000000"


def batching(text: str, config: str = ECHO) -> str:
    return config.replace("dynamic_batching {}", f"dynamic_batching {{ {text} }}")


def policy(text: str, levels: str = "") -> str:
    return batching(f"default_queue_policy {{ {text} }} {levels}")


@dataclass
class Queued:
    """A server, and what was asked of it and waits or runs."""

    server: Server
    script: Script
    gate: Gate
    asked: list[Asked] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    """Of the first column, in the order in which rows ran."""

    @property
    def queue(self) -> Any:
        return self.server.engine.routes.resolve("m").queue

    def ask(self, value: int, rows: int = 1, **options: Any) -> None:
        """Ask, and return when it waits."""
        before = self.server.waiting("m")
        x = np.full((rows, 1), value, np.int32)
        self.asked.append(Asked(self.server, "m", [tensor("x", x)], **options))
        until(lambda: self.server.waiting("m") == before + 1)

    def infer(self, value: int, **options: Any) -> None:
        options.setdefault("client_timeout", PATIENCE)
        self.server.client.infer("m", [tensor("x", [[value]])], request_id="r", **options)

    def foretell(self, seconds: float) -> None:
        """Let the queue think that a batch takes so long."""
        self.queue.set_limits(Limits(estimate=Estimate({bucket_of(((1,),)): Line(int(seconds * SECOND), 0, 8)})))

    def let_go(self) -> list[int]:
        """Let everything run, and wait for all answers; the rows of the batches."""
        self.gate.open()
        for asked in self.asked:
            asked.result()
        self.server.wait_settled("m")
        return self.script.batches


Hold = Callable[[str], Queued]


@pytest.fixture
def hold(serve: Serve) -> Iterator[Hold]:
    """Starts a server whose one instance stands at the gate with a request of one row, value 0."""
    with ExitStack() as stack:

        def start(config: str) -> Queued:
            script = Script()
            server = serve({"m": (config, script)})
            held = Queued(server, script, Gate())
            stack.callback(held.gate.open)
            script.gate, script.fail = held.gate, lambda batch: held.values.extend(values_of(batch))
            held.asked.append(Asked(server, "m", [tensor("x", [[0]])]))
            held.gate.wait_for(1)
            return held

        yield start


# Sizes and delay.


@pytest.mark.parametrize(
    ("preferred", "rows", "ran"),
    [
        ("", [1] * 10, [8, 2]),
        ("preferred_batch_size: [ 4 ]", [1] * 7, [4, 3]),
        ("preferred_batch_size: [ 2, 4 ]", [1] * 7, [4, 2, 1]),
        ("preferred_batch_size: [ 2, 4 ]", [3, 3], [6]),
        ("preferred_batch_size: [ 3 ]", [2, 1, 4], [3, 4]),
        ("preferred_batch_size: [ 4 ]", [6, 6], [6, 6]),
    ],
    ids=["unset is the largest", "then the rest", "the largest that is reached", "none is reached", "rows count", "none fits"],
)
def test_preferred_sizes(hold: Hold, preferred: str, rows: list[int], ran: list[int]) -> None:
    held = hold(batching(preferred))
    for value, count in enumerate(rows, 1):
        held.ask(value, count)
    assert held.let_go() == [1, *ran]
    assert held.values == [value for value, count in enumerate([1, *rows]) for _ in range(count)]


@pytest.mark.parametrize(("preferred", "size"), [("preferred_batch_size: [ 4 ]", 4), ("", 8)], ids=["preferred", "full"])
def test_a_delay_is_over_when_the_batch_is_large_enough(serve: Serve, preferred: str, size: int) -> None:
    script = Script()
    server = serve({"m": (batching(f"{preferred} {A_MINUTE}"), script)})
    held = Queued(server, script, Gate())
    for value in range(size - 1):
        held.ask(value)
    held.asked.append(Asked(server, "m", [tensor("x", [[9]])]))
    assert held.let_go() == [size]


def test_a_delay_ends_by_itself(serve: Serve) -> None:
    script = Script()
    server = serve({"m": (batching("preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 50000"), script)})
    answer = server.client.infer("m", [tensor("x", [[1], [2], [3]])], client_timeout=PATIENCE)
    assert answer.as_numpy("y").tolist() == [[1], [2], [3]]
    server.wait_settled("m")
    (stats,) = server.client.get_inference_statistics("m").model_stats
    assert stats.inference_stats.queue.ns >= 50 * MILLISECOND
    assert script.batches == [3]


# Priorities.

LEVELS = batching("priority_levels: 3 default_priority_level: 2", SINGLY)


def test_levels_are_strict_and_none_is_the_default(hold: Hold) -> None:
    held = hold(LEVELS)
    held.ask(31, priority=3)
    held.ask(21)
    held.ask(22, priority=9)
    held.ask(11, priority=1)
    held.ask(23, priority=2)
    held.ask(32, priority=3)
    held.ask(12, priority=1)
    held.let_go()
    assert held.values == [0, 11, 12, 21, 22, 23, 31, 32]


def test_no_deadline_of_a_lower_level_goes_before_a_higher_one(hold: Hold) -> None:
    held = hold(LEVELS)
    held.ask(3, priority=3, timeout=int(PATIENCE * 1e6))
    held.ask(1, priority=1)
    held.let_go()
    assert held.values == [0, 1, 3]


def test_without_levels_a_priority_means_nothing(hold: Hold) -> None:
    held = hold(SINGLY)
    held.ask(1, priority=3)
    held.ask(2, priority=1)
    held.let_go()
    assert held.values == [0, 1, 2]


def test_each_level_has_its_own_queue_policy(hold: Hold) -> None:
    levels = "priority_levels: 2 default_priority_level: 2 priority_queue_policy { key: 1 value { max_queue_size: 1 } }"
    held = hold(policy("max_queue_size: 2", levels))
    held.ask(1, priority=1)
    with fails(UNAVAILABLE, FULL):
        held.infer(2, priority=1)
    held.ask(3)
    held.ask(4, priority=2)
    with fails(UNAVAILABLE, FULL):
        held.infer(5)
    assert held.let_go() == [1, 3]
    assert held.values == [0, 1, 3, 4]


# Queue policies of models that foretell: Triton's codes and words hold.


def test_a_full_queue_is_told_before_anything_is_foretold(hold: Hold) -> None:
    held = hold(policy("max_queue_size: 1"))
    held.ask(1)
    held.foretell(60)
    with fails(UNAVAILABLE, FULL):
        held.infer(2, timeout=1_000_000)
    assert held.let_go() == [1, 1]
    assert held.server.ledger("m")[Outcome.REFUSED] == 1


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("default_timeout_microseconds: 50000", {}),
        ("default_timeout_microseconds: 50000 timeout_action: REJECT", {"timeout": int(PATIENCE * 1e6)}),
        ("default_timeout_microseconds: 60000000 allow_timeout_override: true", {"timeout": 50_000}),
        ("default_timeout_microseconds: 50000 allow_timeout_override: true", {"timeout": 60_000_000}),
    ],
    ids=["default", "the parameter is no override", "override", "an override only shortens"],
)
def test_a_queue_timeout_is_waited_for_whatever_is_foretold(hold: Hold, text: str, options: dict[str, Any]) -> None:
    """The foretold minute would be refused as RESOURCE_EXHAUSTED; who configures Triton's time-out gets Triton's."""
    held = hold(policy(text))
    held.foretell(60)
    with fails(UNAVAILABLE, TIMEOUT):
        held.infer(1, **options)
    assert held.let_go() == [1]
    assert held.server.ledger("m") == {**dict.fromkeys(Outcome, 0), Outcome.ANSWERED: 1, Outcome.EXPIRED: 1}


def test_delayed_ones_run_when_nobody_else_waits(hold: Hold) -> None:
    text = "timeout_action: DELAY default_timeout_microseconds: 60000000 allow_timeout_override: true"
    held = hold(batching(f"default_queue_policy {{ {text} }}", SINGLY))
    held.foretell(60)
    held.ask(1, timeout=1)
    held.ask(2, timeout=1)
    # Their time is over; whoever expires them, this is not before it is done.
    held.queue.expire(held.server.engine.clock.now())
    held.ask(3)
    held.let_go()
    assert held.values == [0, 3, 1, 2]
    assert held.server.ledger("m")[Outcome.ANSWERED] == 4


# Order.


def test_preserved_order_is_kept_by_several_instances(serve: Serve) -> None:
    """One batch at a time, in the order of arrival, however urgent a later one is."""
    lock, seen, together = threading.Lock(), list[int](), list[int]()
    running = [0]

    def enter(batch: Batch) -> None:
        with lock:
            running[0] += 1
            together.append(running[0])
            seen.extend(values_of(batch))

    def leave(inputs: Any) -> dict[str, Any]:
        with lock:
            running[0] -= 1
        return {"y": inputs["x"]}

    script = Script(fail=enter, compute=leave)
    server = serve({"m": (batching("preserve_ordering: true", PARALLEL), script)})
    seen.clear()
    together.clear()
    script.gate = gate = Gate()
    held = Queued(server, script, gate)
    held.asked.append(Asked(server, "m", [tensor("x", [[0]])]))
    gate.wait_for(1)
    for value in range(1, 12):
        held.ask(value, **({"timeout": int(PATIENCE * 1e6) - value * 100_000} if value % 2 else {}))
    held.let_go()
    assert seen == list(range(12))
    assert together == [1] * 12
