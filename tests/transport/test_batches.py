"""Requests of many clients share batches; each gets its own answer, and nobody suffers from a neighbour."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from headrace.backends.base import Batch
from headrace.backends.fake import Gate, Script
from headrace.ledger.records import Outcome
from tests.transport.serving import ECHO, PATIENCE, Asked, Serve, Server, fails, tensor
from tests.waiting import until

CLIENTS, ROUNDS = 64, 4
INTERNAL = grpc.StatusCode.INTERNAL
INVALID = grpc.StatusCode.INVALID_ARGUMENT
WIDE = ECHO.replace("max_batch_size: 8", "max_batch_size: 16")


def triple(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": 3 * inputs["x"] + 1}


def question(client: int, turn: int) -> np.ndarray[Any, Any]:
    """What client asks in this turn: one of three widths, one or two rows, values that nobody else has."""
    number = client * ROUNDS + turn
    shape = (1 + number % 2, (3, 5, 8)[number % 3])
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape) + 1000 * number


class Company:
    """Called with each batch: lets it run when half of the clients wait behind it, or all that have not finished do."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.unfinished = CLIENTS

    def __call__(self, batch: Batch) -> None:
        others = len(batch.requests)
        until(lambda: self._server.waiting("m") >= min(CLIENTS // 2, self.unfinished - others))


def crowd(serve: Serve) -> tuple[Server, Company]:
    script = Script(compute=triple)
    server = serve({"m": (WIDE, script)})
    script.fail = company = Company(server)
    return server, company


def is_right(result: triton.InferResult, client: int, turn: int) -> bool:
    y = result.as_numpy("y")
    return result.get_response().id == f"{client}/{turn}" and np.array_equal(y, 3 * question(client, turn) + 1)


def assert_batches_formed(server: Server) -> None:
    (stats,) = server.client.get_inference_statistics("m").model_stats
    rows = sum(len(question(client, turn)) for client in range(CLIENTS) for turn in range(ROUNDS))
    assert (stats.inference_count, stats.inference_stats.success.count) == (rows, CLIENTS * ROUNDS)
    assert stats.execution_count < stats.inference_count / 2
    # Fewer executions than requests by half, too: rows of one request alone do not make a batch.
    assert stats.execution_count < stats.inference_stats.success.count / 2


def test_64_clients_with_a_connection_each(serve: Serve) -> None:
    server, company = crowd(serve)
    own = [("grpc.use_local_subchannel_pool", 1)]
    finishing = threading.Lock()

    def ask(client: int) -> list[bool]:
        right: list[bool] = []
        with triton.InferenceServerClient(server.address, channel_args=own) as connection:
            for turn in range(ROUNDS):
                result = connection.infer("m", [tensor("x", question(client, turn))], request_id=f"{client}/{turn}")
                right.append(is_right(result, client, turn))
        with finishing:
            company.unfinished -= 1
        return right

    with ThreadPoolExecutor(CLIENTS) as clients:
        assert list(clients.map(ask, range(CLIENTS))) == [[True] * ROUNDS] * CLIENTS
    assert_batches_formed(server)


@pytest.mark.asyncio
async def test_64_coroutines_over_one_connection(serve: Serve) -> None:
    server, company = crowd(serve)
    async with triton_aio.InferenceServerClient(server.address) as connection:

        async def ask(client: int) -> list[bool]:
            right: list[bool] = []
            for turn in range(ROUNDS):
                result = await connection.infer("m", [tensor("x", question(client, turn))], request_id=f"{client}/{turn}")
                right.append(is_right(result, client, turn))
            company.unfinished -= 1
            return right

        assert await asyncio.gather(*map(ask, range(CLIENTS))) == [[True] * ROUNDS] * CLIENTS
    assert_batches_formed(server)


def test_what_waits_goes_together_by_shape(serve: Serve) -> None:
    script = Script(compute=triple)
    server = serve({"m": (ECHO, script)})
    script.gate = gate = Gate()
    first = Asked(server, "m", [tensor("x", [[0]])])
    gate.wait_for(1)
    waiting = [Asked(server, "m", [tensor("x", [[value] * width])]) for value, width in enumerate((1, 2, 1, 2, 1))]
    until(lambda: server.waiting("m") == 5)
    gate.open()
    first.result()
    assert [a.result().as_numpy("y").tolist() for a in waiting] == [[[1]], [[4, 4]], [[7]], [[10, 10]], [[13]]]
    assert sorted(script.batches) == [1, 2, 3]


def test_an_invalid_request_does_not_touch_those_that_wait(serve: Serve) -> None:
    script = Script()
    server = serve({"m": (ECHO, script)})
    script.gate = gate = Gate()
    first = Asked(server, "m", [tensor("x", [[0]])])
    gate.wait_for(1)
    waiting = [Asked(server, "m", [tensor("x", [[value]])]) for value in range(4)]
    until(lambda: server.waiting("m") == 4)
    with fails(INVALID, "[request id: bad] inference input 'x' data-type is 'FP32', but model 'm' expects 'INT32'"):
        server.client.infer("m", [tensor("x", [[1.0]], "FP32")], request_id="bad", client_timeout=PATIENCE)
    assert server.waiting("m") == 4
    gate.open()
    first.result()
    assert [a.result().as_numpy("y").tolist() for a in waiting] == [[[value]] for value in range(4)]
    assert script.batches == [1, 4]


def refuse_negative(batch: Batch) -> None:
    if (np.asarray(batch.tensors()["x"]) < 0).any():
        raise ValueError("a negative number")


def lose_negative(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Answers with fewer rows than it got."""
    return {"y": inputs["x"][inputs["x"][:, 0] >= 0]}


RAISES = "a negative number"
LOSES = "model 'm' version 1, output 'y': the model returned shape [0,1], expected is [1,-1]"


@pytest.mark.parametrize(
    ("script", "told"),
    [(Script(fail=refuse_negative, replayable=True), RAISES), (Script(compute=lose_negative, replayable=True), LOSES)],
    ids=["raises", "wrong shape"],
)
def test_a_request_the_model_cannot_stand_fails_alone(serve: Serve, script: Script, told: str) -> None:
    server = serve({"m": (ECHO, script)})
    script.gate = gate = Gate()
    first = Asked(server, "m", [tensor("x", [[0]])])
    gate.wait_for(1)
    waiting = [Asked(server, "m", [tensor("x", [[value]])]) for value in (1, -2, 3, -4, 5)]
    until(lambda: server.waiting("m") == 5)
    gate.open()
    first.result()
    for asked, value in zip(waiting, (1, -2, 3, -4, 5), strict=True):
        if value < 0:
            with pytest.raises(triton.InferenceServerException) as caught:
                asked.result()
            assert caught.value.status() == str(INTERNAL)
            assert told in caught.value.message()
        else:
            assert asked.result().as_numpy("y").tolist() == [[value]]
    assert script.batches == [1, 5, 1, 1, 1, 1, 1]
    server.wait_settled("m")
    assert server.ledger("m") == {**dict.fromkeys(Outcome, 0), Outcome.ANSWERED: 4, Outcome.FAILED: 2}


def broken_output(given: Mapping[str, Any]) -> dict[str, Any]:
    x = given["x"]
    return [{}, {"y": x.astype(np.int64)}, {"y": x[:, :, None]}, {"y": x[:-1]}][len(x) - 1]


BAD_OUTPUTS = {
    1: "the model did not return it",
    2: "the model returned datatype INT64, declared is INT32",
    3: "the model returned shape [3,1,1], expected is [3,-1]",
    4: "the model returned shape [3,1], expected is [4,-1]",
}


def test_a_model_that_answers_wrongly_fails_its_requests_only(serve: Serve) -> None:
    server = serve({"m": (ECHO, Script(compute=broken_output)), "other": (ECHO, Script())})
    for rows, told in BAD_OUTPUTS.items():
        with fails(INTERNAL, f"model 'm' version 1, output 'y': {told}"):
            server.client.infer("m", [tensor("x", [[1]] * rows)], client_timeout=PATIENCE)
        assert server.client.infer("other", [tensor("x", [[rows]])]).as_numpy("y").tolist() == [[rows]]


def test_without_replay_a_batch_that_fails_fails_whole(serve: Serve) -> None:
    script = Script(fail=refuse_negative)
    server = serve({"m": (ECHO, script)})
    script.gate = gate = Gate()
    first = Asked(server, "m", [tensor("x", [[0]])])
    gate.wait_for(1)
    waiting = [Asked(server, "m", [tensor("x", [[value]])]) for value in (1, -2)]
    until(lambda: server.waiting("m") == 2)
    gate.open()
    first.result()
    for asked in waiting:
        with fails(INTERNAL, RAISES):
            asked.result()
    assert server.client.infer("m", [tensor("x", [[7]])]).as_numpy("y").tolist() == [[7]]
    assert script.batches == [1, 2, 1]
