"""The queue on a virtual clock: order, bounds, expiry, cancellation, lanes, turns. Nothing here waits for time."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from headrace.clock import MILLISECOND, SECOND
from headrace.errors import (
    CannotMeetDeadline,
    ClassShed,
    Code,
    DeadlineExpired,
    InvalidRequest,
    QueueClosed,
    QueueFull,
    QueueTimeout,
)
from headrace.ledger.records import Outcome, Refusal
from headrace.model import QueuePolicy
from headrace.protocol.validate import bucket_of
from headrace.scheduling.admission import Depth, Estimate, Limits, Line
from headrace.scheduling.plan import Plan, Reason
from headrace.scheduling.queue import PortableQueue
from tests.scheduling.support import House, spec
from tests.waiting import until


def test_a_house_has_the_queue_of_its_transport(house: House, transport: str) -> None:
    assert isinstance(house.queue, PortableQueue) == (transport == "portable")


def test_first_come_first_served(house: House) -> None:
    for name in "abc":
        house.push(name)
        house.clock.advance(1)
    assert house.run() == ["a", "b", "c"]


def test_an_earlier_deadline_goes_first(house: House) -> None:
    house.push("late", deadline=2 * SECOND)
    house.push("soon", deadline=1 * SECOND)
    assert house.run() == ["soon", "late"]


def test_levels_go_first_where_they_are_configured() -> None:
    house = House(spec(priority_levels=2, default_priority=2))
    house.push("low", deadline=SECOND)
    house.push("high", priority=1)
    assert house.run() == ["high", "low"]
    house.close()


def test_shapes_batch_apart(house: House) -> None:
    for name, width in (("a", 2), ("b", 3), ("c", 2)):
        house.push(name, width=width)
    assert [house.run(), house.run()] == [["a", "c"], ["b"]]


def test_a_colliding_hash_does_not_mix_shapes(house: House) -> None:
    house.push("a", width=2)
    house.push("b", width=3)
    turn = house.queue.turn(None)
    assert turn is not None
    with turn:
        batch = turn.take(Plan((1, 2), (), None, Reason.IDLE), 0)
    assert batch is not None
    with batch:
        assert [r.id for r in batch.requests] == ["a"]
        batch.reply(batch.tensors() and {"y": batch.tensors()["x"]})
    assert house.run() == ["b"]


def test_invalid_requests_do_not_enter(house: House) -> None:
    bad = house.request("bad")
    bad.inputs = {}
    with pytest.raises(InvalidRequest, match="missing required input"):
        house.queue.push(bad, house.sink)
    assert house.queue.depth() == Depth()
    assert house.queue.wait_settled(0)


@pytest.mark.parametrize("limits", [Limits(requests=2), Limits(rows=2), Limits(nbytes=16)])
def test_every_bound_refuses_and_frees_again(limits: Limits) -> None:
    house = House(limits=limits)
    house.push("a")
    house.push("b")
    with pytest.raises(QueueFull):
        house.push("c")
    assert house.run() == ["a", "b"]
    house.push("c")
    assert house.run() == ["c"]
    house.close()


def test_the_configured_queue_size_counts(house: House) -> None:
    house = House(spec(policy=QueuePolicy(max_requests=1)))
    house.push("a")
    with pytest.raises(QueueFull):
        house.push("b")
    house.close()


def test_limits_change_from_the_next_push_on(house: House) -> None:
    house.push("a")
    house.queue.set_limits(Limits(requests=1))
    with pytest.raises(QueueFull):
        house.push("b")


def test_behind_a_run_that_takes_too_long_who_will_be_late_counts_for_nothing(house: House) -> None:
    """A batch of 4 was to last 10 ms and still runs after 30, with 8 behind it.

    Of those, 4 can be in time if they run at once, and 4 cannot; so who comes now goes into the second batch, not the third.
    """
    line = Line(10 * MILLISECOND, 0, 4)
    house.queue.set_limits(Limits(estimate=Estimate({bucket_of(((2,),)): line})))
    house.push("long")
    assert house.take() is not None
    for number in range(8):
        house.push(str(number), deadline=40 * MILLISECOND)
    house.clock.advance(30 * MILLISECOND)
    house.push("in time", deadline=20 * MILLISECOND)
    with pytest.raises(CannotMeetDeadline):
        house.push("late", deadline=20 * MILLISECOND, rows=4)


def test_expiry_answers_without_anyone_taking_a_turn(house: House) -> None:
    house.push("a", deadline=10)
    house.push("b")
    house.clock.advance(10)
    assert house.queue.wait_settled(house.clock.now()) is False
    assert house.queue.expire(house.clock.now()) is None
    assert [type(e) for e in house.sink.errors] == [DeadlineExpired]
    assert house.run() == ["b"]
    assert sorted(house.outcomes()) == [Outcome.ANSWERED, Outcome.EXPIRED]


def test_whoever_leaves_unrun_is_accounted_for_by_the_reason(house: House) -> None:
    house.push("late", deadline=10)
    house.push("hopeless", deadline=100)
    house.push("left")
    house.clock.advance(10)
    turn = house.queue.turn(None)
    assert turn is not None
    with turn:
        turn.take(Plan((), (1, 2), None, Reason.WAIT), 0)
    house.queue.abandon()
    assert [type(e) for e in house.sink.errors] == [DeadlineExpired, CannotMeetDeadline, QueueClosed]
    house.ledger.drain()
    records = sorted((r["number"], r["outcome"], r["refusal"]) for part in house.records for r in part)
    assert records == [
        (1, Outcome.EXPIRED, Refusal.NONE),
        (2, Outcome.REFUSED, Refusal.CANNOT_MEET_DEADLINE),
        (3, Outcome.REFUSED, Refusal.QUEUE_CLOSED),
    ]


@pytest.mark.portable
def test_the_expiry_thread_wakes_by_itself() -> None:
    house = House()
    answered = threading.Event()

    class Waker:
        def deliver(self, answers) -> None:
            house.sink.deliver(answers)
            answered.set()

    house.queue.push(house.request("a", deadline=10), Waker())
    house.clock.advance(10)
    assert answered.wait(10)
    assert [type(e) for e in house.sink.errors] == [DeadlineExpired]
    house.close()


def test_the_v2_timeout_is_a_deadline(house: House) -> None:
    house.push("a", timeout=5)
    house.clock.advance(5)
    house.queue.expire(house.clock.now())
    assert [type(e) for e in house.sink.errors] == [DeadlineExpired]


def test_a_queue_policy_rejects_in_tritons_words() -> None:
    house = House(spec(policy=QueuePolicy(timeout_ns=5)))
    house.push("a")
    house.clock.advance(5)
    house.queue.expire(house.clock.now())
    assert [(type(e), e.message) for e in house.sink.errors] == [(QueueTimeout, "Request timeout expired")]
    house.close()


def test_a_queue_policy_may_put_behind_everyone_instead() -> None:
    house = House(spec(policy=QueuePolicy(timeout_ns=5, delay=True)))
    house.push("old", deadline=100)
    house.clock.advance(5)
    house.queue.expire(house.clock.now())
    house.push("new")
    assert house.sink.errors == []
    assert house.run() == ["new", "old"]
    house.push("older", deadline=100)
    house.clock.advance(5)
    assert house.queue.expire(house.clock.now()) is not None, "its deadline still counts"
    house.clock.advance(100)
    house.queue.expire(house.clock.now())
    assert [type(e) for e in house.sink.errors] == [DeadlineExpired]
    house.close()


@pytest.mark.portable
def test_answered_deadlines_do_not_pile_up(house: House) -> None:
    for _ in range(3000):
        house.push(deadline=3600 * SECOND)
        house.run()
    assert len(house.queue._overdue) < 2000


def test_cancelled_entries_leave_at_once_and_never_run(house: House) -> None:
    gone, _ = house.push("a"), house.push("b")
    gone.cancel()
    assert house.queue.depth().requests == 1
    assert house.run() == ["b"]
    assert list(house.sink.responses) == ["b"]
    assert sorted(house.outcomes()) == [Outcome.ANSWERED, Outcome.CANCELLED]


def test_what_is_cancelled_while_it_runs_is_not_answered(house: House) -> None:
    gone, _ = house.push("a"), house.push("b")
    with house.take() as batch:
        gone.cancel()
        batch.reply({"y": batch.tensors()["x"]})
    assert list(house.sink.responses) == ["b"]
    assert sorted(house.outcomes()) == [Outcome.ANSWERED, Outcome.CANCELLED]


def test_what_was_put_behind_everyone_leaves_when_it_is_cancelled() -> None:
    house = House(spec(policy=QueuePolicy(timeout_ns=5, delay=True)))
    gone, _ = house.push("gone"), house.push("stays")
    house.clock.advance(5)
    house.queue.expire(house.clock.now())
    house.push("new")
    gone.cancel()
    assert house.queue.depth().requests == 2
    assert house.run() == ["new", "stays"]
    assert sorted(house.outcomes()) == [Outcome.ANSWERED, Outcome.ANSWERED, Outcome.CANCELLED]
    house.close()


def test_cancelling_twice_or_too_late_changes_nothing(house: House) -> None:
    entry = house.push("a")
    house.run()
    entry.cancel()
    entry.cancel()
    assert house.outcomes() == [Outcome.ANSWERED]


def test_one_of_a_sequence_at_a_time_until_it_is_settled() -> None:
    house = House(spec(sequences=True))
    house.sink.holds = True
    for name, lane in (("a1", 1), ("a2", 1), ("b1", 2), ("b2", 2), ("free", 0)):
        house.push(name, lane=lane)
    assert house.run() == ["a1", "b1", "free"]
    assert house.queue.depth().requests == 2
    house.sink.settle()
    assert house.run() == ["a2", "b2"]
    house.close()


def test_a_cancelled_head_lets_the_next_of_its_sequence_pass() -> None:
    house = House(spec(sequences=True))
    head, parked, _ = house.push("a1", lane=1), house.push("a2", lane=1), house.push("a3", lane=1)
    parked.cancel()
    head.cancel()
    assert house.run() == ["a3"]
    house.close()


def test_preserved_order_runs_one_batch_at_a_time() -> None:
    house = House(spec(max_batch_size=1, preserve_ordering=True))
    house.push("a")
    house.push("b")
    batch = house.take()
    found: list[object] = []
    other = threading.Thread(target=lambda: found.append(house.queue.turn(None)))
    other.start()
    assert not found
    with batch:
        batch.reply({"y": batch.tensors()["x"]})
    other.join(10)
    assert len(found) == 1
    house.close()


def test_one_turn_at_a_time(house: House) -> None:
    house.push("a")
    turn = house.queue.turn(None)
    assert turn is not None
    second: list[object] = []
    other = threading.Thread(target=lambda: second.append(house.queue.turn(None)))
    other.start()
    with turn:
        pass  # given back without a plan
    other.join(10)
    assert len(second) == 1


@pytest.mark.portable
def test_a_turn_comes_back_at_its_time_or_with_news(house: House) -> None:
    house.push("a")
    turn = house.queue.turn(None)
    assert turn is not None
    with turn:
        assert turn.take(Plan((), (), house.clock.now() + 50, Reason.WAIT), 0) is None
    woken: list[object] = []
    waiter = threading.Thread(target=lambda: woken.append(house.queue.turn(house.clock.now() + 50)))
    waiter.start()
    until(lambda: bool(house.clock._waiting))
    assert not woken
    house.clock.advance(50)
    waiter.join(10)
    assert len(woken) == 1


def test_a_closed_queue_refuses_and_is_served_to_the_end(house: House) -> None:
    house.push("a")
    house.queue.close()
    with pytest.raises(QueueClosed):
        house.push("b")
    assert house.run() == ["a"]
    assert house.queue.turn(None) is None


def test_whoever_came_back_too_early_is_let_in_when_the_queue_closes(house: House) -> None:
    house.push("a")
    turn = house.queue.turn(None)
    assert turn is not None
    later = house.clock.now() + SECOND
    with turn:
        turn.take(Plan((), (), later, Reason.WAIT), 0)
    house.queue.close()
    last = house.queue.turn(later)
    assert last is not None
    with last:
        assert last.is_last_call


def test_an_abandoned_queue_answers_what_waits() -> None:
    house = House(spec(sequences=True))
    for lane in (0, 1, 1):
        house.push(lane=lane)
    house.queue.abandon()
    assert [type(e) for e in house.sink.errors] == [QueueClosed] * 3
    assert house.queue.turn(None) is None
    assert house.outcomes() == [Outcome.REFUSED] * 3
    house.close()


def test_a_sink_that_raises_has_lost_its_client(house: House) -> None:
    class Gone:
        def deliver(self, answers) -> None:
            raise RuntimeError("event loop is closed")

    house.queue.push(house.request("a"), Gone())
    house.push("b")
    assert house.run() == ["a", "b"]
    assert list(house.sink.responses) == ["b"]
    assert sorted(house.outcomes()) == [Outcome.ANSWERED, Outcome.CANCELLED]


@pytest.mark.portable
def test_the_state_can_be_read(house: House) -> None:
    house.push("a")
    assert repr(house.queue) == "<PortableQueue m/1 open, 1 waiting, 1 unsettled, 0 running>"


def test_preserved_order_is_that_of_arrival_whatever_shape_or_deadline() -> None:
    house = House(spec(preserve_ordering=True))
    for name, width, deadline in (("a", 2, None), ("b", 3, None), ("c", 2, 50), ("d", 2, 40)):
        house.push(name, width=width, deadline=deadline)
        house.clock.advance(1)
    assert [house.run(), house.run(), house.run()] == [["a"], ["b"], ["c", "d"]]
    house.close()


def test_what_came_between_a_look_and_the_wait_is_news(house: House) -> None:
    house.push("a")
    turn = house.queue.turn(None)
    assert turn is not None
    with turn:
        house.push("b")
        turn.take(Plan((), (), house.clock.now() + 50, Reason.WAIT), 0)
    again = house.queue.turn(house.clock.now() + 50)
    assert again is not None
    assert len(again.view) == 2


def test_a_closed_queue_says_that_nobody_else_comes(house: House) -> None:
    house.push("a")
    house.queue.close()
    turn = house.queue.turn(None)
    assert turn is not None
    assert turn.is_last_call


def test_a_level_is_full_by_its_own_count() -> None:
    policies = {1: QueuePolicy(max_requests=1)}
    house = House(spec(priority_levels=2, default_priority=2, level_policies=policies))
    for _ in range(3):
        house.push(priority=2)
    house.push(priority=1)
    with pytest.raises(QueueFull):
        house.push(priority=1)
    house.close()


def test_many_levels_fit_into_the_ledger() -> None:
    house = House(spec(priority_levels=1 << 40, default_priority=1 << 39))
    house.push("a")
    assert house.run() == ["a"]
    assert house.outcomes() == [Outcome.ANSWERED]
    house.close()


def test_a_lost_sink_of_several_answers_settles_once(house: House) -> None:
    class Gone:
        def deliver(self, answers) -> None:
            raise RuntimeError("closed")

    house.queue.push(house.request("a"), Gone())
    with house.take() as batch:
        for final in (False, False, True):
            batch.send(0, {"y": batch.tensors()["x"]}, final)
    assert house.outcomes() == [Outcome.CANCELLED]
    assert house.queue.wait_settled(0)
    assert "0 waiting, 0 unsettled, 0 running>" in repr(house.queue)


def test_a_version_that_is_loaded_again_numbers_its_requests_and_batches_anew(house: House) -> None:
    numbered: list[tuple[list[int], list[int]]] = []
    for _ in range(2):
        for name in "abc":
            house.push(name)
        assert house.run() == ["a", "b", "c"]
        house.ledger.drain()
        numbered.append(tuple(np.concatenate(kind)["number"].tolist() for kind in (house.records, house.batches)))
        house.queue.close()
        house.queue = house.queues(house.spec, Limits())
    assert numbered[0] == ([1, 2, 3], [1])
    (requests, batches) = numbered[1]
    assert len(set(requests)) == 6
    assert len(set(batches)) == 2
    records = np.concatenate(house.records)
    assert set(records["model"].tolist()) == {house.queue.model_number}
    assert set(records["batch"].tolist()) == set(batches), "each names its own"


def test_a_class_that_is_shed_is_refused_but_for_its_share() -> None:
    house = House(spec(priority_levels=3, default_priority=2))
    house.queue.set_limits(Limits(shed={3: 768}))
    refused: list[int] = []
    for number in range(8):
        for priority in (1, 2):
            house.push(priority=priority)
        try:
            house.push(priority=3)
        except ClassShed as error:
            refused.append(number)
            assert error.code is Code.RESOURCE_EXHAUSTED
            assert error.retry_after_ns == SECOND
            assert error.message.startswith("class 3 is not taken at present")
    assert refused == [1, 2, 3, 5, 6, 7]
    house.queue.set_limits(Limits())
    house.push(priority=3)
    assert house.queue.depth().requests == 16 + 2 + 1
    house.close()
