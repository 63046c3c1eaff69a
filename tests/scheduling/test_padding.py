"""Requests of different lengths in one batch: the model sees numpy's padding, and each client gets its own length back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import BackendFailed, InvalidRequest
from headrace.model import Batching, ModelSpec, Padding
from headrace.request import Request
from headrace.scheduling.admission import Limits
from headrace.scheduling.forecast import Forecast
from headrace.scheduling.plan import Reason, SetPoints, Unlearned, plan
from headrace.tensor import DTYPES, BytesTensor, TensorSpec
from tests.scheduling.support import House

EDGES = (4, 8)
X = TensorSpec("x", "INT32", (-1,))
MASK = TensorSpec("mask", "INT64", (-1,), optional=True)
EXTRA = TensorSpec("extra", "FP32", (2,))
EVERY = TensorSpec("every", "FP32", (-1, 2))
POOLED = TensorSpec("pooled", "FP32", (3,))


def model(
    inputs: Sequence[TensorSpec] = (X, MASK),
    outputs: Sequence[TensorSpec] = (EVERY, POOLED),
    *,
    padding: Padding | None = None,
) -> ModelSpec:
    padding = padding or Padding(0, {"x": 7, "mask": 0}, EDGES, "mask")
    return ModelSpec("m", 1, "d", "fake", "", 8, tuple(inputs), tuple(outputs), Batching(enabled=True), padding=padding)


def push(house: House, name: str, inputs: Mapping[str, Any], **options: Any) -> None:
    house.queue.push(Request("m", inputs, id=name, **options), house.sink).wake()


def ints(*shape: int, start: int = 1) -> np.ndarray:
    return np.arange(start, start + np.prod(shape), dtype=np.int32).reshape(shape)


@pytest.fixture
def house(transport: str) -> Any:
    made = House(model())
    yield made
    made.close()


def outputs_for(rows: int, length: int) -> dict[str, Any]:
    return {
        "every": np.arange(rows * length * 2, dtype=np.float32).reshape(rows, length, 2),
        "pooled": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3),
    }


def test_lengths_of_one_bucket_run_together_as_long_as_the_longest_and_come_back_apart(house: House) -> None:
    push(house, "a", {"x": ints(1, 2)})
    push(house, "b", {"x": ints(2, 4), "mask": np.int64([[1, 1, 1, 0], [1, 1, 0, 0]])}, outputs=("pooled", "every"))
    push(house, "long", {"x": ints(1, 5)})
    push(house, "c", {"x": ints(1, 1)})
    push(house, "none", {"x": ints(0, 3)})
    made = outputs_for(4, 4)
    with house.take() as batch:
        assert [request.id for request in batch.requests] == ["a", "b", "c", "none"]
        seen = batch.tensors()
        assert seen["x"].tolist() == [[1, 2, 7, 7], [1, 2, 3, 4], [5, 6, 7, 8], [1, 7, 7, 7]]
        assert seen["mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
        assert list(seen) == ["x", "mask"]
        batch.reply(made)
    answers = {name: response.outputs for name, response in house.sink.responses.items()}
    np.testing.assert_array_equal(answers["a"]["every"], made["every"][:1, :2])
    np.testing.assert_array_equal(answers["b"]["every"], made["every"][1:3])
    np.testing.assert_array_equal(answers["c"]["every"], made["every"][3:, :1])
    assert answers["none"]["every"].shape == (0, 3, 2)
    assert list(answers["b"]) == ["pooled", "every"]
    np.testing.assert_array_equal(answers["b"]["pooled"], made["pooled"][1:3])
    assert all(output.flags.c_contiguous for outputs in answers.values() for output in outputs.values())
    with house.take() as batch:
        assert batch.tensors()["x"].tolist() == [[1, 2, 3, 4, 5]]
        batch.reply(outputs_for(1, 5))
    assert house.sink.responses["long"].outputs["every"].shape == (1, 5, 2)
    house.ledger.drain()
    assert [int(n) for part in house.batches for n in part["padding"]] == [2 + 0 + 3, 0]


def test_nothing_is_padded_where_lengths_are_alike(house: House) -> None:
    push(house, "a", {"x": ints(1, 4)})
    push(house, "b", {"x": ints(2, 4, start=9)})
    with house.take() as batch:
        seen = batch.tensors()
        assert seen["x"].tolist() == [[1, 2, 3, 4], [9, 10, 11, 12], [13, 14, 15, 16]]
        assert seen["mask"].tolist() == [[1] * 4] * 3
        batch.reply(outputs_for(3, 4))
    assert house.sink.responses["b"].outputs["every"].shape == (2, 4, 2)
    house.ledger.drain()
    assert [int(n) for part in house.batches for n in part["padding"]] == [0]


def test_inputs_that_are_not_padded_stay_as_they_are(transport: str) -> None:
    house = House(model([X, EXTRA, TensorSpec("text", "BYTES", (1,))], padding=Padding(0, {"x": -1}, EDGES)))
    extra = np.float32([[1, 2], [3, 4]])
    for place, length in enumerate((3, 1)):
        text = BytesTensor.of([f"t{place}"], (1, 1))
        push(house, str(length), {"x": ints(1, length), "extra": extra[place : place + 1], "text": text})
    with house.take() as batch:
        seen = batch.tensors()
        assert seen["x"].tolist() == [[1, 2, 3, -1], [1, -1, -1, -1]]
        np.testing.assert_array_equal(seen["extra"], extra)
        assert seen["text"] == BytesTensor.of(["t0", "t1"], (2, 1))
        batch.reply(outputs_for(2, 4))
    house.close()


def test_an_output_that_is_said_to_be_whole_is_not_cut_back(transport: str) -> None:
    found = TensorSpec("found", "FP32", (-1,))
    house = House(model([X], [EVERY, found], padding=Padding(0, {"x": 0}, EDGES, whole=("found",))))
    for name, length in (("a", 3), ("b", 2)):
        push(house, name, {"x": ints(1, length)})
    with house.take() as batch:
        batch.reply({"every": outputs_for(2, 3)["every"], "found": np.arange(10, dtype=np.float32).reshape(2, 5)})
    answers = [house.sink.responses[name].outputs for name in "ab"]
    assert [np.asarray(answer["every"]).shape for answer in answers] == [(1, 3, 2), (1, 2, 2)]
    assert [np.asarray(answer["found"]).tolist() for answer in answers] == [[[0, 1, 2, 3, 4]], [[5, 6, 7, 8, 9]]]
    house.close()


def test_run_alone_a_request_is_padded_to_the_same_length(house: House) -> None:
    push(house, "a", {"x": ints(1, 3)})
    push(house, "b", {"x": ints(2, 2)})
    with house.take() as batch:
        for index, rows in enumerate((1, 2)):
            seen = batch.only(index).tensors()
            assert seen["x"].shape == seen["mask"].shape == (rows, 3)
            batch.send(index, outputs_for(rows, 3), final=True)
    for name, shape in (("a", (1, 3, 2)), ("b", (2, 2, 2))):
        every = house.sink.responses[name].outputs["every"]
        np.testing.assert_array_equal(every, outputs_for(shape[0], 3)["every"][:, : shape[1]])


def test_text_is_cut_back(transport: str) -> None:
    house = House(model(outputs=[TensorSpec("words", "BYTES", (2, -1))]))
    push(house, "a", {"x": ints(1, 3)})
    push(house, "b", {"x": ints(1, 1)})
    words = BytesTensor.of([f"w{number}" * number for number in range(12)], (2, 2, 3))
    with house.take() as batch:
        batch.reply({"words": words})
    for name, row, length in (("a", 0, 3), ("b", 1, 1)):
        answer = house.sink.responses[name].outputs["words"]
        np.testing.assert_array_equal(answer.objects(), words.objects()[row : row + 1, :, :length])
    house.close()


def test_an_output_of_another_length_fails(house: House) -> None:
    push(house, "a", {"x": ints(1, 3)})
    with house.take() as batch:
        batch.reply(outputs_for(1, 2))
    (error,) = house.sink.errors
    assert isinstance(error, BackendFailed)
    told = (
        "model 'm' version 1, output 'every': the model returned size 2 along dimension 1, where the padded length of its inputs"
    )
    assert error.message == f"{told} is 3"


def test_a_batch_has_no_more_elements_than_its_budget(house: House) -> None:
    for name, rows in (("a", 2), ("b", 1), ("c", 1)):
        push(house, name, {"x": ints(rows, 3)})
    points = SetPoints(8, max_elements=12)
    for expected, reason in ((["a", "b"], Reason.FULL), (["c"], Reason.IDLE)):
        with house.queue.turn(house.clock.now()) as turn:
            assert set(turn.view["padded"].tolist()) == {4}
            decided = plan(turn.view, Unlearned(), points, house.clock.now())
            assert decided.reason is reason
            with turn.take(decided, 0) as batch:
                assert [request.id for request in batch.requests] == expected


def test_one_request_runs_whatever_the_budget(house: House) -> None:
    push(house, "a", {"x": ints(5, 8)})
    with house.queue.turn(house.clock.now()) as turn:
        assert len(plan(turn.view, Unlearned(), SetPoints(8, max_elements=1), house.clock.now()).take) == 1


TWO = (X, TensorSpec("types", "INT32", (-1, -1), optional=True), MASK)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (
            {"x": ints(1, 9)},
            "input 'x' of model 'm' has length 9 along dimension 1; the largest bucket is 8: send at most that, or configure a "
            "larger one",
        ),
        ({"x": ints(1, 0)}, "input 'x' of model 'm' has length 0 along dimension 1: send at least 1"),
        (
            {"x": ints(1, 3), "types": ints(1, 3, 1), "mask": np.ones((1, 4), np.int64)},
            "input 'mask' of model 'm' has length 4 along dimension 1, but input 'x' has 3: send inputs of the same length",
        ),
        (
            {"x": ints(1, 1), "types": np.zeros((1, 1, 1 << 27), np.int32)},
            "input 'types' of model 'm' has length 1 along dimension 1; padded to 4 it has 2147483648 bytes, more than the "
            "2147483647 that there may be: send less",
        ),
    ],
    ids=["too long", "empty", "unequal", "too large"],
)
def test_lengths_that_cannot_be_padded(transport: str, inputs: dict[str, Any], told: str) -> None:
    house = House(model(TWO, padding=Padding(0, {"x": 0, "types": 1, "mask": 0}, EDGES, "mask")))
    with pytest.raises(InvalidRequest) as caught:
        push(house, "r", inputs)
    assert caught.value.message == f"[request id: r] {told}"
    house.close()


def test_no_padded_input_no_length(transport: str) -> None:
    optional = TensorSpec("x", "INT32", (-1,), optional=True)
    house = House(model([EXTRA, optional, MASK], [POOLED]))
    push(house, "a", {"extra": np.zeros((1, 2), np.float32)})
    push(house, "b", {"extra": np.zeros((1, 2), np.float32), "mask": np.ones((1, 2), np.int64)})
    with house.take() as batch:
        assert list(batch.tensors()) == ["extra"]
        batch.reply({"pooled": np.zeros((1, 3), np.float32)})
    with house.take() as batch:
        assert batch.tensors()["mask"].tolist() == [[1, 1]]
        batch.reply({"pooled": np.zeros((1, 3), np.float32)})
    assert set(house.sink.responses) == {"a", "b"}
    house.close()


VALUES = {"BOOL": (0, 1), "UINT8": (0, 255), "INT64": (0, -(1 << 63), (1 << 63) - 1), "FP32": (0.0, -1.5, float("-inf"))}


def pad(array: np.ndarray, axis: int, padded: int, value: float) -> np.ndarray:
    """The reference. `axis` counts the batch dimension."""
    widths = [(0, padded - array.shape[axis] if place == axis else 0) for place in range(array.ndim)]
    return np.pad(array, widths, constant_values=np.array(value, array.dtype))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_sent_is_padded_as_numpy_does(transport: str, data: st.DataObject) -> None:
    datatype = data.draw(st.sampled_from([*DTYPES]))
    dtype = DTYPES[datatype]
    value = data.draw(st.sampled_from(VALUES.get(datatype, (0, 3))))
    axis = data.draw(st.integers(0, 2))
    fixed = data.draw(st.lists(st.integers(1, 3), min_size=axis, max_size=3))
    dims = (*fixed[:axis], -1, *fixed[axis:])
    mask = TensorSpec("mask", datatype, dims, optional=True)
    inputs, outputs = [TensorSpec("x", datatype, dims), mask], [TensorSpec("y", datatype, dims)]
    padding = Padding(axis, {"x": value, "mask": 0}, (3, 6), data.draw(st.sampled_from(["", "mask"])))
    house = House(model(inputs, outputs, padding=padding))
    asked: dict[str, np.ndarray] = {}
    masks: dict[str, np.ndarray | None] = {}
    for number in range(data.draw(st.integers(1, 4))):
        shape = (data.draw(st.integers(0, 2)), *fixed[:axis], data.draw(st.integers(1, 6)), *fixed[axis:])
        count = int(np.prod(shape))
        raw = data.draw(st.binary(min_size=count, max_size=count))
        asked[str(number)] = (np.frombuffer(raw, np.uint8) % 2).astype(dtype).reshape(shape)
        sent = {"x": asked[str(number)]}
        masks[str(number)] = np.ones(shape, dtype) if padding.mask else None
        if data.draw(st.booleans()):
            sent["mask"] = masks[str(number)] = np.zeros(shape, dtype)
        push(house, str(number), sent)
    answered: set[str] = set()
    while answered < asked.keys():
        with house.take() as batch:
            names = [request.id for request in batch.requests]
            longest = max(asked[name].shape[axis + 1] for name in names)
            wanted = np.concatenate([pad(asked[name], axis + 1, longest, value) for name in names])
            seen = batch.tensors()
            assert seen["x"].dtype == dtype
            np.testing.assert_array_equal(seen["x"].view(np.uint8), wanted.view(np.uint8))
            theirs = [mask for name in names if (mask := masks[name]) is not None]
            assert len(theirs) in (0, len(names))
            assert ("mask" in seen) is bool(theirs)
            if theirs:
                np.testing.assert_array_equal(seen["mask"], np.concatenate([pad(m, axis + 1, longest, 0) for m in theirs]))
            batch.reply({"y": seen["x"]})
        for name in names:
            np.testing.assert_array_equal(house.sink.responses[name].outputs["y"], asked[name])
        answered |= set(names)
    house.close()


def test_the_door_counts_on_no_larger_batches_than_the_budget_allows(house: House) -> None:
    told: list[Limits] = []
    house.queue.set_limits = told.append
    points = SetPoints(8, max_elements=8)
    forecast = Forecast(house.queue, points, 1)
    push(house, "a", {"x": ints(1, 3)})
    with house.queue.turn(house.clock.now()) as turn:
        decided = plan(turn.view, Unlearned(), points, house.clock.now())
        forecast.saw(turn.view, decided, house.clock.now())
    for rows in (1, 2, 1, 2, 1, 2):
        forecast.ran(decided.bucket, rows, 1000 * rows)
    assert told[-1].estimate is not None
    # Lengths of this bucket are up to 4.
    assert told[-1].estimate.lines[decided.bucket].max_rows == 2
