"""Batches that are taken apart, with clients behind a transport: answered without the turn of any instance, or given up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from headrace.backends.fake import Gate, Script
from headrace.scheduling.base import Batch
from headrace.scheduling.plan import Plan, Reason
from headrace.tensor import Tensor, rows_of
from tests.transport.serving import ECHO, Asked, Serve, Server, tensor
from tests.transport.streaming import DECOUPLED, Raw, Told, ended, one
from tests.waiting import until

Taken = tuple[list[Any], Callable[[int], Tensor]]
"""The parts of a batch, and the rows of each."""


class Held:
    """A server whose one instance stands at the gate, so that what comes is left to the test."""

    def __init__(self, server: Server, script: Script, first: Raw) -> None:
        self.server, self.gate, self._first = server, Gate(), first
        script.gate = self.gate
        first.ask(one(0))
        self.gate.wait_for(1)
        self.gone: list[int] = []

    def values(self, rows: int, value: int = 0) -> np.ndarray:
        return np.full((rows, 1), value, np.int32)

    def ask(self, rows: int, value: int) -> Asked:
        """Ask, and return when it waits."""
        before = self.server.waiting("m")
        asked = Asked(self.server, "m", [tensor("x", self.values(rows, value))])
        until(lambda: self.server.waiting("m") == before + 1)
        return asked

    def take(self, before: Callable[[Batch], None] = lambda batch: None) -> Taken:
        """All that waits, in one batch, in parts."""
        turn = self.server.engine.routes.resolve("m").queue.turn(None)
        assert turn is not None
        with turn:
            batch = turn.take(Plan(tuple(turn.view["number"].tolist()), (), None, Reason.IDLE), 1)
        assert batch is not None
        with batch:
            (gathered,) = batch.tensors().values()
            before(batch)
            parts = batch.part(self.gone.append)
        return parts, lambda place: rows_of(gathered, batch.offsets[place], batch.offsets[place + 1])

    def ends(self, **counts: int) -> bool:
        """Let everything run; whether it ended so, the first request included."""
        self.gate.open()
        self._first.next()
        return ended(self.server, "m", **counts)


@pytest.fixture
def hold(serve: Serve) -> Iterator[Callable[[str], Held]]:
    with ExitStack() as stack:

        def start(config: str = ECHO) -> Held:
            script = Script()
            server = serve({"m": (config, script)})
            held = Held(server, script, stack.enter_context(Raw(server)))
            stack.callback(held.gate.open)
            return held

        yield start


Hold = Callable[..., Held]


def elsewhere(work: Callable[[], None]) -> None:
    """Do it in another thread, which ends with it."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def give_up(asked: Asked) -> None:
    asked.call.cancel()
    with pytest.raises(triton.InferenceServerException):
        asked.result()


@pytest.mark.parametrize("answer", ["send", "reply"])
def test_answers_leave_at_once_from_any_thread(hold: Hold, answer: str) -> None:
    held = hold()
    asked = [held.ask(rows, rows * 7) for rows in (1, 3, 2)]
    parts, rows = held.take()

    def tell(place: int) -> None:
        if answer == "send":
            parts[place].send(0, {"y": rows(place)}, final=True)
        else:
            parts[place].reply({"y": parts[place].tensors()["x"]})

    for place in (2, 0, 1):
        elsewhere(lambda place=place: tell(place))
        told = asked[place].result().as_numpy("y")  # while the others are still waited for
        np.testing.assert_array_equal(told, held.values(*((1, 7), (3, 21), (2, 14))[place]))
    assert held.ends(ANSWERED=4)


def test_requests_are_those_of_the_clients(hold: Hold) -> None:
    held = hold()
    held.ask(2, 5)
    (part,), _ = held.take()
    (request,) = part.requests
    assert (request.model, part.rows, part.wanted()) == ("m", 2, ("y",))
    np.testing.assert_array_equal(part.tensors()["x"], held.values(2, 5))
    part.reply({"y": part.tensors()["x"]})
    assert held.ends(ANSWERED=2)


