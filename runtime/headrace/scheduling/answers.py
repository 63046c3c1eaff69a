"""What is done with a model's outputs, whatever queue its batch came from: judge them, make responses, hand them to sinks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from headrace.errors import (
    BackendFailed,
    Code,
    DeadlineExpired,
    HeadraceError,
    InvalidRequest,
    ModelError,
    Overloaded,
    sentence,
)
from headrace.ledger.records import Outcome
from headrace.model import ModelSpec
from headrace.protocol.classification import classified
from headrace.protocol.validate import resolve_reshape
from headrace.request import Request, Response
from headrace.scheduling.entry import Answer, Sink
from headrace.scheduling.padding import cut_dimension
from headrace.tensor import Tensor, TensorSpec, datatype_of, format_shape

log = logging.getLogger(__name__)


def checked_outputs(
    model: ModelSpec, outputs: Mapping[str, Tensor], wanted: Sequence[str], rows: int | None, padded: int = 0
) -> dict[str, Tensor]:
    """The `wanted` outputs, as clients see them (reshaped).

    Args:
        model: what was declared.
        outputs: what the model returned.
        wanted: names.
        rows: how many there must be; None for an answer of a decoupled model, which has as many as it likes.
        padded: the length the inputs were padded to, which outputs have too; 0 without padding.

    Raises:
        BackendFailed: one is missing, or its datatype or shape is not the declared one.
    """
    checked = {spec.name: _checked(model, spec, outputs.get(spec.name), rows) for spec in model.outputs if spec.name in wanted}
    if padded:
        for spec in model.outputs:
            if spec.name in checked:
                _check_length(model, spec, checked[spec.name], padded)
    return checked


def _checked(model: ModelSpec, spec: TensorSpec, tensor: Tensor | None, rows: int | None) -> Tensor:
    if tensor is None:
        raise BackendFailed(f"{_what(model, spec)}: the model did not return it")
    if datatype_of(tensor) != spec.datatype:
        raise BackendFailed(
            f"{_what(model, spec)}: the model returned datatype {datatype_of(tensor)}, declared is {spec.datatype}"
        )
    batch = 1 if model.max_batch_size > 0 else 0
    seen = spec.dims if spec.reshape is None else spec.reshape
    shape = tensor.shape
    if spec.reshape is None and shape == ((rows, *seen) if batch else seen):
        return tensor
    fits = len(shape) == len(seen) + batch and all(d in (-1, s) for d, s in zip(seen, shape[batch:], strict=True))
    if not fits or (batch and rows is not None and shape[0] != rows):
        expected = (-1 if rows is None else rows, *seen) if batch else seen
        raise BackendFailed(
            f"{_what(model, spec)}: the model returned shape {format_shape(shape)}, expected is {format_shape(expected)}"
        )
    if spec.reshape is not None:
        return tensor.reshape((*shape[:batch], *resolve_reshape(shape[batch:], seen, spec.dims)))
    return tensor


def _check_length(model: ModelSpec, spec: TensorSpec, tensor: Tensor, padded: int) -> None:
    """What has another length than the inputs had cannot be cut back."""
    dimension = cut_dimension(model, spec)
    if dimension is not None and tensor.shape[dimension] != padded:
        raise BackendFailed(
            f"{_what(model, spec)}: the model returned size {tensor.shape[dimension]} along dimension {dimension}, where the "
            f"padded length of its inputs is {padded}"
        )


def _what(model: ModelSpec, spec: TensorSpec) -> str:
    return f"model '{model.name}' version {model.version}, output '{spec.name}'"


def response_of(request: Request, model: ModelSpec, outputs: dict[str, Tensor], *, final: bool) -> Response | HeadraceError:
    """The answer to one request, with classes where it wants them; or why there can be none."""
    if request.classes:
        try:
            outputs = classified(request, model, outputs)
        except HeadraceError as error:
            return error
    return Response(model.name, model.version, request.id, outputs, final, request.placed)


def log_failure(model: ModelSpec, error: BaseException) -> None:
    """A line about a batch that failed. What clients did is for them to know; a trace is for what model or server did."""
    if isinstance(error, (InvalidRequest, Overloaded, DeadlineExpired)):
        level, shown = logging.INFO if isinstance(error, InvalidRequest) else logging.DEBUG, None
    else:
        level, shown = logging.ERROR, None if isinstance(error, ModelError) else error
    where = {"model": model.name, "version": model.version}
    log.log(level, "batch failed: %s", sentence(error), extra=where, exc_info=shown)


def deliver(answers: Sequence[Answer], now: int) -> None:
    """Hand answers to their sinks, one call a sink. A sink that raises has lost its client: its entries are settled so."""
    by_sink: dict[int, tuple[Sink, list[Answer]]] = {}
    for answer in answers:
        by_sink.setdefault(id(answer.entry.sink), (answer.entry.sink, []))[1].append(answer)
    for sink, mine in by_sink.values():
        try:
            sink.deliver(mine)
        except Exception:
            log.exception("a sink did not take its answers")
            for answer in mine:
                # Both: what was not its last answer leaves nothing to settle yet.
                answer.entry.cancel()
                answer.entry.settle(Outcome.CANCELLED, Code.CANCELLED, now)
