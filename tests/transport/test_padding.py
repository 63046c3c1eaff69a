"""Models whose inputs are padded: clients send what length they have, and get that length back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from headrace.backends.base import Batch
from headrace.backends.fake import Gate, Script
from headrace.tensor import BytesTensor
from tests.transport.asking import ask
from tests.transport.serving import PATIENCE, Asked, Serve, Server, fails, fill, serving, tensor
from tests.waiting import until

INVALID = grpc.StatusCode.INVALID_ARGUMENT
INTERNAL = grpc.StatusCode.INTERNAL


def padded(**parameters: str) -> str:
    """`y` is as long as `x`, `sum` is not; `mask` says what of them is real."""
    given = {"padding": "x=9 mask=0", "padding_mask": "mask", "padding_buckets": "4 8", **parameters}
    said = "".join(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in given.items())
    return f"""
backend: "fake"
max_batch_size: 8
input {{ name: "x" data_type: TYPE_INT32 dims: -1 }}
input {{ name: "mask" data_type: TYPE_INT32 dims: -1 optional: true }}
output {{ name: "y" data_type: TYPE_INT32 dims: [ 2, -1 ] }}
output {{ name: "words" data_type: TYPE_STRING dims: -1 }}
output {{ name: "sum" data_type: TYPE_INT32 dims: 1 }}
dynamic_batching {{}}
{said}"""


def compute(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Of what is real: y has it twice, and negated; words are its digits; sum is its sum."""
    x, mask = inputs["x"], inputs["mask"]
    assert (x[mask == 0] == 9).all()
    words = BytesTensor.of([str(number) * 2 for number in x.reshape(-1).tolist()], x.shape)
    return {"y": np.stack([x, -x], axis=1), "words": words, "sum": (x * mask).sum(1, dtype=np.int32)[:, None]}


def row(length: int, start: int = 1) -> list[int]:
    return list(range(start, start + length))


def assert_is_right(result: triton.InferResult, x: Sequence[Sequence[int]]) -> None:
    assert result.as_numpy("y").tolist() == [[list(r), [-n for n in r]] for r in x]
    assert result.as_numpy("words").tolist() == [[str(n).encode() * 2 for n in r] for r in x]
    assert result.as_numpy("sum").tolist() == [[sum(r)] for r in x]


@pytest.fixture
def waiting(serve: Serve) -> Iterator[tuple[Server, Script, Gate]]:
    """A server whose model stands before a gate, with one request."""
    script = Script(compute=compute, replayable=True)
    server = serve({"m": (padded(), script)})
    script.gate = gate = Gate()
    first = Asked(server, "m", [tensor("x", [[0]])])
    gate.wait_for(1)
    yield server, script, gate
    gate.open()
    first.result()


def test_many_lengths_in_two_batches(waiting: tuple[Server, Script, Gate]) -> None:
    server, script, gate = waiting
    questions = [[row(length, 10 * length + count) for count in range(1 + length % 2)] for length in range(1, 6)]
    asked = [Asked(server, "m", [tensor("x", x)]) for x in questions]
    until(lambda: server.waiting("m") == len(questions))
    gate.open()
    for answer, x in zip(asked, questions, strict=True):
        assert_is_right(answer.result(), x)
    assert script.batches == [1, sum(len(x) for x in questions[:4]), len(questions[4])]
    server.wait_settled("m")
    server.engine.ledger.drain()
    padding = sum(totals.padding for totals in server.engine.statistics.versions.values())
    assert padding == sum(len(x) * (4 - len(x[0])) for x in questions[:4])


def test_a_mask_that_is_sent_is_taken(waiting: tuple[Server, Script, Gate]) -> None:
    server, script, gate = waiting
    with_mask = Asked(server, "m", [tensor("x", [[9, 2, 9]]), tensor("mask", [[0, 1, 1]])])
    without = Asked(server, "m", [tensor("x", [[5, 6]])])
    until(lambda: server.waiting("m") == 2)
    gate.open()
    assert with_mask.result().as_numpy("sum").tolist() == [[11]]
    assert without.result().as_numpy("sum").tolist() == [[11]]
    assert script.batches == [1, 2]


