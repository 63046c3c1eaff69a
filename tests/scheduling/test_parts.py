"""Batches that are taken apart: each request is answered later, by whoever has its part, and once, whatever happens to it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from headrace.errors import BackendFailed, Broken
from headrace.ledger.records import Outcome
from headrace.model import Batching, ModelSpec
from headrace.request import Request
from headrace.scheduling.admission import Estimate, Limits, Line
from headrace.tensor import BytesTensor, Tensor, TensorSpec, rows_of
from tests.scheduling.support import House, spec
from tests.scheduling.test_padding import ints, model, outputs_for, push
from tests.waiting import until


class Parts:
    """One turn's batch, taken apart; `gone` is what was told of clients that cancelled."""

    def __init__(self, house: House, before: Callable[[Any], None] = lambda batch: None) -> None:
        self.house = house
        self.gone: list[int] = []
        with house.take() as batch:
            self.gathered: Mapping[str, Tensor] = batch.tensors()
            self.offsets: list[int] = batch.offsets
            before(batch)
            self.parts: list[Any] = batch.part(self.gone.append)
        house.hear()

    def __getitem__(self, place: int) -> Any:
        return self.parts[place]

    def echo(self, place: int) -> None:
        """Answer one with its rows of what was gathered."""
        mine = rows_of(self.gathered["x"], self.offsets[place], self.offsets[place + 1])
        self.parts[place].send(0, {"y": mine}, final=True)

    def drop(self, place: int) -> None:
        """Nobody has this part any more."""
        self.parts[place] = None

    def heard(self) -> list[int]:
        self.house.hear()
        return self.gone


