"""A request with more rows than a batch may have: refused, or run in slices where the model asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from headrace.backends.base import Batch
from headrace.backends.fake import Gate, Script
from headrace.ledger.records import Outcome
from headrace.tensor import BytesTensor
from tests.transport.serving import ECHO, PATIENCE, Asked, Serve, Server, fails, message, tensor
from tests.transport.streaming import Raw, Told
from tests.transport.test_padding import assert_is_right, compute, padded, row
from tests.waiting import until

INTERNAL, INVALID = grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT
SPLITS = 'parameters { key: "split_oversize" value { string_value: "true" } }'
REFUSED = "[request id: r] inference request batch-size must be <= 8 for 'm'"


def triple(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": 3 * inputs["x"] + 1}


def rows(count: int, width: int = 3) -> np.ndarray[Any, Any]:
    return np.arange(count * width, dtype=np.int32).reshape(count, width)


def infer(server: Server, x: Any, datatype: str = "INT32") -> Any:
    return server.client.infer("m", [tensor("x", x, datatype)], request_id="r", client_timeout=PATIENCE).as_numpy("y")


@pytest.mark.parametrize("batching", ["dynamic_batching {}", ""], ids=["batching", "no batching"])
@pytest.mark.parametrize("count", [8, 9, 16, 21])
def test_the_answer_is_that_of_one_run(serve: Serve, count: int, batching: str) -> None:
    script = Script(compute=triple)
    server = serve({"m": (ECHO.replace("dynamic_batching {}", batching) + SPLITS, script)})
    np.testing.assert_array_equal(infer(server, rows(count)), 3 * rows(count) + 1)
    assert script.batches == [min(8, count - at) for at in range(0, count, 8)]
    server.wait_settled("m")
    assert server.ledger("m")[Outcome.ANSWERED] == 1


def test_bytes(serve: Serve) -> None:
    seen: list[list[bytes]] = []

    def look(batch: Batch) -> None:
        given = batch.tensors()["x"]
        assert isinstance(given, BytesTensor)
        seen.append(given.objects().ravel().tolist())

    script = Script(fail=look)
    server = serve({"m": (ECHO.replace("TYPE_INT32", "TYPE_STRING") + SPLITS, script)})
    seen.clear()
    words = np.array([[b"", b"\xff" * row] for row in range(19)], np.object_)
    assert infer(server, words, "BYTES").tolist() == words.tolist()
    assert [element for part in seen for element in part] == words.ravel().tolist()
    assert script.batches == [8, 8, 3]


def test_over_a_stream(serve: Serve) -> None:
    script = Script()
    server = serve({"m": (ECHO + SPLITS, script)})
    with Raw(server) as raw:
        raw.ask(message("m", [("x", "INT32", (17, 1))], [rows(17, 1).tobytes()], id="r"))
        assert raw.rest() == [Told("r", tuple(range(17)), True)]
    assert script.batches == [8, 8, 1]


def test_classes_of_all_rows(serve: Serve) -> None:
    server = serve({"m": (ECHO + SPLITS, Script())})
    wanted = [triton.InferRequestedOutput("y", class_count=1)]
    answer = server.client.infer("m", [tensor("x", rows(10, 2))], outputs=wanted, client_timeout=PATIENCE)
    assert answer.as_numpy("y").ravel().tolist() == [f"{2 * row + 1}:1".encode() for row in range(10)]


def test_padded_and_cut_back(serve: Serve) -> None:
    script = Script(compute=compute)
    server = serve({"m": (padded(split_oversize="true"), script)})
    x = [row(3, start) for start in range(1, 20)]
    assert_is_right(server.client.infer("m", [tensor("x", x)], client_timeout=PATIENCE), x)
    assert script.batches == [8, 8, 3]


@pytest.mark.parametrize("parameter", ["", SPLITS.replace("true", "false")], ids=["by default", "when told so"])
def test_without_the_option_it_is_refused_in_tritons_words(serve: Serve, parameter: str) -> None:
    script = Script()
    server = serve({"m": (ECHO + parameter, script)})
    with fails(INVALID, REFUSED):
        infer(server, rows(9))
    assert script.batches == []


def test_rows_of_nothing_are_refused(serve: Serve) -> None:
    """They are free to send, and a message of a few bytes could ask for more runs than there will ever be."""
    script = Script()
    server = serve({"m": (ECHO + SPLITS, script)})
    with fails(INVALID, REFUSED):
        server.stub.ModelInfer(message("m", [("x", "INT32", (1 << 40, 0))], [b""], id="r"), timeout=PATIENCE)
    with fails(INVALID, "[request id: r] input byte size mismatch for input 'x' for model 'm'. Expected 4398046511104, got 4"):
        server.stub.ModelInfer(message("m", [("x", "INT32", (1 << 40, 1))], [bytes(4)], id="r"), timeout=PATIENCE)
    assert script.batches == []


def test_it_runs_alone_and_others_are_served(serve: Serve) -> None:
    script = Script()
    server = serve({"m": (ECHO + SPLITS, script)})
    script.gate = gate = Gate()
    first = Asked(server, "m", [tensor("x", [[0]])])
    gate.wait_for(1)
    waiting: list[Asked] = []
    for count in (2, 20, 3):
        waiting.append(Asked(server, "m", [tensor("x", rows(count))]))
        until(lambda: server.waiting("m") == len(waiting))
    gate.open()
    first.result()
    for asked, count in zip(waiting, (2, 20, 3), strict=True):
        np.testing.assert_array_equal(asked.result().as_numpy("y"), rows(count))
    assert script.batches == [1, 2, 8, 8, 4, 3]


def fall_over(batch: Batch) -> None:
    if int(np.asarray(batch.tensors()["x"]).max()) >= 24:
        raise ValueError("it fell over")


def lose_a_row(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": inputs["x"][: min(7, len(inputs["x"]))]}


def grow(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": np.zeros((len(inputs["x"]), len(inputs["x"])), np.int32)}


ENDS = {
    "raises": (Script(fail=fall_over, replayable=True), [8, 8], "it fell over"),
    "loses rows": (
        Script(compute=lose_a_row),
        [8],
        "model 'm' version 1, output 'y': the model returned shape [7,3], expected is [8,-1]",
    ),
    "varies": (
        Script(compute=grow),
        [8, 8, 4],
        "model 'm' version 1, output 'y': the model returned rows of shape [8] and of [4] for slices of one request, which "
        "cannot be one tensor; send fewer rows at a time",
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_slice_that_fails_fails_its_request_only(serve: Serve, case: str) -> None:
    script, ran, told = ENDS[case]
    server = serve({"m": (ECHO + SPLITS, script)})
    with fails(INTERNAL, told):
        infer(server, rows(20))
    assert script.batches == ran
    assert len(infer(server, rows(1))) == 1
    server.wait_settled("m")
    assert server.ledger("m") == {**dict.fromkeys(Outcome, 0), Outcome.ANSWERED: 1, Outcome.FAILED: 1}


def test_nothing_more_runs_for_a_client_that_has_gone(serve: Serve) -> None:
    script = Script()
    server = serve({"m": (ECHO + SPLITS, script)})
    script.gate = gate = Gate()
    gone = Asked(server, "m", [tensor("x", rows(30))])
    gate.wait_for(1)
    gate.let()
    gate.wait_for(2)
    gone.call.cancel()
    with pytest.raises(triton.InferenceServerException):
        gone.result()
    # The cancellation has come when a later one on the same connection has.
    marker = Asked(server, "m", [tensor("x", [[1]])])
    until(lambda: server.waiting("m") == 1)
    marker.call.cancel()
    until(lambda: server.waiting("m") == 0)
    gate.open()
    server.wait_settled("m")
    assert script.batches == [8, 8]
    assert server.ledger("m") == {**dict.fromkeys(Outcome, 0), Outcome.CANCELLED: 2}