def test_requests_of_this_process_are_mates(waiting: tuple[Server, Script, Gate]) -> None:
    server, script, gate = waiting
    remote = Asked(server, "m", [tensor("x", [row(3)])])
    until(lambda: server.waiting("m") == 1)
    with ThreadPoolExecutor(1) as pool:
        local = pool.submit(server.engine.infer, "m", {"x": np.array([row(2, 7)], np.int32)})
        until(lambda: server.waiting("m") == 2)
        gate.open()
        answer = local.result(PATIENCE)
    assert_is_right(remote.result(), [row(3)])
    assert answer["y"].tolist() == [[[7, 8], [-7, -8]]]
    assert answer["words"].tolist() == [[b"77", b"88"]]
    assert script.batches == [1, 2]


def test_run_again_alone_when_one_fails(waiting: tuple[Server, Script, Gate]) -> None:
    server, script, gate = waiting

    def fail(batch: Batch) -> None:
        if (np.asarray(batch.tensors()["x"]) == 13).any():
            raise ValueError("thirteen")

    script.fail = fail
    good, bad = Asked(server, "m", [tensor("x", [row(3)])]), Asked(server, "m", [tensor("x", [[13]])])
    until(lambda: server.waiting("m") == 2)
    gate.open()
    assert_is_right(good.result(), [row(3)])
    with fails(INTERNAL, "thirteen"):
        bad.result()


def test_chosen_outputs_in_the_order_asked_for_and_as_classes(waiting: tuple[Server, Script, Gate]) -> None:
    server, _, gate = waiting
    names = ("sum", "y")
    some = Asked(server, "m", [tensor("x", [row(3)])], outputs=[triton.InferRequestedOutput(name) for name in names])
    classes = Asked(server, "m", [tensor("x", [[3, 2]])], outputs=[triton.InferRequestedOutput("y", class_count=9)])
    until(lambda: server.waiting("m") == 2)
    gate.open()
    assert [output.name for output in some.result().get_response().outputs] == list(names)
    assert some.result().as_numpy("y").shape == (1, 2, 3)
    # The padding, nines, is among the classes of nobody.
    assert classes.result().as_numpy("y").tolist() == [[b"3:0", b"2:1", b"-2:3", b"-3:2"]]


@pytest.mark.parametrize("alone", [True, False])
def test_an_output_in_shared_memory_has_its_own_length(serve: Serve, tmp_path: Path, transport: str, alone: bool) -> None:
    script = Script(compute=compute)
    fake = fill(tmp_path / "shm", {"m": (padded(), script)})
    segment = Path("/dev/shm") / f"headrace-test-{os.getpid()}-padding"
    with serving(transport, tmp_path / "shm", {"fake": fake}, allow_client_shm=True) as server:
        segment.write_bytes(bytes(64))
        try:
            server.client.register_system_shared_memory("r", f"/{segment.name}", 64)
            script.gate = gate = Gate()
            first = Asked(server, "m", [tensor("x", [[0]])])
            gate.wait_for(1)
            wanted = triton.InferRequestedOutput("y")
            wanted.set_shared_memory("r", 24, 4)
            placed = Asked(server, "m", [tensor("x", [row(3)])], outputs=[wanted])
            others = [] if alone else [Asked(server, "m", [tensor("x", [row(2)])])]
            until(lambda: server.waiting("m") == 1 + len(others))
            gate.open()
            (output,) = placed.result().get_response().outputs
            assert list(output.shape) == [1, 2, 3]
            content = np.frombuffer(segment.read_bytes(), np.int32).tolist()
            assert content == [0, 1, 2, 3, -1, -2, -3, *[0] * 9]
            for other in (first, *others):
                other.result()
        finally:
            segment.unlink()