def test_what_was_replied_before_is_answered(hold: Hold) -> None:
    """Although small answers would have waited for the next turn of this thread."""
    held = hold()
    asked = [held.ask(1, value) for value in range(2)]
    parts, _ = held.take(lambda batch: batch.reply({"y": batch.tensors()["x"]}))
    assert [int(each.result().as_numpy("y")[0, 0]) for each in asked] == [0, 1]
    assert not any(part.is_wanted for part in parts)
    parts.clear()
    assert held.ends(ANSWERED=3)


def test_an_answer_too_large_to_wait(hold: Hold) -> None:
    """Above what the kernel copies, see `SMALL`."""
    held = hold()
    wide = np.arange(1 << 18, dtype=np.int32).reshape(1, -1)
    asked = Asked(held.server, "m", [tensor("x", wide)])
    until(lambda: held.server.waiting("m") == 1)
    (part,), _ = held.take()
    elsewhere(lambda: part.reply({"y": part.tensors()["x"]}))
    np.testing.assert_array_equal(asked.result().as_numpy("y"), wide)
    assert held.ends(ANSWERED=2)


def test_whoever_gives_up_is_told_of(hold: Hold) -> None:
    held = hold()
    asked = [held.ask(1, value) for value in range(3)]
    parts, rows = held.take()
    give_up(asked[1])
    until(lambda: held.gone == [1])
    assert [part.is_wanted for part in parts] == [True, False, True]
    for place in range(3):
        parts[place].send(0, {"y": rows(place)}, final=True)
    assert [int(asked[place].result().as_numpy("y")[0, 0]) for place in (0, 2)] == [0, 2]
    assert held.ends(ANSWERED=3, CANCELLED=1)
    assert held.gone == [1]


def test_whoever_gave_up_before_is_told_of(hold: Hold) -> None:
    held = hold()
    asked = [held.ask(1, value) for value in range(2)]

    def go(batch: Batch) -> None:
        give_up(asked[0])
        # The cancellation has come when a later one on the same connection has.
        give_up(held.ask(1, 5))
        until(lambda: held.server.waiting("m") == 0)

    parts, rows = held.take(go)
    until(lambda: held.gone == [0])
    parts[0].send(0, {"y": rows(0)}, final=True)
    parts[1].send(0, {"y": rows(1)}, final=True)
    assert int(asked[1].result().as_numpy("y")[0, 0]) == 1
    assert held.ends(ANSWERED=2, CANCELLED=2)


def test_a_connection_that_is_cut_takes_its_parts_along(hold: Hold) -> None:
    held = hold(DECOUPLED)
    with Raw(held.server) as raw:
        raw.ask(*(one(value) for value in range(3)))
        until(lambda: held.server.waiting("m") == 3)
        parts, rows = held.take()
        parts[1].send(0, {"y": rows(1)}, final=True)
        assert raw.next() == Told("1", (1,), True)
        raw._channel.close()
        until(lambda: sorted(held.gone) == [0, 2])
    parts.clear()
    assert held.ends(ANSWERED=2, CANCELLED=2)


def test_pieces_of_several_parts_mix(hold: Hold) -> None:
    held = hold(DECOUPLED)
    with Raw(held.server) as raw:
        raw.ask(*(one(value) for value in range(2)))
        until(lambda: held.server.waiting("m") == 2)
        parts, rows = held.take()
        for final in (False, True):
            for place in (1, 0):
                elsewhere(lambda place=place, final=final: parts[place].send(0, {"y": rows(place)}, final))
                assert raw.next() == Told(str(place), (place,), final)
    assert held.ends(ANSWERED=3)


def test_a_part_that_is_dropped_fails(hold: Hold) -> None:
    held = hold()
    asked = [held.ask(1, value) for value in range(2)]
    parts, rows = held.take()
    del parts[1]
    with pytest.raises(triton.InferenceServerException, match="was left without an answer"):
        asked[1].result()
    parts[0].send(0, {"y": rows(0)}, final=True)
    assert int(asked[0].result().as_numpy("y")[0, 0]) == 0
    assert held.ends(ANSWERED=2, FAILED=1)