def elsewhere(work: Callable[[], None]) -> None:
    """Do it in another thread, which ends with it."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def failed(house: House, count: int) -> list[str]:
    """The messages of so many errors, as soon as they are there."""

    def are_there() -> bool:
        house.hear()
        return len(house.sink.errors) >= count

    until(are_there)
    return [error.message for error in house.sink.errors]


def settled(house: House) -> list[Outcome]:
    """How all ended, when all have."""
    until(lambda: house.queue.wait_settled(house.clock.now()))
    return sorted(house.outcomes())


@pytest.fixture
def three(house: House) -> House:
    """A house in which `a`, `b` and `c` wait, of 1, 3 and 2 rows."""
    for name, rows in (("a", 1), ("b", 3), ("c", 2)):
        house.push(name, rows)
    return house


def test_answers_come_in_any_order_from_any_thread(three: House) -> None:
    parts = Parts(three)
    assert three.sink.answers == []
    for place in (2, 0, 1):
        elsewhere(lambda place=place: parts.echo(place))
    assert list(three.sink.responses) == ["c", "a", "b"]
    for name, rows in (("a", 1), ("b", 3), ("c", 2)):
        np.testing.assert_array_equal(three.sink.responses[name].outputs["y"], np.full((rows, 2), sum(name.encode()), np.float32))
    assert settled(three) == [Outcome.ANSWERED] * 3
    assert parts.heard() == []


def test_a_part_is_a_batch_of_one_request(three: House) -> None:
    part = Parts(three)[1]
    assert (len(part), part.rows, part.offsets, part.wanted(), part.is_wanted) == (1, 3, [0, 3], ("y",), True)
    assert [request.id for request in part.requests] == ["b"]
    np.testing.assert_array_equal(part.tensors()["x"], np.full((3, 2), ord("b"), np.float32))
    elsewhere(lambda: part.reply({"y": part.tensors()["x"]}))
    assert not part.is_wanted
    assert three.sink.responses["b"].outputs["y"].shape == (3, 2)


def test_what_was_not_declared_is_not_sent(three: House) -> None:
    parts = Parts(three)
    with pytest.raises(BackendFailed, match=r"returned shape \[6,2\], expected is \[3,-1\]"):
        parts[1].send(0, {"y": parts.gathered["x"]}, final=True)
    assert three.sink.answers == []
    parts.echo(1)
    assert list(three.sink.responses) == ["b"]


def test_an_error_for_one_is_nobody_elses(three: House) -> None:
    parts = Parts(three)
    parts[1].fail(BackendFailed("not you"))
    parts.echo(0)
    parts.echo(2)
    assert [error.message for error in three.sink.errors] == ["not you"]
    assert list(three.sink.responses) == ["a", "c"]
    assert settled(three) == [Outcome.ANSWERED] * 2 + [Outcome.FAILED]


def test_each_is_answered_once(three: House) -> None:
    parts = Parts(three)
    for place in range(3):
        parts.echo(place)
        with pytest.raises(Broken, match="after its final answer"):
            parts.echo(place)
        parts[place].reply({"y": parts[place].tensors()["x"]})
        parts[place].fail(BackendFailed("too late"))
        parts[place].fail(BackendFailed("too late"), 0)
        parts.drop(place)
    assert (len(three.sink.answers), three.sink.errors) == (3, [])
    assert settled(three) == [Outcome.ANSWERED] * 3


def test_what_was_answered_before_has_a_part_that_is_over(three: House) -> None:
    def answer_two(batch: Any) -> None:
        batch.send(0, {"y": batch.tensors()["x"][:1]}, final=True)
        batch.fail(BackendFailed("not you"), 1)

    parts = Parts(three, answer_two)
    assert [part.is_wanted for part in parts.parts] == [False, False, True]
    with pytest.raises(Broken, match="after its final answer"):
        parts.echo(0)
    parts[1].fail(BackendFailed("nor you"))
    parts.echo(2)
    parts.parts.clear()
    assert (list(three.sink.responses), failed(three, 1)) == (["a", "c"], ["not you"])
    assert settled(three) == [Outcome.ANSWERED] * 2 + [Outcome.FAILED]
    assert three.batches[-1]["failed"].tolist() == [1]


def test_answers_in_pieces(house: House) -> None:
    house.push("a")
    part = Parts(house)[0]
    for final in (False, False, True):
        elsewhere(lambda final=final: part.send(0, {"y": part.tensors()["x"]}, final))
    assert [answer.result.final for answer in house.sink.answers] == [False, False, True]
    assert settled(house) == [Outcome.ANSWERED]


def test_bytes_come_back_row_by_row() -> None:
    text, told = (TensorSpec(name, "BYTES", (1,)) for name in ("text", "told"))
    house = House(ModelSpec("m", 1, "d", "fake", "", 8, (text,), (told,), Batching(enabled=True)))
    for name, words in (("a", [b"one"]), ("b", [b"", b"three words here"])):
        request = Request("m", {"text": BytesTensor.of(words, (len(words), 1))}, id=name)
        house.queue.push(request, house.sink)
    with house.take() as batch:
        assert batch.tensors()["text"].objects().ravel().tolist() == [b"one", b"", b"three words here"]
        parts = batch.part(lambda place: None)
    for part in reversed(parts):
        given = part.tensors()["text"]
        elsewhere(lambda part=part, given=given: part.reply({"told": given}))
    assert house.sink.responses["a"].outputs["told"] == BytesTensor.of([b"one"], (1, 1))
    assert house.sink.responses["b"].outputs["told"] == BytesTensor.of([b"", b"three words here"], (2, 1))
    house.close()


def test_padding_is_cut_back() -> None:
    house = House(model())
    push(house, "a", {"x": ints(1, 2)})
    push(house, "b", {"x": ints(2, 4)})
    with house.take() as batch:
        parts = batch.part(lambda place: None)
    assert parts[0].tensors()["x"].tolist() == [[1, 2, 7, 7]]
    made = outputs_for(2, 4)
    parts[1].reply(made)
    parts[0].send(0, {name: tensor[:1] for name, tensor in made.items()}, final=True)
    answers = {name: response.outputs for name, response in house.sink.responses.items()}
    np.testing.assert_array_equal(answers["a"]["every"], made["every"][:1, :2])
    np.testing.assert_array_equal(answers["b"]["every"], made["every"])
    house.ledger.drain()
    assert [int(n) for records in house.batches for n in records["padding"]] == [2]
    house.close()


def test_a_part_that_is_dropped_fails(three: House) -> None:
    parts = Parts(three)
    parts.drop(1)
    (told,) = failed(three, 1)
    assert "was left without an answer" in told
    parts.echo(0)
    parts.echo(2)
    assert settled(three) == [Outcome.ANSWERED] * 2 + [Outcome.FAILED]


def test_leaving_a_part_fails_it_with_what_was_raised(three: House) -> None:
    parts = Parts(three)
    with parts[0]:
        raise ValueError("the model cannot do this")
    with parts[1]:
        pass
    with parts[2]:
        parts.echo(2)
    told = failed(three, 2)
    assert (len(told), told[0]) == (2, "the model cannot do this")
    assert list(three.sink.responses) == ["c"]
    assert settled(three) == [Outcome.ANSWERED] + [Outcome.FAILED] * 2
    assert three.ledger.written == (3, 1)


def test_leaving_the_batch_with_an_error_is_not_the_parts(three: House) -> None:
    parts: list[Any] = []
    with three.take() as batch:
        parts += batch.part(lambda place: None)
        raise ValueError("after it was taken apart")
    assert three.sink.answers == []
    parts.clear()
    assert all("was left without an answer" in told for told in failed(three, 3))


@pytest.mark.portable
def test_the_garbage_collector_may_drop_a_part_where_the_queue_is_locked(three: House) -> None:
    parts = Parts(three)
    around: list[Any] = [parts[1]]
    around.append(around)
    parts.drop(1)
    del around
    with three.queue._lock:
        gc.collect()
    assert len(failed(three, 1)) == 1


def cancelled_of(parts: Parts, entries: list[Any], place: int) -> list[int]:
    entries[place].cancel()
    entries[place].cancel()
    return list(parts.heard())


def test_whoever_cancels_is_told_of_once(house: House) -> None:
    entries = [house.push(name) for name in "abcd"]
    parts = Parts(house, lambda batch: entries[0].cancel())
    assert parts.heard() == [0], "before"
    assert cancelled_of(parts, entries, 2) == [0, 2], "while it is open"
    parts.echo(1)
    assert cancelled_of(parts, entries, 1) == [0, 2], "too late"
    assert [part.is_wanted for part in parts.parts] == [False, False, False, True]
    parts.echo(0)
    parts.echo(3)
    parts.drop(2)
    assert settled(house) == [Outcome.ANSWERED] * 2 + [Outcome.CANCELLED] * 2
    assert list(house.sink.responses) == ["b", "d"]
    assert (house.sink.errors, parts.heard()) == ([], [0, 2])


def test_a_cancel_after_the_answer_and_before_it_is_settled(house: House) -> None:
    house.sink.holds = True
    entry = house.push("a")
    parts = Parts(house)
    parts.echo(0)
    entry.cancel()
    assert parts.heard() == []
    house.sink.settle()
    assert settled(house) == [Outcome.CANCELLED]


def test_nobody_is_told_of_a_part_that_was_dropped(house: House) -> None:
    entry = house.push("a")
    parts = Parts(house)
    parts.drop(0)
    failed(house, 1)
    entry.cancel()
    assert parts.heard() == []


def test_nothing_is_kept_of_what_is_over(three: House, transport: str) -> None:
    entry = three.push("d")
    parts = Parts(three)
    entry.cancel()
    parts.heard()
    for place in range(3):
        parts.echo(place)
    parts.parts.clear()
    settled(three)
    if transport == "native":
        assert len(three.queue._parts) == 0
    else:
        assert entry.gone is None
        assert all(answer.entry.gone is None for answer in three.sink.answers)  # type: ignore[attr-defined]


def test_the_instance_is_free_while_parts_are_open() -> None:
    limits = Limits(estimate=Estimate({0: Line(100, 1, 8)}))
    house = House(spec(max_batch_size=1, preserve_ordering=True), limits)
    house.push("a")
    house.push("b")
    first = Parts(house)
    turn = house.queue.turn(None)  # which waits, with `preserve_ordering`, while a batch runs
    assert turn is not None
    with turn:
        assert turn.busy_until == 0
    second = Parts(house)
    second.echo(0)
    first.echo(0)
    assert list(house.sink.responses) == ["b", "a"]
    house.close()


def test_a_closed_queue_waits_for_the_parts(three: House) -> None:
    parts = Parts(three)
    three.queue.close()
    for place in range(3):
        assert not three.queue.wait_settled(three.clock.now())
        parts.echo(place)
    assert three.queue.wait_settled(three.clock.now())
    assert three.queue.turn(None) is None


def test_the_next_of_a_sequence_waits_for_the_part() -> None:
    house = House(spec(sequences=True))
    for name, lane in (("a1", 1), ("a2", 1), ("b1", 2)):
        house.push(name, lane=lane)
    parts = Parts(house)
    assert [part.requests[0].id for part in parts.parts] == ["a1", "b1"]
    assert house.queue.depth().requests == 1
    parts.echo(1)
    parts.echo(0)
    assert house.run() == ["a2"]
    house.close()


def test_the_records_tell_of_the_batch_and_of_each_request(house: House) -> None:
    entry = house.push("a", 2)
    house.push("b")
    house.clock.advance(100)
    batch = house.take()
    house.clock.advance(10)
    with batch:
        batch.tensors()
        house.clock.advance(1000)
        parts = batch.part(lambda place: None)
        house.clock.advance(3)
    house.sink.holds = True
    house.clock.advance(500)
    parts[1].send(0, {"y": parts[1].tensors()["x"]}, final=True)
    house.clock.advance(500)
    parts[0].reply({"y": parts[0].tensors()["x"]})
    house.clock.advance(7)
    house.sink.settle()
    house.ledger.drain()
    start = entry.request.received
    stamps = ("taken", "gathered", "executed", "first", "scattered", "sent")
    records = {int(record["place"]): record for part in house.records for record in part}
    assert [int(records[0][stamp]) - start for stamp in stamps] == [100, 110, 2113, 2113, 2113, 2120]
    assert [int(records[1][stamp]) - start for stamp in stamps] == [100, 110, 1613, 1613, 1613, 2120]
    (told,) = (record for part in house.batches for record in part)
    assert [int(told[stamp]) - start for stamp in ("taken", "gathered", "executed", "scattered")] == [100, 110, 1110, 1110]
    assert (told["rows"], told["requests"], told["failed"], told["number"]) == (3, 2, 0, records[0]["batch"])


def test_answers_and_cancels_at_once(house: House) -> None:
    entries = [house.push(str(number)) for number in range(8)]
    parts = Parts(house)
    start = threading.Barrier(3)

    def cancel_all() -> None:
        start.wait(10)
        for entry in entries:
            entry.cancel()

    def answer(places: range) -> None:
        start.wait(10)
        for place in places:
            parts.echo(place)

    threads = [threading.Thread(target=cancel_all)]
    threads += [threading.Thread(target=answer, args=(range(first, 8, 2),)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(settled(house)) == 8
    assert len(set(parts.heard())) == len(parts.gone)
    house.ledger.drain()
    answered = {answer.entry.number for answer in house.sink.answers}
    ends = {int(r["number"]): Outcome(r["outcome"]) for records in house.records for r in records}
    assert all(ends[entry.number] in (Outcome.ANSWERED, Outcome.CANCELLED) for entry in entries)
    assert all(number in answered for number, outcome in ends.items() if outcome is Outcome.ANSWERED)


def test_what_goes_along_with_what_is_sent_on(house: House) -> None:
    request = house.request("a", deadline=900, priority=3, timeout=800)
    request.parameters = {"traceparent": "00-1", "n": 3}
    house.queue.push(request, house.sink).wake()
    house.push("b")
    with house.take() as batch:
        heads = batch.heads
        assert [head.id for head in heads] == ["a", "b"]
        first = heads[0]
        assert (first.deadline, first.priority, first.timeout_ns, first.received) == (
            request.deadline,
            3,
            800,
            request.received,
        )
        assert dict(first.parameters) == {"traceparent": "00-1", "n": 3}
        assert batch.only(1).heads[0].id == "b"
