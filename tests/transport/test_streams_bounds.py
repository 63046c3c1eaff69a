"""Streams that end early, many at once, and readers that are slow: nobody else notices, and every request is settled once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2 as pb

from headrace.backends.fake import Gate, Script
from headrace.clock import SECOND
from headrace.ledger.records import Outcome
from headrace.transport.base import StreamWindow
from tests.build_models import add_model
from tests.transport.serving import ECHO, PATIENCE, Serve, Server, fails, tensor
from tests.transport.streaming import DECOUPLED, SINGLY, Conversation, Raw, Told, answers, ended, one
from tests.transport.test_drain import process, slow
from tests.waiting import until

WIDE = SINGLY.replace("dims: -1", "dims: 65536", 1)
"""An answer of 256 KiB: gRPC's windows hold few of them for a client that does not read."""
DRAINING = "GRPC server is shutting down and has stopped accepting new requests."


def wide(value: int, **fields: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m", id=str(value), **fields)
    request.inputs.add(name="x", datatype="INT32", shape=(1, 65536))
    request.raw_input_contents.append(np.full(65536, value, np.int32).tobytes())
    return request


def narrow(**bounds: int) -> dict[str, Any]:
    """Options of a server whose streams have these bounds."""
    return {"transport_options": {"window": StreamWindow(**bounds)}}


@contextmanager
def held(serve: Serve, config: str = SINGLY) -> Iterator[tuple[Server, Script, Gate]]:
    """A server whose one instance stands at the gate with request 0 of another client, which is answered in the end."""
    script = Script()
    server = serve({"m": (config, script)})
    script.gate = gate = Gate()
    with Conversation(server) as first:
        first.ask(0)
        gate.wait_for(1)
        yield server, script, gate
        gate.open()
        assert first.next() == answers(range(1))[0]
        server.wait_settled("m")


# Streams that end early.


def test_cancelling_a_stream_takes_its_requests_out_of_the_queue(serve: Serve) -> None:
    with held(serve) as (server, script, gate), Raw(server) as raw, Raw(server) as stays:
        raw.ask(*(one(value) for value in range(1, 6)))
        stays.ask(one(6))
        until(lambda: server.waiting("m") == 6)
        raw.call.cancel()
        until(lambda: server.waiting("m") == 1)
        gate.open()
        assert stays.rest() == answers(range(6, 7))
    assert script.batches == [1, 1]
    assert ended(server, "m", ANSWERED=2, CANCELLED=5)


def test_a_client_that_goes_away(serve: Serve) -> None:
    with held(serve) as (server, script, _):
        client = triton.InferenceServerClient(server.address, channel_args=[("grpc.use_local_subchannel_pool", 1)])
        client.start_stream(lambda result, error: None)
        for value in range(3):
            client.async_stream_infer("m", [tensor("x", [[value]])])
        until(lambda: server.waiting("m") == 3)
        client.stop_stream(cancel_requests=True)
        client.close()
        until(lambda: server.waiting("m") == 0)
    assert script.batches == [1]
    assert ended(server, "m", ANSWERED=1, CANCELLED=3)


def test_what_runs_when_its_stream_is_cancelled_is_settled_as_cancelled(serve: Serve) -> None:
    script = Script()
    server = serve({"m": (SINGLY, script)})
    script.gate = gate = Gate()
    with Raw(server) as raw:
        raw.ask(one(1), one(2))
        gate.wait_for(1)
        until(lambda: server.waiting("m") == 1)
        raw.call.cancel()
        # Both are cancelled in one go: the second has left its queue when the first is.
        until(lambda: server.waiting("m") == 0)
        gate.open()
    assert ended(server, "m", CANCELLED=2)
    assert script.batches == [1]


def test_a_decoupled_request_that_is_cancelled_between_its_answers(serve: Serve) -> None:
    gate, script = Gate(), Script(answers=5)
    server = serve({"m": (DECOUPLED, script)})
    script.before_answer = lambda number: gate.enter() if number == 2 else None
    with Raw(server) as raw:
        raw.ask(one(1))
        assert [raw.next(), raw.next()] == answers(range(1, 2), final=False) * 2
        raw.call.cancel()
        gate.wait_for(1)
        with Raw(server) as other:
            other.ask(one(2))
            until(lambda: server.waiting("m") == 1)
            gate.let(1)
            gate.wait_for(2)
            gate.open()
            assert len(other.rest()) == 5
    assert ended(server, "m", ANSWERED=1, CANCELLED=1)


@pytest.mark.asyncio
async def test_a_coroutine_that_is_cancelled(serve: Serve) -> None:
    with held(serve) as (server, script, _):
        async with triton_aio.InferenceServerClient(server.address) as client:

            async def requests() -> Any:
                for value in range(3):
                    yield {"model_name": "m", "inputs": [tensor("x", [[value]])]}
                await asyncio.Event().wait()

            async def read() -> None:
                async for _ in client.stream_infer(requests()):
                    pass

            task = asyncio.create_task(read())
            while server.waiting("m") != 3:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while server.waiting("m"):
                await asyncio.sleep(0.001)
    assert ended(server, "m", ANSWERED=1, CANCELLED=3)
    assert script.batches == [1]


def test_half_close_finishes_what_is_on_its_way(serve: Serve) -> None:
    with held(serve) as (server, _, gate), Raw(server) as raw:
        raw.ask(*(one(value) for value in range(1, 4)))
        until(lambda: server.waiting("m") == 3)
        raw.close()
        gate.open()
        assert raw.rest() == answers(range(1, 4))
    assert ended(server, "m", ANSWERED=4)


def test_a_full_queue_is_told_in_the_stream(serve: Serve) -> None:
    config = SINGLY.replace("dynamic_batching {}", "dynamic_batching { default_queue_policy { max_queue_size: 2 } }")
    with held(serve, config) as (server, _, gate), Raw(server) as raw:
        raw.ask(*(one(value) for value in range(1, 4)))
        until(lambda: server.ledger("m")[Outcome.REFUSED] == 1)
        gate.open()
        full = Told("3", (), None, "[request id: 3] Exceeds maximum queue size")
        assert raw.rest() == [*answers(range(1, 3)), full]


# Many at once.


def test_many_streams_at_once(serve: Serve) -> None:
    server = serve({"m": (ECHO, Script()), "d": (DECOUPLED, Script(answers=2))})
    wrong: list[Any] = []

    def talk(number: int) -> None:
        values = range(1000 * number, 1000 * number + 20)
        with Raw(server) as raw:
            for value in values:
                raw.ask(one(value), one(value, "d", id=f"d{value}"))
            told = raw.rest()
        plain = [t for t in told if not t.id.startswith("d")]
        if plain != answers(values):
            wrong.append(plain)
        pieces = [t for t in told if t.id.startswith("d")]
        if sorted(pieces, key=repr) != sorted((Told(f"d{v}", (v,), f) for v in values for f in (False, True)), key=repr):
            wrong.append(pieces)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert wrong == []
    assert ended(server, "m", ANSWERED=480)
    assert ended(server, "d", ANSWERED=480)


def test_many_streams_over_one_connection(serve: Serve) -> None:
    server = serve({"m": (ECHO, Script())})
    asked = [[one(100 * number + value) for value in range(5)] for number in range(100)]
    calls = [server.stub.ModelStreamInfer(iter(requests), timeout=PATIENCE) for requests in asked]
    for number, call in enumerate(calls):
        assert [Told.of(answer) for answer in call] == answers(range(100 * number, 100 * number + 5))
    assert ended(server, "m", ANSWERED=500)


# Readers that are slow.


@pytest.mark.parametrize("bounds", [{"requests": 8}, {"unsent": 1 << 20}], ids=["requests", "unsent"])
def test_a_reader_that_never_reads_holds_nobody_up(serve: Serve, bounds: dict[str, int]) -> None:
    script = Script()
    server = serve({"m": (WIDE, script)}, **narrow(**bounds))
    with Raw(server) as idle:
        idle.ask(*(wide(value) for value in range(100)))
        until(lambda: len(script.batches) >= 8)
        # Its answers fill gRPC's windows and then its own; then no more of its requests are read, and others go on.
        ran, others = 0, 0
        while ran != len(script.batches) - others:
            ran = len(script.batches) - others
            with Raw(server) as busy:
                busy.ask(*(wide(value) for value in range(5)))
                assert [t.id for t in busy.rest()] == [str(value) for value in range(5)]
            others += 5
        assert ran < 100
        # It was slow, not lost: everything comes in the end, in order.
        assert [(t.id, t.values[:1]) for t in idle.rest()] == [(str(value), (value,)) for value in range(100)]
    assert ended(server, "m", ANSWERED=100 + others)


def test_cancelling_a_stream_whose_answers_were_not_read(serve: Serve) -> None:
    script = Script()
    server = serve({"m": (WIDE, script)})
    with Raw(server) as idle:
        idle.ask(*(wide(value) for value in range(100)))
        until(lambda: sum(script.batches) == 100)
        idle.call.cancel()
    server.wait_settled("m")
    ends = server.ledger("m")
    assert ends[Outcome.ANSWERED] + ends[Outcome.CANCELLED] == 100
    assert ends[Outcome.CANCELLED] > 0


def test_a_flood_of_answers_that_nobody_reads_ends_its_stream(serve: Serve) -> None:
    script = Script(answers=200)
    server = serve({"m": (WIDE + "model_transaction_policy { decoupled: true }", script)}, **narrow(flood=1 << 20))
    with Raw(server) as idle:
        idle.ask(wide(1))
        until(lambda: script.batches == [1])
        assert ended(server, "m", CANCELLED=1)
        script.answers = 1
        with Raw(server) as busy:
            busy.ask(wide(2))
            assert [t.id for t in busy.rest()] == ["2"]
        told = "answers wait on this stream for their reader; read while the model answers, or ask for fewer answers at a time"
        with fails(grpc.StatusCode.RESOURCE_EXHAUSTED, f"1 MiB of {told}"):
            while True:
                idle.next()
    assert ended(server, "m", ANSWERED=1, CANCELLED=1)


def test_answers_that_are_read_are_no_flood(serve: Serve) -> None:
    server = serve({"m": (WIDE + "model_transaction_policy { decoupled: true }", Script(answers=3))}, **narrow(flood=1 << 20))
    with Raw(server) as raw:
        for value in range(8):
            raw.ask(wide(value))
            assert [raw.next().final for _ in range(3)] == [False, False, True]
        assert raw.rest() == []


def test_a_thousand_quick_answers_are_no_flood(serve: Serve) -> None:
    server = serve({"m": (DECOUPLED, Script(answers=1000))})
    with Raw(server) as raw:
        raw.ask(one(1), one(2))
        told = raw.rest()
    for value in (1, 2):
        mine = [t for t in told if t.id == str(value)]
        assert mine == [*answers(range(value, value + 1), final=False) * 999, *answers(range(value, value + 1))]


# The end of the server.


def test_a_stream_while_the_server_stops(serve: Serve) -> None:
    """What was pushed is answered, what comes later is refused in the stream, and then the stream ends."""
    with held(serve) as (server, _, gate):
        raw = Raw(server)
        raw.ask(one(1), one(2))
        until(lambda: server.waiting("m") == 2)
        server.transport.stop_accepting()
        raw.ask(one(3))
        with Raw(server) as late, fails(grpc.StatusCode.UNAVAILABLE, DRAINING):
            late.next()
        gate.open()
        assert [raw.next() for _ in range(3)] == [*answers(range(1, 3)), Told("3", (), None, DRAINING)]
        closing = threading.Thread(target=server.transport.close, args=(server.engine.clock.now() + int(PATIENCE) * SECOND,))
        server.transport.close = lambda deadline: None  # type: ignore[method-assign]
        closing.start()
        with fails(grpc.StatusCode.UNAVAILABLE, DRAINING):
            raw.next()
        raw.__exit__()
        closing.join(PATIENCE)
        assert not closing.is_alive()
    assert ended(server, "m", ANSWERED=3)


def test_sigterm_under_a_stream_loses_nothing(transport: str, tmp_path: Path) -> None:
    add_model(tmp_path, "m", None, slow(20_000).replace("max_batch_size: 8", "max_batch_size: 1"))
    with process(tmp_path, transport, "--drain-grace", "0") as server:
        with Raw(server) as raw:
            raw.ask(*(one(value) for value in range(40)))
            assert raw.next() == answers(range(1))[0]
            server.terminate()
            told: list[Told] = []
            with fails(grpc.StatusCode.UNAVAILABLE, DRAINING):
                while True:
                    told.append(raw.next())
        code, logged = server.end()
    # What was not pushed when the signal came is refused, in order; whatever was is answered.
    drained = logged["drained"]
    answered = drained["answered"]
    assert told == [*answers(range(1, answered)), *(Told(t.id, (), None, DRAINING) for t in told[answered - 1 :])]
    assert (code, drained["pushed"], drained["cancelled"], drained["failed"]) == (0, answered, 0, 0)


def test_unary_and_streamed_requests_share_a_batch(serve: Serve) -> None:
    with held(serve, ECHO) as (server, script, gate), Raw(server) as raw, Conversation(server) as talk:
        raw.ask(one(1))
        talk.ask(2)
        call = server.stub.ModelInfer.future(one(3), timeout=PATIENCE)
        until(lambda: server.waiting("m") == 3)
        gate.open()
        assert (raw.rest(), talk.next()) == (answers(range(1, 2)), answers(range(2, 3))[0])
        assert "triton_final_response" not in call.result(PATIENCE).parameters
    assert script.batches == [1, 3]
