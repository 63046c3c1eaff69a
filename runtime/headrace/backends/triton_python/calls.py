"""What a model asks of the server that runs it: other models, mostly. The answers of a call wait here until it wants them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from headrace.backends.base import Inner
from headrace.backends.triton_python.requests import (
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
    ErrorCode,
)
from headrace.backends.triton_python.talk import Message
from headrace.clock import MICROSECOND, MonotonicClock
from headrace.errors import Code, HeadraceError, ModelNotFound, ModelNotReady, ReaderTooSlow, sentence
from headrace.request import Origin, Request, Response
from headrace.request import Sequence as SequencePlace
from headrace.tensor import Tensor

log = logging.getLogger(__name__)

_MOST_BYTES = 64 << 20
"""Answers that wait for a model which calls a decoupled one; beyond that, the call fails."""

TO_CODE = {
    ErrorCode.UNKNOWN: Code.UNKNOWN,
    ErrorCode.INTERNAL: Code.INTERNAL,
    ErrorCode.NOT_FOUND: Code.NOT_FOUND,
    ErrorCode.INVALID_ARG: Code.INVALID_ARGUMENT,
    ErrorCode.UNAVAILABLE: Code.UNAVAILABLE,
    ErrorCode.UNSUPPORTED: Code.UNIMPLEMENTED,
    ErrorCode.ALREADY_EXISTS: Code.ALREADY_EXISTS,
    ErrorCode.CANCELLED: Code.CANCELLED,
}
_FROM_CODE = {code: error for error, code in TO_CODE.items()} | {
    Code.DEADLINE_EXCEEDED: ErrorCode.UNAVAILABLE,
    Code.RESOURCE_EXHAUSTED: ErrorCode.UNAVAILABLE,
}

Tell = Callable[[int, Message, Mapping[str, Tensor]], None]
"""Answers an asking: its number, the message, tensors. May be called from any thread."""


@dataclass(slots=True)
class _Stream:
    """A call of a model, and what of it was not asked for yet. `asking` is who waits."""

    model: str
    asking: int | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: deque[Response | HeadraceError] = field(default_factory=deque[Response | HeadraceError])
    nbytes: int = 0
    is_over: bool = False
    cancel: Callable[[], None] = lambda: None


class Calls:
    """The calls of one process.

    Args:
        inner: the way into the engine.
        tell: answers.
    """

    def __init__(self, inner: Inner, tell: Tell) -> None:
        self._inner, self._tell = inner, tell
        self._streams: dict[int, _Stream] = {}

    def begin(self, message: Message, tensors: Mapping[str, Tensor], deadline: int, origin: Origin) -> None:
        """Send the request of a model on its way."""
        number, model = message["call"], message["model"]
        stream = self._streams[number] = _Stream(model, number)
        try:
            self._check(message)
            request = _request(message, tensors, deadline, origin)
            stream.cancel = self._inner.call(request, lambda answer: self._arrived(number, stream, answer))
        except HeadraceError as error:
            self._arrived(number, stream, _as_triton_says(error, model))

    def next(self, message: Message) -> None:
        """Tell the next answer of a call, once it is there."""
        stream = self._streams.get(message["stream"])
        if stream is None:
            self._tell(message["call"], {"error": "the call has ended", "code": ErrorCode.INTERNAL.value}, {})
            return
        with stream.lock:
            stream.asking = message["call"]
        self._hand_on(message["stream"], stream)

    def cancel(self, message: Message) -> None:
        """Nobody wants the other answers of a call, and says so."""
        self.drop(message["stream"])
        self._tell(message["call"], {}, {})

    def drop(self, number: int) -> None:
        """Nobody wants the other answers of a call."""
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.cancel()

    def manage(self, message: Message) -> None:
        """Load or unload a model, in a thread of its own: it may take long."""

        def work() -> None:
            try:
                if message["what"] == "unload":
                    self._inner.unload(message["model"], dependents=message["dependents"])
                else:
                    files = {name.removeprefix("file:"): bytes.fromhex(text) for name, text in message["files"].items()}
                    self._inner.load(message["model"], message["config"], files)
                self._tell(message["call"], {}, {})
            except Exception as error:
                self._tell(message["call"], {"error": sentence(error)}, {})

        threading.Thread(target=work, name=f"{message['model']} load", daemon=True).start()

    def close(self) -> None:
        """The process is gone: nobody wants any answers."""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.cancel()

    def _check(self, message: Message) -> None:
        if not message["decoupled"] and self._inner.is_decoupled(message["model"], max(0, message["version"])):
            raise _Refused(
                f"Model {message['model']} is using the decoupled. The current BLS request call doesn't support models using the "
                "decoupled transaction policy. Please use 'decoupled=True' argument to the 'exec' or 'async_exec' calls for "
                "decoupled models.'",
                Code.UNIMPLEMENTED,
            )

    def _arrived(self, number: int, stream: _Stream, answer: Response | HeadraceError) -> None:
        with stream.lock:
            if stream.is_over:
                return
            stream.waiting.append(answer)
            if isinstance(answer, Response):
                stream.nbytes += sum(tensor.nbytes for tensor in answer.outputs.values())
                stream.is_over = answer.final
            else:
                stream.is_over = True
            if stream.nbytes > _MOST_BYTES and len(stream.waiting) > 1:
                stream.waiting.clear()
                stream.waiting.append(ReaderTooSlow(stream.nbytes))
                stream.is_over = True
                stream.cancel()
        self._hand_on(number, stream)

    def _hand_on(self, number: int, stream: _Stream) -> None:
        with stream.lock:
            if stream.asking is None or not stream.waiting:
                return
            asking, stream.asking = stream.asking, None
            answer = stream.waiting.popleft()
            is_last = stream.is_over and not stream.waiting
            if isinstance(answer, Response):
                stream.nbytes -= sum(tensor.nbytes for tensor in answer.outputs.values())
        more: Message = {} if is_last else {"stream": number}
        if is_last:
            self._streams.pop(number, None)
        if isinstance(answer, Response):
            self._tell(asking, more, answer.outputs)
        else:
            code = _FROM_CODE.get(answer.code, ErrorCode.INTERNAL)
            self._tell(asking, {"error": answer.message, "code": code.value, **more}, {})


class _Refused(HeadraceError):
    """A call that never got to its model."""

    def __init__(self, words: str, code: Code) -> None:
        super().__init__(words)
        self.code = code


def _as_triton_says(error: HeadraceError, model: str) -> HeadraceError:
    """What a model is told when a request of its own is not admitted."""
    if isinstance(error, (ModelNotFound, ModelNotReady)):
        words = f"Failed for execute the inference request. Model '{model}' is not ready."
    else:
        words = error.message
    return _Refused(f"Model {model} - Error when running inference: {words}", error.code)


def _request(message: Message, tensors: Mapping[str, Tensor], deadline: int, origin: Origin) -> Request:
    now, flags = MonotonicClock.now(), message["flags"]
    sequence = None
    if message["correlation_id"]:
        starts, ends = flags & TRITONSERVER_REQUEST_FLAG_SEQUENCE_START, flags & TRITONSERVER_REQUEST_FLAG_SEQUENCE_END
        sequence = SequencePlace(message["correlation_id"], bool(starts), bool(ends))
    return Request(
        message["model"],
        tensors,
        max(0, message["version"]),
        tuple(message["outputs"]),
        message["id"],
        parameters=message["parameters"],
        deadline=deadline,
        timeout_ns=message["timeout"] * MICROSECOND,
        sequence=sequence,
        received=now,
        decoded=now,
        wants_empty_final=message["decoupled"],
        origin=origin,
    )
