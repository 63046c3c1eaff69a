"""One question to two servers, and their answers as something to compare."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as client
from tritonclient.utils import InferenceServerException

PATIENCE = 20.0

DATATYPES = {"f": "FP32", "i": "INT32", "O": "BYTES"}


@dataclass(frozen=True)
class Ask:
    """A request: inputs as arrays, or as what numpy makes arrays of."""

    model: str
    inputs: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def given(self) -> list[client.InferInput]:
        """Its inputs, as tritonclient has them."""
        made = []
        for name, value in self.inputs.items():
            array = array_of(value)
            datatype = "INT64" if array.dtype == np.int64 else DATATYPES[array.dtype.kind]
            made.append(client.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array))
        return made


def array_of(value: Any) -> np.ndarray:
    """int32 and float32, unless it is an array already; text is BYTES."""
    if isinstance(value, np.ndarray):
        return value
    array = np.asarray(value)
    return array.astype({"f": np.float32, "i": np.int32}.get(array.dtype.kind, np.object_))


def told(result: client.InferResult | None, error: InferenceServerException | None) -> Any:
    """An answer: outputs by name, or code and message."""
    if error is not None:
        return (str(error.status()), error.message())
    assert result is not None
    names = [output.name for output in result.get_response().outputs]
    return {name: (str(result.as_numpy(name).dtype), result.as_numpy(name).tolist()) for name in sorted(names)}


def ask(server: client.InferenceServerClient, asked: Ask) -> Any:
    """What a server answers."""
    try:
        result = server.infer(asked.model, asked.given(), client_timeout=PATIENCE, **asked.options)
    except InferenceServerException as error:
        return told(None, error)
    return told(result, None)


def ask_together(server: client.InferenceServerClient, asked: Sequence[Ask]) -> list[Any]:
    """What a server answers to several that come at once."""
    answers: list[Future[Any]] = [Future() for _ in asked]
    for one, answer in zip(asked, answers, strict=True):
        server.async_infer(
            one.model, one.given(), lambda result, error, answer=answer: answer.set_result(told(result, error)), **one.options
        )
    return [answer.result(PATIENCE) for answer in answers]


def ask_stream(server: client.InferenceServerClient, asked: Ask) -> list[Any]:
    """All that a server answers over a stream, until it says that this was all."""
    heard: queue.Queue[tuple[Any, Any]] = queue.Queue()
    server.start_stream(lambda result, error: heard.put((result, error)))
    answers: list[Any] = []
    try:
        server.async_stream_infer(asked.model, asked.given(), enable_empty_final_response=True, **asked.options)
        while True:
            result, error = heard.get(timeout=PATIENCE)
            if error is not None:
                answers.append((None, error.message()))
                return answers
            is_final = result.get_response().parameters["triton_final_response"].bool_param
            outputs = told(result, None)
            answers += [outputs] if outputs else []
            if is_final:
                return answers
    finally:
        server.stop_stream()
