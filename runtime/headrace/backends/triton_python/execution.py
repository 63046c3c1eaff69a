"""One call of `execute`: requests made of a gathered batch, and their responses gathered for the way back."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.backends.channel import Memory, Place, lay_out, look, write
from headrace.backends.triton_python.requests import (
    InferenceRequest,
    InferenceResponse,
    InferenceResponseSender,
    pruned,
)
from headrace.backends.triton_python.talk import Message
from headrace.backends.triton_python.tensors import Tensor
from headrace.errors import sentence
from headrace.tensor import Tensor as Value
from headrace.tensor import concatenate, rows_of

_OURS = str(Path(__file__).parent)


class Wrong(Exception):
    """What `execute` returned is no answer. The words are Triton's."""


def requests_of(
    order: Message, memory: Memory, outputs: frozenset[str], *, has_rows: bool, is_decoupled: bool
) -> list[InferenceRequest]:
    """The requests of a batch, as views of its memory."""
    inputs = [(name, look(memory, place)) for name, place in order["inputs"]]
    offsets, odd = order["offsets"], order["odd"]
    made: list[InferenceRequest] = []
    for place, id in enumerate(order["ids"]):
        more: Mapping[str, Any] = odd.get(str(place), {}) if odd else {}
        wanted = frozenset(more["outputs"]) if "outputs" in more else outputs
        tensors = [
            Tensor.of(name, rows_of(value, offsets[place], offsets[place + 1]) if has_rows else value) for name, value in inputs
        ]
        sender = InferenceResponseSender(order["id"], place, wanted, is_decoupled=is_decoupled)
        made.append(InferenceRequest.received(id, tensors, wanted, more, sender))
    return made


def check_returned(returned: object, model: str, requests: Sequence[InferenceRequest], *, is_decoupled: bool) -> None:
    """Whether `execute` may return that.

    Raises:
        Wrong: it may not.
    """
    if returned is None:
        return
    if is_decoupled:
        raise Wrong(f"Python model '{model}' is using the decoupled mode and the execute function must return None.")
    if not isinstance(returned, list):
        raise Wrong(f"Expected a list in the execute return, found type '{type(returned)}'.")
    if len(returned) != len(requests):
        raise Wrong(
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. InferenceRequest(s) size "
            f"is:{len(requests)}, and InferenceResponse(s) size is:{len(returned)}\n"
        )
    for response in returned:
        if response is not None and not isinstance(response, InferenceResponse):
            raise Wrong(
                f"Expected an 'InferenceResponse' object in the execute function return list, found type '{type(response)}'."
            )


class Answers:
    """The responses that `execute` returned, laid out.

    `message` says what they are; `places` and `nbytes` where in a region they go, and `write` puts them there. Where every
    request has the same outputs in its rows, they are one stack of rows a name, as the server wants them.
    """

    def __init__(
        self, order: Message, requests: Sequence[InferenceRequest], responses: Sequence[InferenceResponse | None]
    ) -> None:
        pieces: list[dict[str, Value]] = []
        entries: list[Message | None] = []
        for request, response in zip(requests, responses, strict=True):
            if response is None:
                entries.append(None)
                continue
            sender = request.get_response_sender()
            if sender.sent:
                sender.count(True, is_last=True)
            sender.sent, sender.is_closed = 1, True
            if (error := response.error()) is not None:
                entries.append({"error": error.message(), "code": error.code().value})
                continue
            piece = pruned(response, request._outputs)
            pieces.append(piece)
            entries.append({"names": list(piece)})
        self.message: Message
        if len(pieces) == len(requests) and _are_alike(pieces, order["offsets"]):
            self._stacked = {name: [piece[name] for piece in pieces] for name in pieces[0]}
            self.message = {"names": list(self._stacked)}
            self.places, self.nbytes = _lay_out_stacks(self._stacked)
            return
        self._stacked = {str(number): [value] for number, value in enumerate(v for piece in pieces for v in piece.values())}
        self.message = {"each": entries}
        self.places, self.nbytes = lay_out([values[0] for values in self._stacked.values()])

    def write(self, memory: Memory) -> None:
        """Put them there."""
        for values, place in zip(self._stacked.values(), self.places, strict=True):
            into = look(memory, place)
            if isinstance(into, np.ndarray) and len(values) > 1:
                np.concatenate(values, out=into)  # type: ignore[arg-type]  # none is text where it is not
            else:
                write(memory, [concatenate(values)], [place])


def _are_alike(pieces: Sequence[Mapping[str, Value]], offsets: Sequence[int]) -> bool:
    """Whether all have the same outputs, of the same kind, in as many rows as their request has."""
    if len(pieces) == 1:
        return True
    first = [(name, _kind_of(value), value.shape[1:]) for name, value in pieces[0].items()]
    for place, piece in enumerate(pieces):
        rows = offsets[place + 1] - offsets[place]
        if len(piece) != len(first):
            return False
        for name, kind, shape in first:
            value = piece.get(name)
            if value is None or value.shape != (rows, *shape) or _kind_of(value) != kind:
                return False
    return True


def _kind_of(value: Value) -> object:
    return value.dtype if isinstance(value, np.ndarray) else None


def _lay_out_stacks(stacks: Mapping[str, Sequence[Value]]) -> tuple[list[Place], int]:
    if all(len(values) == 1 for values in stacks.values()):
        return lay_out([values[0] for values in stacks.values()])
    return lay_out([_stack_of(values) for values in stacks.values()])


def _stack_of(values: Sequence[Value]) -> Value:
    """What has the place of all of them one behind the other: BYTES themselves, of others an array without memory."""
    first = values[0]
    if not isinstance(first, np.ndarray):
        return concatenate(values)
    return np.broadcast_to(np.empty((), first.dtype), (sum(value.shape[0] for value in values), *first.shape[1:]))


def words_of(error: BaseException) -> str:
    """What Triton says of an exception: its class, its text, and where it was raised, innermost first."""
    if isinstance(error, Wrong):
        return str(error)
    said = sentence(error) if str(error) else "<EMPTY MESSAGE>"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    where = "".join(f"  {frame.filename}({frame.lineno}): {frame.name}\n" for frame in reversed(frames))
    return f"{type(error).__name__}: {said}" + (f"\n\nAt:\n{where}" if where else "")
