from __future__ import annotations

import numpy as np
import pytest

from headrace.backends.base import Batch, Outputs
from headrace.engine.instance import Instance
from headrace.errors import BackendFailed, Broken, DeadlineExpired
from headrace.ledger.records import Outcome
from headrace.model import GraphIO
from headrace.scheduling.forecast import Forecast
from headrace.scheduling.plan import Reason
from headrace.tensor import BytesTensor
from tests.scheduling.support import House, spec


def test_each_gets_its_own_rows_with_one_call_to_the_sink(house: House) -> None:
    for name, rows in (("a", 1), ("b", 3), ("c", 0), ("d", 2)):
        house.push(name, rows)
    with house.take() as batch:
        assert (batch.rows, batch.offsets) == (6, [0, 1, 4, 4, 6])
        batch.reply({"y": batch.tensors()["x"] * 2})
    assert house.sink.calls == 1
    for name, rows in (("a", 1), ("b", 3), ("c", 0), ("d", 2)):
        np.testing.assert_array_equal(
            house.sink.responses[name].outputs["y"], np.full((rows, 2), 2 * sum(name.encode()), np.float32)
        )


@pytest.mark.portable
def test_one_request_is_not_copied(house: House) -> None:
    house.push("a")
    with house.take() as batch:
        given = batch.requests[0].inputs["x"]
        assert batch.tensors()["x"] is given
        batch.reply({"y": given})


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ({}, "output 'y': the model did not return it"),
        ({"y": np.zeros((2, 2), np.float64)}, "returned datatype FP64, declared is FP32"),
        ({"y": np.zeros((3, 2), np.float32)}, "returned shape [3,2], expected is [2,-1]"),
        ({"y": np.zeros(2, np.float32)}, "returned shape [2], expected is [2,-1]"),
        ({"y": BytesTensor.of([b""] * 4, (2, 2))}, "returned datatype BYTES, declared is FP32"),
    ],
)
def test_what_was_not_declared_is_not_sent(house: House, outputs: dict, told: str) -> None:
    house.push("a")
    house.push("b")
    with house.take() as batch:
        batch.reply(outputs)
    assert [type(e) for e in house.sink.errors] == [BackendFailed] * 2
    assert all(told in e.message for e in house.sink.errors)
    assert house.outcomes() == [Outcome.FAILED] * 2


def test_leaving_answers_what_was_left_open(house: House) -> None:
    house.push("a")
    house.push("b")
    with house.take() as batch:
        batch.tensors()
        batch.send(0, {"y": np.zeros((1, 2), np.float32)}, final=True)
        raise ValueError("the model cannot do this")
    assert list(house.sink.responses) == ["a"]
    assert [e.message for e in house.sink.errors] == ["the model cannot do this"]
    house.push("c")
    with house.take():
        pass
    assert isinstance(house.sink.errors[-1], Broken)


def test_answers_in_pieces(house: House) -> None:
    house.push("a")
    piece = {"y": np.zeros((1, 2), np.float32)}
    with house.take() as batch:
        batch.send(0, piece, final=False)
        batch.send(0, piece, final=False)
        batch.send(0, {}, final=True)
        with pytest.raises(Broken, match="after its final answer"):
            batch.send(0, piece, final=True)
    assert [a.result.final for a in house.sink.answers] == [False, False, True]
    assert house.outcomes() == [Outcome.ANSWERED]


def test_an_error_for_one(house: House) -> None:
    house.push("a")
    house.push("b")
    with house.take() as batch:
        batch.fail(BackendFailed("not you"), 0)
        batch.reply({"y": np.zeros((2, 2), np.float32)})
    assert [e.message for e in house.sink.errors] == ["not you"]
    assert house.sink.responses["b"].outputs["y"].shape == (1, 2)


def test_a_request_run_alone_gets_its_own_rows_or_an_error(house: House) -> None:
    house.push("a")
    with house.take() as batch, pytest.raises(BackendFailed, match=r"returned shape \[3,2\], expected is \[1,-1\]"):
        batch.send(0, {"y": np.zeros((3, 2), np.float32)}, final=True)


