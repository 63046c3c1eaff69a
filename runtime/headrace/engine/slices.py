"""A request with more rows than a batch may have: it runs in slices, one after the other, and gets one answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from headrace.backends.base import Outputs
from headrace.errors import BackendFailed
from headrace.model import ModelSpec
from headrace.request import Head, Request
from headrace.scheduling.answers import checked_outputs
from headrace.scheduling.base import Batch
from headrace.tensor import Tensor, concatenate, format_shape, rows_of


class Slice:
    """Some rows of a batch of one request, as a session sees a batch. The request itself is the whole one."""

    def __init__(self, whole: Batch, start: int, stop: int) -> None:
        self._whole, self._start, self._stop = whole, start, stop
        self.offsets = [0, stop - start]

    @property
    def number(self) -> int:
        """That of the batch."""
        return self._whole.number

    @property
    def model_number(self) -> int:
        """The ledger's number of the version."""
        return self._whole.model_number

    @property
    def rows(self) -> int:
        """Rows of this slice."""
        return self._stop - self._start

    @property
    def requests(self) -> list[Request]:
        """The request, with all of its rows."""
        return self._whole.requests

    @property
    def heads(self) -> list[Head]:
        """See `scheduling.base.Batch.heads`."""
        return self._whole.heads

    def tensors(self) -> Mapping[str, Tensor]:
        """The rows of this slice, without copying."""
        return {name: rows_of(tensor, self._start, self._stop) for name, tensor in self._whole.tensors().items()}

    def wanted(self) -> tuple[str, ...]:
        """The outputs somebody asked for."""
        return self._whole.wanted()

    def away(self) -> None:
        """So is the batch."""
        self._whole.away()


def slices_of(batch: Batch, most: int) -> Iterator[Slice]:
    """All rows of the batch, in order, at most so many at a time."""
    for start in range(0, batch.rows, most):
        yield Slice(batch, start, min(start + most, batch.rows))


def check_slice(model: ModelSpec, part: Slice, outputs: object) -> Outputs:
    """What a session returned for a slice, as it is.

    Raises:
        BackendFailed: it is not what was declared, or has not the rows of the slice.
    """
    if not isinstance(outputs, Mapping):
        raise BackendFailed(f"model '{model.name}' answers in pieces, which a request that runs in slices cannot be given")
    returned: Outputs = outputs
    checked_outputs(model, returned, part.wanted(), part.rows)
    return {name: returned[name] for name in part.wanted()}


def stacked(model: ModelSpec, parts: Sequence[Outputs]) -> Outputs:
    """The outputs of all slices as those of one run.

    Raises:
        BackendFailed: an output varies in more than its rows.
    """
    return {name: _stacked(model, name, [part[name] for part in parts]) for name in parts[0]}


def _stacked(model: ModelSpec, name: str, tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0].shape[1:]
    other = next((tensor.shape[1:] for tensor in tensors if tensor.shape[1:] != first), None)
    if other is not None:
        raise BackendFailed(
            f"model '{model.name}' version {model.version}, output '{name}': the model returned rows of shape "
            f"{format_shape(first)} and of {format_shape(other)} for slices of one request, which cannot be one tensor; "
            "send fewer rows at a time"
        )
    return concatenate(tensors)