def test_what_cannot_be_padded_is_told_in_the_same_words(serve: Serve) -> None:
    server = serve({"m": (padded(), Script(compute=compute))})
    unknown = "[request id: <id_unknown>] "
    who = "input 'x' of model 'm' has length"
    too_long = f"{who} 9 along dimension 1; the largest bucket is 8: send at most that, or configure a larger one"
    cases = [
        ([tensor("x", [row(9)])], too_long),
        ([tensor("x", np.zeros((1, 0)))], f"{who} 0 along dimension 1: send at least 1"),
        (
            [tensor("x", [row(3)]), tensor("mask", [[1, 1]])],
            "input 'mask' of model 'm' has length 2 along dimension 1, but input 'x' has 3: send inputs of the same length",
        ),
    ]
    for inputs, told in cases:
        with fails(INVALID, unknown + told):
            server.client.infer("m", inputs, client_timeout=PATIENCE)
    with fails(INVALID, f"[request id: r1] {too_long}"):
        server.client.infer("m", [tensor("x", [row(9)])], request_id="r1", client_timeout=PATIENCE)
    assert_is_right(server.client.infer("m", [tensor("x", [row(8)])]), [row(8)])


def test_the_answers_of_a_decoupled_model(serve: Serve) -> None:
    config = padded() + "model_transaction_policy { decoupled: true }"
    server = serve({"m": (config, Script(compute=compute, answers=2))})
    asked = ask((("x", "INT32", (1, 3)),), (np.int32([1, 2, 3]).tobytes(),))
    answers = list(server.stub.ModelStreamInfer(iter([asked]), timeout=PATIENCE))
    assert [list(answer.infer_response.outputs[0].shape) for answer in answers] == [[1, 2, 3]] * 2
    raw = answers[0].infer_response.raw_output_contents[0]
    assert np.frombuffer(raw, np.int32).tolist() == [1, 2, 3, -1, -2, -3]


def test_a_model_that_does_not_keep_the_length(serve: Serve) -> None:
    def shortens(inputs: Mapping[str, Any]) -> dict[str, Any]:
        made = compute(inputs)
        return {**made, "y": made["y"][:, :, :-1]}

    server = serve({"m": (padded(), Script(compute=shortens))})
    told = "the model returned size 1 along dimension 2, where the padded length of its inputs is 2"
    with fails(INTERNAL, f"model 'm' version 1, output 'y': {told}"):
        server.client.infer("m", [tensor("x", [row(2)])], client_timeout=PATIENCE)


def test_a_budget_of_elements(serve: Serve) -> None:
    script = Script(compute=compute)
    server = serve({"m": (padded(padding_budget="12"), script)})
    script.gate = gate = Gate()
    first = Asked(server, "m", [tensor("x", [[0]])])
    gate.wait_for(1)
    asked = [Asked(server, "m", [tensor("x", [row(length)])]) for length in (2, 3, 4, 1)]
    until(lambda: server.waiting("m") == 4)
    gate.open()
    for answer, length in zip(asked, (2, 3, 4, 1), strict=True):
        assert_is_right(answer.result(), [row(length)])
    first.result()
    assert script.batches == [1, 3, 1]


def test_without_dynamic_batching_nothing_is_padded(serve: Serve) -> None:
    seen: list[tuple[int, ...]] = []

    def look(batch: Batch) -> None:
        seen.append(batch.tensors()["x"].shape)

    script = Script(compute=compute)
    server = serve({"m": (padded().replace("dynamic_batching {}", ""), script)})
    script.fail = look
    for length in (1, 5):
        assert_is_right(server.client.infer("m", [tensor("x", [row(length)])]), [row(length)])
    assert seen == [(1, 1), (1, 5)]


def test_a_configuration_that_makes_no_sense_is_not_served(serve: Serve) -> None:
    server = serve({"m": (padded(padding_buckets="8 4"), Script())})
    (model,) = server.client.get_model_repository_index().models
    assert model.reason.startswith("model 'm': parameter 'padding_buckets' is '8 4', expected lengths that ascend")