def test_what_a_model_without_batching_gets_and_returns() -> None:
    house = House(spec(max_batch_size=0))
    request = house.request("a")
    request.inputs = {"x": np.ones(5, np.float32)}
    house.queue.push(request, house.sink)
    with house.take() as batch:
        assert batch.rows == 1
        batch.reply({"y": batch.tensors()["x"]})
    assert house.sink.responses["a"].outputs["y"].shape == (5,)
    house.close()


def test_the_records_tell_the_stages_in_order(house: House) -> None:
    entry = house.push("a", 2, deadline=10**9)
    house.push("b")
    house.clock.advance(100)
    batch = house.take()
    house.clock.advance(10)
    with batch:
        batch.tensors()
        house.clock.advance(1000)
        house.sink.holds = True
        batch.reply({"y": np.zeros((3, 2), np.float32)})
    house.clock.advance(7)
    house.sink.settle()
    house.ledger.drain()
    record = house.records[-1][0]
    start = entry.request.received
    stamps = ("received", "decoded", "queued", "taken", "gathered", "executed", "scattered", "sent")
    assert [int(record[stamp]) - start for stamp in stamps] == [0, 0, 0, 100, 110, 1110, 1110, 1117]
    assert (record["rows"], record["deadline"] - start, record["number"], record["place"]) == (2, 10**9, 1, 0)
    (batch_record,) = house.batches[-1]
    assert (batch_record["rows"], batch_record["requests"], batch_record["reason"]) == (3, 2, Reason.IDLE)
    assert batch_record["number"] == record["batch"]


def test_a_batch_is_wanted_as_long_as_one_of_its_requests_is(house: House) -> None:
    gone, _ = house.push("a"), house.push("b", deadline=100)
    with house.take() as batch:
        assert batch.is_wanted
        gone.cancel()
        assert batch.is_wanted
        house.clock.advance(100)
        assert not batch.is_wanted


class Slow:
    """A session that echoes; each run lasts `ns` of the house's clock."""

    io, replayable = GraphIO((), ()), False

    def __init__(self, house: House, ns: int) -> None:
        self.house, self.ns = house, ns
        self.rows: list[int] = []

    def run(self, batch: Batch) -> Outputs:
        self.rows.append(batch.rows)
        self.house.clock.advance(self.ns)
        return {"y": batch.tensors()["x"]}

    def close(self) -> None: ...


class Told(Forecast):
    """Keeps what it is told."""

    def __init__(self, house: House) -> None:
        super().__init__(house.queue, house.points, 1)
        self.runs: list[tuple[int, int]] = []

    def ran(self, bucket: int, rows: int, ns: int, *, on_variant: bool = False) -> None:
        self.runs.append((rows, ns))


@pytest.mark.parametrize(("deadline", "ran"), [(16, [8, 8]), (31, [8, 8, 8, 1])])
def test_slices_end_with_the_deadline_and_are_told_one_by_one(transport: str, deadline: int, ran: list[int]) -> None:
    house = House(spec(splits_oversize=True))
    session, forecast = Slow(house, 10), Told(house)
    instance = Instance(0, session, house.queue, forecast, house.clock)
    house.push("a", 25, deadline=deadline)
    house.queue.close()
    instance.start()
    assert instance.join(10)
    assert session.rows == ran
    assert forecast.runs == [(rows, 10) for rows in ran]
    if len(ran) == 4:
        np.testing.assert_array_equal(house.sink.responses["a"].outputs["y"], np.full((25, 2), ord("a"), np.float32))
        assert house.outcomes() == [Outcome.ANSWERED]
    else:
        assert [type(e) for e in house.sink.errors] == [DeadlineExpired]
        assert house.outcomes() == [Outcome.EXPIRED]
    assert house.queue.wait_settled(0)
    house.close()
