"""The same model files under a real Triton and under Headrace.

Values, codes and messages are the same; where they are not, a test says why.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.grpc as client

from tests.transport.serving import Server
from tests.triton_python.asking import Ask, ask, ask_stream, ask_together

pytestmark = pytest.mark.timeout(180)


def row(*values: int) -> np.ndarray:
    return np.array([values], np.int32)


def flat(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def to(model: str, *values: int) -> dict[str, Any]:
    """The inputs of a model that asks another."""
    return {"x": row(*values), "model": np.array([model], np.object_)}


OPTIONS = {
    "request_id": "r",
    "parameters": {"p": 1, "q": "s", "t": True},
    "outputs": [client.InferRequestedOutput("asked"), client.InferRequestedOutput("difference")],
    "timeout": 5_000_000,
}

SAME = {
    "batched": Ask("batched", {"x": [[1.5, 2.0], [3.0, 4.0]]}),
    "too many rows": Ask("batched", {"x": np.zeros((9, 2), np.float32)}),
    "unbatched": Ask("unbatched", {"x": np.arange(3)}),
    "text": Ask("text", {"x": [["a", "bcé"], ["", "z" * 5000]]}),
    "two inputs": Ask("many", {"a": [[1, 2], [5, 6]], "b": [[3, 4], [7, 8]]}),
    "an optional input left out": Ask("many", {"a": [[1, 2]]}),
    "what is known of a request": Ask("many", {"a": [[1, 2]]}, OPTIONS),
    **{
        f"a sequence nobody asked for, {kind}": Ask("many", {"a": [[1, 2]]}, options)
        for kind, options in {
            "its start": {"sequence_id": 7, "sequence_start": True},
            "its end, by name": {"sequence_id": "seven", "sequence_end": True},
            "both": {"sequence_id": 2**40, "sequence_start": True, "sequence_end": True},
            "between": {"sequence_id": 7},
        }.items()
    },
    "an error": Ask("errors", {"x": row(100)}),
    **{f"an error, code {code}": Ask("errors", {"x": row(101 + code)}) for code in range(8)},
    "no error": Ask("errors", {"x": row(41)}),
    "wrong: nothing": Ask("wrong", {"x": row(0)}),
    "wrong: it raises": Ask("wrong", {"x": row(1)}),
    "wrong: it raises a TritonModelException": Ask("wrong", {"x": row(2)}),
    "wrong: no response": Ask("wrong", {"x": row(3)}),
    "wrong: two responses": Ask("wrong", {"x": row(4)}),
    "wrong: no list": Ask("wrong", {"x": row(5)}),
    "wrong: a list of something else": Ask("wrong", {"x": row(6)}),
    "wrong: it raises deep inside": Ask("wrong", {"x": row(11)}),
    "wrong: it raises without a word": Ask("wrong", {"x": row(13)}),
    "wrong: a response of None": Ask("wrong", {"x": row(15)}),
    "by a response sender": Ask("sender", {"x": row(2)}),
    "by a response sender, later": Ask("sender", {"x": row(3)}),
    "a call": Ask("asks", to("errors", 2)),
    "a call of what raises": Ask("asks", to("wrong", 1)),
    "three calls at once": Ask("asks_async", to("errors", 2)),
    "three calls at once, of what raises": Ask("asks_async", to("errors", 200)),
    "a call of a decoupled model": Ask("asks_decoupled", {"x": flat(3)}),
    "a call of a decoupled model that fails": Ask("asks_decoupled", {"x": flat(-3)}),
    "completed": Ask("completed", {"x": row(1)}),
    "what lies beside": Ask("beside", {"x": row(1)}),
    "DLPack": Ask("beside", {"x": row(-9)}),
    "an ensemble": Ask("chain", {"x": [[1.0, 2.0], [3.0, 4.0]]}),
    "an ensemble of what fails sometimes": Ask("chain_errors", {"x": row(1)}),
    "a decoupled model that is asked for one answer": Ask("decoupled", {"x": flat(1)}),
}


@pytest.mark.parametrize("asked", SAME.values(), ids=SAME)
def test_the_answers_are_the_same(triton: client.InferenceServerClient, headrace: Server, asked: Ask) -> None:
    assert ask(headrace.client, asked) == ask(triton, asked)


class Different(NamedTuple):
    """What is answered to a request, and why it is not the same."""

    asked: Ask
    triton: Any
    headrace: Any
    why: str


UNDECLARED = "clients can rely on what the configuration declares; Triton passes on whatever there is"
INTERNAL, WRONG = "StatusCode.INTERNAL", "model 'wrong' version 1, output 'y': the model "
TENSOR = "Failed to process the request(s) for model 'wrong_0', message: TypeError: "
CODE = "the code of the model that was asked, or of what kept the request from it, is passed on; Triton makes INTERNAL of all"
NOT_READY = "Model nope - Error when running inference: Failed for execute the inference request. Model 'nope' is not ready."
NO_DATATYPE = (
    "Model batched - Error when running inference: [request id: <id_unknown>] inference input 'x' data-type is 'INT32', but "
    "model 'batched' expects 'FP32'"
)
NOT_DECOUPLED = (
    "Model decoupled - Error when running inference: Model decoupled is using the decoupled. The current BLS request call "
    "doesn't support models using the decoupled transaction policy. Please use 'decoupled=True' argument to the 'exec' or "
    "'async_exec' calls for decoupled models.'"
)

DIFFERENT = {
    "another output": Different(Ask("wrong", {"x": row(7)}), {}, (INTERNAL, f"{WRONG}did not return it"), UNDECLARED),
    "no output": Different(Ask("wrong", {"x": row(12)}), {}, (INTERNAL, f"{WRONG}did not return it"), UNDECLARED),
    "another datatype": Different(
        Ask("wrong", {"x": row(8)}),
        {"y": ("float32", [[8.0]])},
        (INTERNAL, f"{WRONG}returned datatype FP32, declared is INT32"),
        UNDECLARED,
    ),
    "another shape": Different(
        Ask("wrong", {"x": row(9)}),
        {"y": ("int32", [[[9]]])},
        (INTERNAL, f"{WRONG}returned shape [1,1,1], expected is [1,-1]"),
        UNDECLARED,
    ),
    "other rows": Different(
        Ask("wrong", {"x": row(10)}),
        {"y": ("int32", [[10], [10]])},
        (INTERNAL, f"{WRONG}returned shape [2,1], expected is [1,-1]"),
        UNDECLARED,
    ),
    "a tensor of no array": Different(
        Ask("wrong", {"x": row(14)}),
        f"{TENSOR}__init__(): incompatible constructor arguments.",
        f"{TENSOR}Tensor takes a name and a numpy array, and got str and list; use numpy.array(...)",
        "the words of pybind11 list C++ signatures; ours say what to do",
    ),
    "a call that fails": Different(
        Ask("asks", to("errors", 103)),
        (INTERNAL, "__ErrorCode.INTERNAL: no 103"),
        ("StatusCode.NOT_FOUND", "__ErrorCode.NOT_FOUND: no 103"),
        CODE,
    ),
    "a call of no model": Different(
        Ask("asks", to("nope", 1)),
        (INTERNAL, f"__ErrorCode.INTERNAL: {NOT_READY}"),
        ("StatusCode.NOT_FOUND", f"__ErrorCode.NOT_FOUND: {NOT_READY}"),
        CODE,
    ),
    "a call with another datatype": Different(
        Ask("asks", to("batched", 1)),
        (INTERNAL, f"__ErrorCode.INTERNAL: {NO_DATATYPE}"),
        ("StatusCode.INVALID_ARGUMENT", f"__ErrorCode.INVALID_ARG: {NO_DATATYPE}"),
        CODE,
    ),
    "a call of a decoupled model as of another": Different(
        Ask("asks_decoupled", {"x": flat(3, 4)}), (INTERNAL, NOT_DECOUPLED), ("StatusCode.UNIMPLEMENTED", NOT_DECOUPLED), CODE
    ),
    "an ensemble that fails": Different(
        Ask("chain_errors", {"x": row(101)}),
        ("StatusCode.UNKNOWN", "in ensemble 'chain_errors', no 101"),
        ("StatusCode.UNKNOWN", "no 101"),
        "what a model of an ensemble says reaches the client as it is",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT.values(), ids=DIFFERENT)
def test_they_are_not_for_a_reason(triton: client.InferenceServerClient, headrace: Server, case: Different) -> None:
    assert case.why
    for server, expected in ((triton, case.triton), (headrace.client, case.headrace)):
        answer = ask(server, case.asked)
        if isinstance(expected, str):
            assert answer[0] == INTERNAL
            assert answer[1].startswith(expected)
        else:
            assert answer == expected


def test_an_answer_that_never_comes(headrace: Server) -> None:
    """Triton waits for it for ever, and so does its client."""
    assert ask(headrace.client, Ask("wrong", {"x": row(16)})) == (
        INTERNAL,
        "model 'wrong' has dropped the response sender of a request without a response",
    )


STREAMS = {
    "no response": Ask("decoupled", {"x": flat(0)}),
    "three": Ask("decoupled", {"x": flat(3)}),
    "three, later": Ask("decoupled", {"x": flat(103)}),
    "an error": Ask("decoupled", {"x": flat(-1)}),
    "one, from a coroutine": Ask("awaited", {"x": flat(1)}),
    "four, from a coroutine": Ask("awaited", {"x": flat(4)}),
    "what is not decoupled": Ask("batched", {"x": [[1.0]]}),
}


@pytest.mark.parametrize("asked", STREAMS.values(), ids=STREAMS)
def test_all_answers_of_a_stream_are_the_same(triton: client.InferenceServerClient, headrace: Server, asked: Ask) -> None:
    assert ask_stream(headrace.client, asked) == ask_stream(triton, asked)


def test_requests_that_run_together(triton: client.InferenceServerClient, headrace: Server) -> None:
    """An error of one is not one of the others, whether they share a batch or not."""
    asked = [Ask("errors", {"x": np.full((1 + place % 2, 1), 104 if place in (2, 5) else place, np.int32)}) for place in range(8)]
    assert ask_together(headrace.client, asked) == ask_together(triton, asked)
    text = [Ask("text", {"x": [[f"word {place}"] * (1 + place % 3)]}) for place in range(8)]
    assert ask_together(headrace.client, text) == ask_together(triton, text)


def test_an_ensemble_whose_batch_fails_in_part(triton: client.InferenceServerClient, headrace: Server) -> None:
    asked = [Ask("chain_errors", {"x": row(104 if place == 3 else place)}) for place in range(6)]
    answers = ask_together(triton, asked)
    answers[3] = (answers[3][0], answers[3][1].removeprefix("in ensemble 'chain_errors', "))
    assert ask_together(headrace.client, asked) == answers


def test_models_are_described_alike(triton: client.InferenceServerClient, headrace: Server) -> None:
    """What `auto_complete_config` said is in the metadata and in the configuration."""
    for model in ("completed", "many", "decoupled"):
        theirs, ours = triton.get_model_metadata(model), headrace.client.get_model_metadata(model)
        assert theirs is not None
        assert ours is not None
        assert (ours.inputs, ours.outputs, ours.platform) == (theirs.inputs, theirs.outputs, theirs.platform)
        config = [server.get_model_config(model).config for server in (triton, headrace.client)]
        for name in ("max_batch_size", "input", "output", "dynamic_batching", "model_transaction_policy", "backend"):
            assert getattr(config[0], name) == getattr(config[1], name), name
