"""Requests, responses and errors as a `model.py` has them. Messages are those of Triton's Python backend."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from headrace.backends.channel import Memory
from headrace.backends.triton_python.link import Link
from headrace.backends.triton_python.talk import Message, Over
from headrace.backends.triton_python.tensors import Tensor, TritonModelException

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2


class Server:
    """The way to the server; there is none before the model is initialized."""

    link: Link | None = None

    @classmethod
    def ask(cls, what: str, **asked: Any) -> Message:
        """See `Link.ask`.

        Raises:
            TritonModelException: there is no server to ask, or not any more.
        """
        try:
            return cls._linked(what).ask(what, **asked)
        except (Over, OSError) as error:
            raise TritonModelException("the server is gone") from error

    @classmethod
    def memory(cls, nbytes: int) -> tuple[int, Memory]:
        """See `Link.keep`.

        Raises:
            TritonModelException: there is no server yet that could read it.
        """
        return cls._linked("metric").keep(nbytes)

    @classmethod
    def _linked(cls, what: str) -> Link:
        if cls.link is None:
            raise TritonModelException(f"'{what}' can be asked only once the model is initialized")
        return cls.link


class ErrorCode(Enum):
    """What went wrong, as Triton numbers it."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


ErrorCode.__name__ = "__ErrorCode"  # as models print it


class TritonError:
    """An error, instead of the outputs of a response."""

    UNKNOWN = ErrorCode.UNKNOWN
    INTERNAL = ErrorCode.INTERNAL
    NOT_FOUND = ErrorCode.NOT_FOUND
    INVALID_ARG = ErrorCode.INVALID_ARG
    UNAVAILABLE = ErrorCode.UNAVAILABLE
    UNSUPPORTED = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS = ErrorCode.ALREADY_EXISTS
    CANCELLED = ErrorCode.CANCELLED

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        if not isinstance(message, str) or not isinstance(code, ErrorCode):
            raise TypeError("TritonError takes a text, and a code such as TritonError.NOT_FOUND")
        self._message, self._code = message, code

    def message(self) -> str:
        """Its words."""
        return self._message

    def code(self) -> ErrorCode:
        """Its code."""
        return self._code


class InferenceResponse:
    """The outputs of one request, or an error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        tensors = list(output_tensors)
        if error is not None and not isinstance(error, TritonError):
            raise TypeError(f"the error of an InferenceResponse is a TritonError, not a {type(error).__name__}")
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                if tensor is None:
                    raise TritonModelException("Output tensor for inference response should not be empty.")
                raise TypeError(f"the output_tensors of an InferenceResponse are Tensors, not a {type(tensor).__name__}")
        self._tensors, self._error = tensors, error

    def output_tensors(self) -> list[Tensor]:
        """Its outputs."""
        return self._tensors

    def has_error(self) -> bool:
        """Whether it is an error."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """The error, if it is one."""
        return self._error


class PreferredMemory:
    """Where the outputs of a call are wanted. There is only the memory of the host."""

    def __init__(self, preferred_memory_type: int, preferred_device_id: int = 0) -> None:
        if preferred_memory_type != TRITONSERVER_MEMORY_CPU:
            raise TritonModelException("outputs in the memory of a GPU are not supported; prefer TRITONSERVER_MEMORY_CPU")
        self.device = preferred_device_id


TRITONSERVER_MEMORY_CPU, TRITONSERVER_MEMORY_GPU = 0, 1


class InferenceTrace:
    """The trace of a request, which a call may pass on: it is then a call of that request, and not of the first of its batch."""

    __slots__ = ("place",)

    def __init__(self, place: tuple[int, int] | None = None) -> None:
        self.place = place
        """The number of the batch, and which of its requests."""


class Execution:
    """A call of `execute`, for the requests that came with it."""

    __slots__ = ("is_decoupled", "is_over", "number")

    def __init__(self, number: int, *, is_decoupled: bool, is_over: bool = False) -> None:
        self.number, self.is_decoupled, self.is_over = number, is_decoupled, is_over


_OVER = Execution(0, is_decoupled=False, is_over=True)
"""Where requests belong that have their response."""


class InferenceResponseSender:
    """Answers one request, as often as the model likes if it is decoupled."""

    __slots__ = ("__weakref__", "_execution", "_is_decoupled", "_place", "_wanted", "is_closed", "sent")

    def __init__(self, execution: Execution, place: int, wanted: frozenset[str]) -> None:
        self._execution, self._place, self._wanted = execution.number, place, wanted
        self._is_decoupled, self.is_closed = execution.is_decoupled, execution.is_over
        self.sent = int(execution.is_over)

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send a response, or with `flags` TRITONSERVER_RESPONSE_COMPLETE_FINAL say that it was the last; or both.

        Raises:
            TritonModelException: it is not the time for that.
        """
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if not flags and response is None:
            raise TritonModelException("Inference Response object must be provided when the response flags is set to zero.")
        self.count(response is not None, is_last=bool(flags))
        if response is None and not self._is_decoupled:
            return  # its one response was its last
        told: dict[str, Any] = {"id": self._execution, "index": self._place, "final": bool(flags)}
        if response is None:
            Server.ask("respond", **told, none=True)
        elif (error := response.error()) is not None:
            Server.ask("respond", **told, error=error.message(), code=error.code().value)
        else:
            Server.ask("respond", **told, tensors=pruned(response, self._wanted))

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return Server.ask("is_cancelled", id=self._execution, index=self._place)["is"]

    def count(self, has_response: bool, *, is_last: bool) -> None:
        """Reckon with a response.

        Raises:
            TritonModelException: there may be no more.
        """
        if not self._is_decoupled and has_response and self.sent:
            raise TritonModelException("Unable to send response. Non-decoupled model cannot send more than one response.")
        if not self._is_decoupled and not has_response and not self.sent:
            raise TritonModelException(
                "Unable to send response. Non-decoupled model cannot send complete final before sending a response."
            )
        if self.is_closed:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        self.is_closed = is_last
        self.sent += 1

    @property
    def is_owing(self) -> bool:
        """Whether the request still waits for it."""
        return not self.is_closed and (self._is_decoupled or not self.sent)

    def __del__(self) -> None:
        if self.is_owing and Server.link is not None:
            Server.link.lost.put({"do": "lost", "id": self._execution, "index": self._place})


