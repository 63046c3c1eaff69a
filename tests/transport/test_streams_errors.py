"""ModelStreamInfer: errors in the stream, errors that end it, and deadlines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from headrace.backends.base import Batch
from headrace.backends.fake import Gate, Script
from headrace.clock import SECOND
from headrace.errors import InvalidRequest
from headrace.ledger.records import Outcome
from tests.transport.asking import JUNK
from tests.transport.serving import ECHO, PATIENCE, Serve, Server, fails, fill, serving
from tests.transport.streaming import DECOUPLED, SINGLY, Conversation, Raw, Told, answers, ended, flag, one, values_of
from tests.waiting import until

FAILED = "the model broke"
STRICT = (("triton_grpc_error", "true"),)


def fails_for(*bad: int) -> Script:
    """A model that fails for these values."""

    def fail(batch: Batch) -> None:
        if set(values_of(batch)) & set(bad):
            raise RuntimeError(FAILED)

    return Script(fail=fail)


# Errors in the stream.

BEFORE: dict[str, tuple[Any, str, str]] = {
    "unknown model": (one(1, "z"), "1", "Request for unknown model: 'z' is not found"),
    "unknown version": (one(1, model_version="7"), "1", "Request for unknown model: 'm' version 7 is not found"),
    "no version": (
        one(1, model_version="x"),
        "1",
        "failed to get model version from specified version string 'x' (details: stol), version should be an integral value > 0",
    ),
    "no id": (one(1, "z", id=""), "", "Request for unknown model: 'z' is not found"),
    "not valid": (one(1, outputs=[{"name": "z"}]), "1", "unexpected inference output 'z' for model 'm'"),
    "flag": (
        one(1, parameters=flag(int64_param=1)),
        "1",
        "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param.",
    ),
    **{
        f"junk: {name}": (payload, "", f"the {len(payload)} bytes received are not a ModelInferRequest message")
        for name, payload in JUNK.items()
    },
}


@pytest.fixture(scope="module")
def both(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    fake = fill(repository, {"m": (ECHO, Script()), "d": (DECOUPLED, Script())})
    with serving(transport, repository, {"fake": fake}) as started:
        yield started


@pytest.mark.parametrize("metadata", [(), STRICT], ids=["", "triton_grpc_error"])
@pytest.mark.parametrize("case", BEFORE)
def test_a_refused_request_leaves_the_stream_open(both: Server, case: str, metadata: Sequence[tuple[str, str]]) -> None:
    request, request_id, told = BEFORE[case]
    with Raw(both, metadata=metadata) as raw:
        raw.ask(one(0), request, one(2))
        raw.close()
        first, refused, last = raw.call
        assert raw.call.code() is grpc.StatusCode.OK
    assert [Told.of(first), Told.of(last)] == [*answers(range(1)), *answers(range(2, 3))]
    assert refused == pb.ModelStreamInferResponse(error_message=told, infer_response=pb.ModelInferResponse(id=request_id))


def test_a_refused_request_to_a_decoupled_model(both: Server) -> None:
    with Raw(both) as raw:
        raw.ask(one(1, "d", outputs=[{"name": "z"}]))
        assert raw.rest() == [Told("1", (), None, "unexpected inference output 'z' for model 'd'")]


def test_requests_that_do_not_reach_a_model_are_accounted_for(serve: Serve) -> None:
    server = serve({"m": (ECHO, Script())})
    server.engine.ledger.drain()
    before = server.engine.statistics.summary()
    with Raw(server) as raw:
        raw.ask(JUNK["noise"], one(1, "z"), one(1, outputs=[{"name": "z"}]), one(1))
        assert len(raw.rest()) == 4
    server.wait_settled("m")
    server.engine.ledger.drain()
    after = server.engine.statistics.summary()
    assert {key: after[key] - before[key] for key in ("invalid", "answered")} == {"invalid": 3, "answered": 1}


@pytest.mark.parametrize(("version", "sent"), [("", ""), ("1", "1")])
def test_a_failed_request_leaves_the_stream_open(serve: Serve, version: str, sent: str) -> None:
    server = serve({"m": (SINGLY, fails_for(1))})
    with Raw(server) as raw:
        raw.ask(one(0), one(1, model_version=version), one(2))
        raw.close()
        first, failed, last = raw.call
        assert raw.call.code() is grpc.StatusCode.OK
    assert [Told.of(first), Told.of(last)] == [*answers(range(1)), *answers(range(2, 3))]
    final = {"triton_final_response": pb.InferParameter(bool_param=True)}
    response = pb.ModelInferResponse(model_name="m", model_version=sent, id="1", parameters=final)
    assert failed == pb.ModelStreamInferResponse(error_message=FAILED, infer_response=response)
    assert ended(server, "m", ANSWERED=2, FAILED=1)


def test_errors_through_tritonclient(serve: Serve) -> None:
    server = serve({"m": (SINGLY, fails_for(1))})
    with Conversation(server) as talk:
        for value in range(3):
            talk.ask(value)
        first, failed, last = (talk.next() for _ in range(3))
        assert [first, last] == [*answers(range(1)), *answers(range(2, 3))]
        assert isinstance(failed, InferenceServerException)
        assert (failed.message(), failed.status()) == (FAILED, None)


def test_a_decoupled_model_that_fails_between_two_answers(serve: Serve) -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise RuntimeError(FAILED)

    script = Script(answers=4)
    server = serve({"m": (DECOUPLED, script)})
    script.before_answer = fail
    with Raw(server) as raw:
        raw.ask(one(1))
        assert raw.rest() == [*answers(range(1, 2), final=False) * 2, Told("1", (), True, FAILED)]
    assert ended(server, "m", FAILED=1)


# Errors that end the stream.


def test_the_first_failure_ends_a_strict_stream(serve: Serve) -> None:
    server = serve({"m": (SINGLY, fails_for(1, 2))})
    with Raw(server, metadata=STRICT) as raw:
        raw.ask(*(one(value) for value in range(4)))
        assert raw.next() == answers(range(1))[0]
        with fails(grpc.StatusCode.INTERNAL, FAILED):
            raw.next()
    server.wait_settled("m")
    ends = server.ledger("m")
    # What had not run yet is cancelled with the stream.
    assert ends[Outcome.FAILED] >= 1
    assert sum(ends.values()) <= 4


def test_a_strict_stream_ends_with_the_code_of_the_failure(serve: Serve) -> None:
    def fail(batch: Batch) -> None:
        if values_of(batch) == [1]:
            raise InvalidRequest("not this one")

    server = serve({"m": (SINGLY, Script(fail=fail))})
    with Conversation(server, headers=dict(STRICT)) as talk:
        talk.ask(1)
        error = talk.next()
    assert isinstance(error, InferenceServerException)
    assert (error.status(), error.message()) == (str(grpc.StatusCode.INVALID_ARGUMENT), "not this one")


@pytest.mark.parametrize("value", ["false", "1", ""])
def test_other_values_of_triton_grpc_error_mean_nothing(serve: Serve, value: str) -> None:
    server = serve({"m": (SINGLY, fails_for(1))})
    with Raw(server, metadata=(("triton_grpc_error", value),)) as raw:
        raw.ask(one(1))
        assert raw.rest() == [Told("1", (), True, FAILED)]


def test_a_strict_stream_gives_up_what_is_queued(serve: Serve) -> None:
    held = Gate()

    def fail(batch: Batch) -> None:
        held.enter()
        if values_of(batch) == [1]:
            raise RuntimeError(FAILED)

    script = Script()
    server = serve({"m": (SINGLY, script)})
    script.fail = fail
    with Raw(server, metadata=STRICT) as raw:
        raw.ask(*(one(value) for value in range(1, 6)))
        held.wait_for(1)
        until(lambda: server.waiting("m") == 4)
        held.let(1)
        with fails(grpc.StatusCode.INTERNAL, FAILED):
            raw.next()
        until(lambda: server.waiting("m") == 0)
        held.open()
    server.wait_settled("m")
    ends = server.ledger("m")
    assert (ends[Outcome.FAILED], ends[Outcome.CANCELLED]) == (1, 4)
    assert len(script.batches) <= 2


# Deadlines.


def test_the_deadline_of_the_stream_is_that_of_its_requests(serve: Serve) -> None:
    script = Script()
    server = serve({"m": (SINGLY, script)})
    script.gate = gate = Gate()
    with Raw(server, timeout=0.3) as raw:
        raw.ask(one(1), one(2))
        gate.wait_for(1)
        with pytest.raises(grpc.RpcError) as caught:
            raw.next()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: server.waiting("m") == 0)
        # That the client has hung up is known when a later cancellation on the same connection is.
        later = Raw(server, beside=raw)
        later.ask(one(3))
        until(lambda: server.waiting("m") == 1)
        later.close()
        later.call.cancel()
        until(lambda: server.waiting("m") == 0)
        gate.open()
    server.wait_settled("m")
    ends = server.ledger("m")
    assert script.batches == [1]
    # The client hangs up at the same instant: whichever comes first ends the request.
    assert (ends[Outcome.ANSWERED], ends[Outcome.EXPIRED] + ends[Outcome.CANCELLED]) == (0, 3)


@pytest.mark.parametrize("timeout", [PATIENCE, None])
def test_each_request_gets_the_deadline_of_the_stream(serve: Serve, timeout: float | None) -> None:
    deadlines: list[int | None] = []
    script = Script()
    server = serve({"m": (ECHO, script)})
    script.fail = lambda batch: deadlines.extend(request.deadline for request in batch.requests)
    start = server.engine.clock.now()
    with Raw(server, timeout=timeout) as raw:
        raw.ask(one(1), one(2))
        assert raw.rest() == answers(range(1, 3))
    first, second = deadlines
    assert first == second
    if timeout is None:
        assert first is None
    else:
        # gRPC counts the time that is left in milliseconds.
        assert first is not None
        assert 0 <= first - start - timeout * SECOND + SECOND / 100 < PATIENCE * SECOND / 2


def test_the_timeout_parameter_of_one_request(serve: Serve) -> None:
    script = Script()
    server = serve({"m": (SINGLY, script)})
    script.gate = gate = Gate()
    with Raw(server, timeout=PATIENCE) as raw:
        raw.ask(one(1))
        gate.wait_for(1)
        raw.ask(one(2, parameters={"timeout": pb.InferParameter(int64_param=300_000)}), one(3))
        until(lambda: server.waiting("m") == 2)
        until(lambda: server.waiting("m") == 1)
        gate.open()
        expired = Told("2", (), True, "the deadline passed before model 'm' could answer")
        assert raw.rest() == [*answers(range(1, 2)), expired, *answers(range(3, 4))]
    assert ended(server, "m", ANSWERED=2, EXPIRED=1)
