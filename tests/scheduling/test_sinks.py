"""The sink of an event loop: who gets which answers, and what becomes of those nobody waits for."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from headrace.clock import MonotonicClock
from headrace.request import Request, Response
from headrace.scheduling.entry import Answer, Entry, PortableEntry, Sink
from headrace.scheduling.sinks import LoopSink
from headrace.tensor import RawTensor


def request(nbytes: int = 4) -> Request:
    return Request("m", {"x": RawTensor("INT32", (1, nbytes // 4), bytes(nbytes))})


def answer(entry: Entry, value: int, final: bool) -> Answer:
    return Answer(entry, Response("m", 1, "", {"y": np.array([value])}, final))


class Pushes:
    """A queue whose pushes can be held up."""

    def __init__(self) -> None:
        self.may_push = threading.Event()
        self.may_push.set()
        self.has_come = threading.Event()
        self.cancelled: list[Entry] = []
        self.entries: list[Entry] = []

    def __call__(self, request: Request, sink: Sink) -> Entry:
        self.has_come.set()
        assert self.may_push.wait(10)
        entry = PortableEntry.__new__(PortableEntry)
        entry.owner, entry.request, entry.sink = self, request, sink  # type: ignore[assignment]
        self.entries.append(entry)
        return entry

    def cancel(self, entry: Entry) -> None:
        self.cancelled.append(entry)

    def wake(self) -> None:
        pass


@pytest.mark.asyncio
async def test_every_answer_comes_to_its_own() -> None:
    pushes = Pushes()
    sink = LoopSink(pushes, MonotonicClock(), asyncio.get_running_loop())
    got: list[tuple[str, int]] = []
    done = asyncio.Event()

    def receiver(name: str):  # type: ignore[no-untyped-def]
        def receive(answer: Answer) -> None:
            assert isinstance(answer.result, Response)
            got.append((name, int(np.asarray(answer.result.outputs["y"])[0])))
            if len(got) == 4:
                done.set()

        return receive

    a, b = request(), request()
    first, second = await sink.push(a, receiver("a")), await sink.push(b, receiver("b"))
    answers = [answer(first, 1, False), answer(second, 2, False), answer(first, 3, True), answer(second, 4, True)]
    # From another thread, as instances do.
    await asyncio.to_thread(sink.deliver, answers)
    await asyncio.wait_for(done.wait(), 10)
    assert got == [("a", 1), ("b", 2), ("a", 3), ("b", 4)]
    # After its last answer a request is forgotten.
    sink.deliver([answer(first, 5, True)])
    await asyncio.sleep(0)
    assert (len(got), pushes.cancelled) == (4, [first])


@pytest.mark.asyncio
async def test_what_is_forgotten_is_cancelled_and_gets_no_answers() -> None:
    pushes, got = Pushes(), list[Answer]()
    sink = LoopSink(pushes, MonotonicClock(), asyncio.get_running_loop())
    entry = await sink.push(request(), got.append)
    sink.forget(entry)
    assert pushes.cancelled == [entry]
    sink.deliver([answer(entry, 1, False), answer(entry, 2, True)])
    await asyncio.sleep(0)
    assert got == []


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["push", "ask"])
async def test_cancelled_while_a_large_request_is_pushed(how: str) -> None:
    """Decoding goes on in its thread; what it pushes is taken back."""
    pushes = Pushes()
    pushes.may_push.clear()
    sink = LoopSink(pushes, MonotonicClock(), asyncio.get_running_loop())
    large = request(2 << 20)
    task = asyncio.ensure_future(sink.ask(large) if how == "ask" else sink.push(large, lambda answer: None))
    await asyncio.to_thread(pushes.has_come.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pushes.cancelled == []
    pushes.may_push.set()
    async with asyncio.timeout(10):
        while not pushes.cancelled:
            await asyncio.sleep(0.001)
    assert pushes.cancelled == pushes.entries
