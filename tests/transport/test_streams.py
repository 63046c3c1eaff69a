"""ModelStreamInfer: who is answered what, in which order, with which flags."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2 as pb

from headrace.backends.base import Batch
from headrace.backends.fake import Gate, Script
from tests.transport.serving import ECHO, Serve
from tests.transport.streaming import DECOUPLED, PARALLEL, Conversation, Raw, Told, answers, ended, flag, one, values_of
from tests.waiting import until


class Doors:
    """Each value waits for its own gate."""

    def __init__(self, *values: int) -> None:
        self.gates = {value: Gate() for value in values}
        self.script = Script(fail=self._enter)

    def _enter(self, batch: Batch) -> None:
        for value in values_of(batch):
            if value in self.gates:
                self.gates[value].enter()


# Ordinary models.


def test_every_request_is_answered_in_order(serve: Serve) -> None:
    server = serve({"m": (ECHO, Script())})
    with Raw(server) as raw:
        raw.ask(*(one(value) for value in range(200)))
        assert raw.rest() == answers(range(200))
    assert ended(server, "m", ANSWERED=200)


def test_a_later_request_that_is_done_first_waits_for_its_turn(serve: Serve) -> None:
    doors = Doors(1)
    server = serve({"m": (PARALLEL, doors.script)})
    with Raw(server) as raw, Raw(server) as other:
        raw.ask(one(1))
        doors.gates[1].wait_for(1)
        raw.ask(one(2), one(3), one(4, "nothing"))
        # They have run, and the loop has gone round since: had their answers been sent, they would be the first.
        other.ask(one(5))
        until(lambda: len(doors.script.batches) == 4)
        assert other.rest() == answers(range(5, 6))
        doors.gates[1].open()
        told = raw.rest()
    assert told[:3] == answers(range(1, 4))
    assert [answer.error for answer in told[3:]] == ["Request for unknown model: 'nothing' is not found"]


def test_requests_of_a_stream_share_batches(serve: Serve) -> None:
    script = Script()
    server = serve({"m": (ECHO, script)})
    script.gate = gate = Gate()
    with Raw(server) as raw:
        raw.ask(one(0))
        gate.wait_for(1)
        raw.ask(*(one(value) for value in range(1, 9)))
        until(lambda: server.waiting("m") == 8)
        gate.open()
        assert raw.rest() == answers(range(9))
    assert script.batches == [1, 8]


def test_what_an_answer_holds(serve: Serve) -> None:
    server = serve({"m": (ECHO, Script())})
    with Raw(server) as raw:
        raw.ask(one(7, id="seven", model_version="1"))
        answer = next(raw.call)
    assert answer == pb.ModelStreamInferResponse(
        infer_response=pb.ModelInferResponse(
            model_name="m",
            model_version="1",
            id="seven",
            parameters={"triton_final_response": pb.InferParameter(bool_param=True)},
            outputs=[pb.ModelInferResponse.InferOutputTensor(name="y", datatype="INT32", shape=(1, 1))],
            raw_output_contents=[b"\x07\0\0\0"],
        )
    )


def test_a_large_answer(serve: Serve) -> None:
    """Large enough for lengths of several bytes, and for a push from another thread."""
    server = serve({"m": (ECHO, Script())})
    width = 3 << 18
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(range(256)) * (width // 64)])
    request.inputs.add(name="x", datatype="INT32", shape=(1, width))
    with Raw(server) as raw:
        raw.ask(one(1), request, one(2))
        raw.close()
        first, large, last = raw.call
    assert [Told.of(first), Told.of(last)] == answers(range(1, 3))
    assert large.infer_response.raw_output_contents == request.raw_input_contents
    assert large.infer_response.parameters["triton_final_response"].bool_param


def test_a_stream_without_requests(serve: Serve) -> None:
    with Raw(serve({"m": (ECHO, Script())})) as raw:
        assert raw.rest() == []


def test_sequences_keep_their_order(serve: Serve) -> None:
    seen: list[list[int]] = []
    script = Script(fail=lambda batch: seen.append(values_of(batch)))
    server = serve({"m": (ECHO.replace("dynamic_batching {}", "sequence_batching {}"), script)})
    seen.clear()
    script.gate = gate = Gate()
    with Conversation(server) as talk:
        for value in range(6):
            talk.ask(value, sequence_id=1 + value % 2, sequence_start=value < 2, sequence_end=value > 3)
        gate.wait_for(1)
        gate.open()
        assert [talk.next() for _ in range(6)] == answers(range(6))
    order = [value for batch in seen for value in batch]
    assert [v for v in order if v % 2] == [1, 3, 5]
    assert [v for v in order if not v % 2] == [0, 2, 4]
    assert not any({v % 2 for v in batch} == {v} and len(batch) > 1 for batch in seen for v in (0, 1))


# Decoupled models.


@pytest.mark.parametrize("count", [1, 3])
def test_decoupled_answers(serve: Serve, count: int) -> None:
    server = serve({"m": (DECOUPLED, Script(answers=count))})
    with Conversation(server) as talk:
        talk.ask(5)
        told = [talk.next() for _ in range(count)]
    assert told == [*answers(range(5, 6), final=False) * (count - 1), *answers(range(5, 6))]
    assert ended(server, "m", ANSWERED=1)


@pytest.mark.parametrize(("script", "sent"), [(Script(answers=2, closes_empty=True), 2), (Script(answers=0), 0)])
def test_an_empty_final_answer_is_sent_to_who_asks_for_it(serve: Serve, script: Script, sent: int) -> None:
    server = serve({"m": (DECOUPLED, script)})
    pieces = answers(range(5, 6), final=False) * sent
    with Raw(server) as raw:
        raw.ask(one(5), one(5, parameters=flag(bool_param=False)))
        assert raw.rest() == pieces * 2
    with Raw(server) as raw:
        raw.ask(one(5, parameters=flag(bool_param=True)))
        assert raw.rest() == [*pieces, Told("5", (), True)]
    with Conversation(server) as talk:
        talk.ask(5, enable_empty_final_response=True)
        assert [talk.next() for _ in range(sent + 1)] == [*pieces, Told("5", (), True)]
    assert ended(server, "m", ANSWERED=4)


def test_what_an_empty_final_answer_holds(serve: Serve) -> None:
    server = serve({"m": (DECOUPLED, Script(answers=0))})
    with Raw(server) as raw:
        raw.ask(one(5, id="five", parameters=flag(bool_param=True)))
        answer = next(raw.call).infer_response
    final = {"triton_final_response": pb.InferParameter(bool_param=True)}
    assert answer == pb.ModelInferResponse(model_name="m", model_version="1", id="five", parameters=final)


def test_decoupled_answers_interleave(serve: Serve) -> None:
    gate = Gate()
    slow = Script(answers=2)
    server = serve({"slow": (DECOUPLED, slow), "quick": (DECOUPLED, Script(answers=2)), "plain": (ECHO, Script())})
    slow.before_answer = lambda number: gate.enter() if number else None
    with Raw(server) as raw:
        raw.ask(one(1, "slow"))
        assert raw.next() == Told("1", (1,), False)
        raw.ask(one(2, "quick"), one(3, "plain"))
        told = [raw.next() for _ in range(3)]
        gate.open()
        assert raw.rest() == [Told("1", (1,), True)]
    assert sorted(told, key=lambda t: (t.id, bool(t.final))) == [
        Told("2", (2,), False),
        Told("2", (2,), True),
        Told("3", (3,), True),
    ]