_SELDOM: Mapping[str, Any] = {"model": "", "version": -1, "correlation_id": 0, "flags": 0, "timeout": 0, "parameters": {}}
"""What most requests that come do not say, and what then goes for them."""


class InferenceRequest:
    """A request: one to be answered, or one that this model makes of another."""

    __slots__ = ("_execution", "_id", "_inputs", "_more", "_outputs", "_place", "_sender", "_trace")

    def __init__(  # noqa: PLR0913
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        *,
        inputs: Sequence[Tensor],
        requested_output_names: Sequence[str],
        model_name: str,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        who = f"request with id '{request_id}' and model name '{model_name}'"
        if any(tensor is None for tensor in inputs):
            raise TritonModelException(f"Input tensor for {who} should not be empty.")
        if not all(isinstance(tensor, Tensor) for tensor in inputs):
            raise TypeError("the inputs of an InferenceRequest are Tensors")
        if "" in requested_output_names:
            raise TritonModelException(f"Requested output name for {who} should not be empty.")
        self._id, self._inputs, self._outputs = request_id, list(inputs), frozenset(requested_output_names)
        self._more: Mapping[str, Any] = {
            "correlation_id": correlation_id,
            "flags": flags,
            "timeout": timeout,
            "parameters": dict(parameters or {}),
            "model": model_name,
            "version": model_version,
        }
        self._execution: Execution | None = None
        self._place, self._trace = 0, trace
        self._sender: InferenceResponseSender | None = None

    @classmethod
    def received(
        cls, id: str, inputs: list[Tensor], outputs: frozenset[str], more: Mapping[str, Any], execution: Execution, place: int
    ) -> InferenceRequest:
        """The request at a place of an execution; `more` is of `_SELDOM`."""
        made = cls.__new__(cls)
        made._id, made._inputs, made._outputs, made._more = id, inputs, outputs, more
        made._execution, made._place, made._sender, made._trace = execution, place, None, None
        return made

    def inputs(self) -> list[Tensor]:
        """Its inputs."""
        return self._inputs

    def request_id(self) -> str:
        """Its id."""
        return self._id

    def correlation_id(self) -> int | str:
        """The id of its sequence, 0 if it is in none."""
        return self._said("correlation_id")

    def requested_output_names(self) -> set[str]:
        """The outputs that are wanted."""
        return set(self._outputs)

    def parameters(self) -> str:
        """Its parameters, as JSON."""
        return json.dumps(self._said("parameters"), separators=(",", ":"))

    def flags(self) -> int:
        """Whether it is the first or the last of its sequence."""
        return self._said("flags")

    def set_flags(self, flags: int) -> None:
        """Say so."""
        self._more = {**self._more, "flags": flags}

    def timeout(self) -> int:
        """Its time-out, in microseconds."""
        return self._said("timeout")

    def trace(self) -> InferenceTrace:
        """Its trace."""
        if self._trace is None:
            came_with = None if self._execution is None or self._execution.is_over else self._execution.number
            self._trace = InferenceTrace(None if came_with is None else (came_with, self._place))
        return self._trace

    def preferred_memory(self) -> PreferredMemory:
        """Where its outputs are wanted."""
        return PreferredMemory(TRITONSERVER_MEMORY_CPU)

    def set_release_flags(self, flags: int) -> None:
        """Say what becomes of the request after `execute`.

        Raises:
            TritonModelException: it shall be scheduled again.
        """
        if flags != TRITONSERVER_REQUEST_RELEASE_ALL:
            raise TritonModelException("rescheduling a request (TRITONSERVER_REQUEST_RELEASE_RESCHEDULE) is not supported")

    def get_response_sender(self) -> InferenceResponseSender:
        """What answers it.

        Raises:
            TritonModelException: it is one that this model made.
        """
        if self._sender is None:
            if self._execution is None:
                raise TritonModelException("a request that this model makes of another has no response sender")
            self._sender = InferenceResponseSender(self._execution, self._place, self._outputs)
        return self._sender

    def settle(self) -> None:
        """Nobody waits for a response any more."""
        self._execution = _OVER
        if self._sender is not None:
            self._sender.is_closed = True

    def answer(self, response: InferenceResponse) -> dict[str, Any]:
        """The outputs of a response that `execute` returned for it.

        Raises:
            TritonModelException: it has one already.
        """
        if self._sender is not None:
            if self._sender.sent:
                self._sender.count(True, is_last=True)
            self._sender.sent = 1
        self.settle()
        return pruned(response, self._outputs)

    def is_cancelled(self) -> bool:
        """Whether nobody waits for its answer any more."""
        return self._execution is not None and self.get_response_sender().is_cancelled()

    def exec(self, decoupled: bool = False) -> InferenceResponse | ResponseIterator:
        """Send it to its model and wait for the answer; with `decoupled`, for each of its answers in turn.

        Raises:
            TritonModelException: not while the model is initialized or finalized.
        """
        if Server.link is None or not Server.link.is_executing:
            raise TritonModelException("BLS is only supported during the 'execute' function.")
        tensors = {tensor.name(): tensor.value() for tensor in self._inputs}
        asked = {**_SELDOM, **self._more, "id": self._id, "outputs": sorted(self._outputs), "decoupled": decoupled}
        asked["for"] = (self._trace.place if self._trace is not None else None) or (Server.link.executes, None)
        answer = Server.ask("infer", tensors=tensors, **asked)
        if decoupled:
            return ResponseIterator(answer)
        return _response(answer)

    async def async_exec(self, decoupled: bool = False) -> InferenceResponse | ResponseIterator:
        """`exec` for coroutines."""
        import asyncio  # whoever awaits this has it already

        return await asyncio.get_running_loop().run_in_executor(None, self.exec, decoupled)

    def _said(self, what: str) -> Any:
        return self._more.get(what, _SELDOM[what])


class ResponseIterator:
    """The answers of a decoupled model, in turn. The last may have no outputs."""

    def __init__(self, first: Message) -> None:
        self._answer: Message | None = first
        self._stream: int | None = first.get("stream")
        if self._stream is not None and Server.link is not None:
            Server.link.report_lost()

    def __iter__(self) -> Iterator[InferenceResponse]:
        return self

    def __next__(self) -> InferenceResponse:
        answer, self._answer = self._answer, None
        if answer is None:
            if self._stream is None:
                raise StopIteration
            answer = Server.ask("next", stream=self._stream)
        self._stream = answer.get("stream")
        return _response(answer)

    def cancel(self) -> None:
        """Want no more of them."""
        stream, self._stream = self._stream, None
        if stream is not None:
            Server.ask("cancel", stream=stream)

    def __del__(self) -> None:
        if self._stream is not None and Server.link is not None:
            Server.link.lost.put({"do": "unwanted", "stream": self._stream})


def _response(answer: Message) -> InferenceResponse:
    if "error" in answer:
        return InferenceResponse(error=TritonError(answer["error"], ErrorCode(answer["code"])))
    assert Server.link is not None
    return InferenceResponse([Tensor.of(name, value) for name, value in Server.link.tensors(answer).items()])


def pruned(response: InferenceResponse, wanted: frozenset[str]) -> dict[str, Any]:
    """The outputs of a response that are wanted, as they go to the server."""
    return {name: tensor.value() for tensor in response.output_tensors() if (name := tensor.name()) in wanted}
