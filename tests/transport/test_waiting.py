"""What waits can be cancelled, expire, or be too much: it is answered then, and never run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from headrace.backends.fake import Gate, Script
from headrace.ledger.records import Outcome
from tests.transport.serving import ECHO, PATIENCE, Asked, Serve, Server, fails, tensor
from tests.waiting import until

EXPIRED = "the deadline passed before model 'm' could answer"
POLICY = "dynamic_batching {{ default_queue_policy {{ {} }} }}"


@dataclass
class Held:
    """A server whose one instance stands at the gate with request `first`."""

    server: Server
    script: Script
    gate: Gate
    first: Asked

    def let_go(self) -> None:
        """Open the gate, and wait until everything is settled."""
        self.gate.open()
        assert self.first.result().as_numpy("y").tolist() == [[0]]
        self.server.wait_settled("m")

    def outcomes(self, **counts: int) -> bool:
        return self.server.ledger("m") == {outcome: counts.get(outcome.name, 0) for outcome in Outcome}


Hold = Callable[..., Held]


@pytest.fixture
def hold(serve: Serve) -> Hold:
    def start(config: str = ECHO) -> Held:
        script = Script()
        server = serve({"m": (config, script)})
        script.gate = gate = Gate()
        first = Asked(server, "m", [tensor("x", [[0]])])
        gate.wait_for(1)
        return Held(server, script, gate, first)

    return start


def policy(text: str) -> str:
    return ECHO.replace("dynamic_batching {}", POLICY.format(text))


def test_a_cancelled_request_leaves_the_queue(hold: Hold) -> None:
    held = hold()
    gone, stays = (Asked(held.server, "m", [tensor("x", [[value]])]) for value in (1, 2))
    until(lambda: held.server.waiting("m") == 2)
    gone.call.cancel()
    until(lambda: held.server.waiting("m") == 1)
    with pytest.raises(triton.InferenceServerException) as caught:
        gone.result()
    assert caught.value.status() == str(grpc.StatusCode.CANCELLED)
    held.let_go()
    assert stays.result().as_numpy("y").tolist() == [[2]]
    assert held.script.batches == [1, 1]
    assert held.outcomes(ANSWERED=2, CANCELLED=1)


@pytest.mark.asyncio
async def test_a_cancelled_coroutine_leaves_the_queue(hold: Hold) -> None:
    held = hold()
    async with triton_aio.InferenceServerClient(held.server.address) as client:
        task = asyncio.create_task(client.infer("m", [tensor("x", [[1]])]))
        while held.server.waiting("m") != 1:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while held.server.waiting("m"):
            await asyncio.sleep(0.001)
    held.let_go()
    assert held.script.batches == [1]
    assert held.outcomes(ANSWERED=1, CANCELLED=1)


def test_a_client_that_goes_away_leaves_the_queue(hold: Hold) -> None:
    held = hold()
    own = [("grpc.use_local_subchannel_pool", 1)]
    client = triton.InferenceServerClient(held.server.address, channel_args=own)
    client.async_infer("m", [tensor("x", [[1]])], lambda result, error: None)
    until(lambda: held.server.waiting("m") == 1)
    client.close()
    until(lambda: held.server.waiting("m") == 0)
    held.let_go()
    assert held.script.batches == [1]
    assert held.outcomes(ANSWERED=1, CANCELLED=1)


def test_what_runs_when_its_client_cancels_is_settled_as_cancelled(hold: Hold) -> None:
    held = hold()
    held.first.call.cancel()
    with pytest.raises(triton.InferenceServerException):
        held.first.result()
    # The cancellation has come when a later one on the same connection has.
    marker = Asked(held.server, "m", [tensor("x", [[1]])])
    until(lambda: held.server.waiting("m") == 1)
    marker.call.cancel()
    until(lambda: held.server.waiting("m") == 0)
    held.gate.open()
    held.server.wait_settled("m")
    assert held.script.batches == [1]
    assert held.outcomes(CANCELLED=2)


def test_a_deadline_that_passes_in_the_queue(hold: Hold) -> None:
    held = hold()
    with pytest.raises(triton.InferenceServerException) as caught:
        held.server.client.infer("m", [tensor("x", [[1]])], client_timeout=0.1)
    assert caught.value.status() == str(grpc.StatusCode.DEADLINE_EXCEEDED)
    until(lambda: held.server.waiting("m") == 0)
    held.let_go()
    assert held.script.batches == [1]
    # The client hangs up at the same instant: whichever comes first ends the request.
    ends = held.server.ledger("m")
    assert ends[Outcome.EXPIRED] + ends[Outcome.CANCELLED] == 1


def test_the_timeout_parameter_is_a_deadline(hold: Hold) -> None:
    held = hold()
    with fails(grpc.StatusCode.DEADLINE_EXCEEDED, EXPIRED):
        held.server.client.infer("m", [tensor("x", [[1]])], timeout=50_000, client_timeout=PATIENCE)
    held.let_go()
    assert held.script.batches == [1]
    assert held.outcomes(ANSWERED=1, EXPIRED=1)


def test_the_queue_policy_of_the_model(hold: Hold) -> None:
    held = hold(policy("default_timeout_microseconds: 50000"))
    with fails(grpc.StatusCode.UNAVAILABLE, "Request timeout expired"):
        held.server.client.infer("m", [tensor("x", [[1]])], client_timeout=PATIENCE)
    held.let_go()
    assert held.script.batches == [1]
    assert held.outcomes(ANSWERED=1, EXPIRED=1)


def test_the_timeout_parameter_shortens_the_policy(hold: Hold) -> None:
    held = hold(policy("default_timeout_microseconds: 60000000 allow_timeout_override: true"))
    with fails(grpc.StatusCode.UNAVAILABLE, "Request timeout expired"):
        held.server.client.infer("m", [tensor("x", [[1]])], timeout=50_000, client_timeout=PATIENCE)
    held.let_go()
    assert held.outcomes(ANSWERED=1, EXPIRED=1)


def test_a_full_queue(hold: Hold) -> None:
    held = hold(policy("max_queue_size: 2"))
    waiting = [Asked(held.server, "m", [tensor("x", [[value]])]) for value in (1, 2)]
    until(lambda: held.server.waiting("m") == 2)
    for request_id, told in (("r1", "r1"), ("", "<id_unknown>")):
        with fails(grpc.StatusCode.UNAVAILABLE, f"[request id: {told}] Exceeds maximum queue size"):
            held.server.client.infer("m", [tensor("x", [[3]])], request_id=request_id, client_timeout=PATIENCE)
    held.let_go()
    assert [asked.result().as_numpy("y").tolist() for asked in waiting] == [[[1]], [[2]]]
    assert held.outcomes(ANSWERED=3, REFUSED=2)
