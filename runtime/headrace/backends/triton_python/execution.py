"""One call of `execute`: requests made of a gathered batch, and their responses gathered for the way back."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from headrace.backends.channel import Memory, Stack, look
from headrace.backends.triton_python.requests import Execution, InferenceRequest, InferenceResponse
from headrace.backends.triton_python.talk import Message
from headrace.backends.triton_python.tensors import Tensor
from headrace.errors import sentence
from headrace.tensor import BytesTensor, concatenate, datatype_of, rows_of
from headrace.tensor import Tensor as Value

_OURS = str(Path(__file__).parent)
_NOTHING: Mapping[str, Any] = {}


class Wrong(Exception):
    """What `execute` returned is no answer. The words are Triton's."""


def requests_of(
    order: Message, memory: Memory, outputs: frozenset[str], *, has_rows: bool, is_decoupled: bool
) -> list[InferenceRequest]:
    """The requests of a batch, as views of its memory."""
    inputs = [(name, look(memory, place)) for name, place in order["inputs"]]
    offsets, odd = order["offsets"], order["odd"]
    execution = Execution(order["numbers"][0], is_decoupled=is_decoupled)
    made: list[InferenceRequest] = []
    for place, id in enumerate(order["ids"]):
        more: Mapping[str, Any] = odd.get(str(place), _NOTHING) if odd else _NOTHING
        wanted = frozenset(more["outputs"]) if "outputs" in more else outputs
        tensors = [
            Tensor.of(name, rows_of(value, offsets[place], offsets[place + 1]) if has_rows else value) for name, value in inputs
        ]
        made.append(InferenceRequest.received(id, tensors, wanted, more, execution, place))
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


def answers_of(
    order: Message, requests: Sequence[InferenceRequest], responses: Sequence[InferenceResponse | None]
) -> tuple[Message, list[Value | Stack]]:
    """What to tell of the responses that `execute` returned, and their outputs.

    Where every request has the same outputs in its rows, they are one stack of rows a name, as the server wants them.

    Raises:
        TritonModelException: a request has a response already.
    """
    pieces: list[dict[str, Value]] = []
    entries: list[Message | None] = []
    for request, response in zip(requests, responses, strict=True):
        if response is None:
            entries.append(None)
            continue
        piece = request.answer(response)
        if (error := response.error()) is not None:
            entries.append({"error": error.message(), "code": error.code().value})
            continue
        pieces.append(piece)
        entries.append({"names": list(piece)})
    stacks = _stacks_of(pieces, order["offsets"]) if len(pieces) == len(requests) else None
    if stacks is not None:
        return {"names": tuple(stacks)}, list(stacks.values())
    return {"each": entries}, [value for piece in pieces for value in piece.values()]


def _stacks_of(pieces: Sequence[Mapping[str, Value]], offsets: Sequence[int]) -> Mapping[str, Value | Stack] | None:
    """All of them by name; None where not all have the same outputs, of the same kind, in as many rows as their request has."""
    if len(pieces) == 1:
        return pieces[0]
    stacks: dict[str, Value | Stack] = {}
    for name in pieces[0]:
        stack = _stack_of([piece.get(name) for piece in pieces], offsets)
        if stack is None:
            return None
        stacks[name] = stack
    return stacks if all(len(piece) == len(stacks) for piece in pieces) else None


def _stack_of(values: Sequence[Value | None], offsets: Sequence[int]) -> Value | Stack | None:
    first = values[0]
    assert first is not None
    is_text, rest = isinstance(first, BytesTensor), first.shape[1:]
    alike: list[Any] = []
    for value, (begin, end) in zip(values, pairwise(offsets), strict=True):
        if value is None or value.shape != (end - begin, *rest) or isinstance(value, BytesTensor) is not is_text:
            return None
        alike.append(value)
    if is_text:
        return concatenate(alike)
    if any(value.dtype != alike[0].dtype for value in alike):
        return None
    return Stack(alike, datatype_of(first), (offsets[-1], *rest))


def words_of(error: BaseException) -> str:
    """What Triton says of an exception: its class, its text, and where it was raised, innermost first."""
    if isinstance(error, Wrong):
        return str(error)
    said = sentence(error) if str(error) else "<EMPTY MESSAGE>"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    where = "".join(f"  {frame.filename}({frame.lineno}): {frame.name}\n" for frame in reversed(frames))
    return f"{type(error).__name__}: {said}" + (f"\n\nAt:\n{where}" if where else "")
