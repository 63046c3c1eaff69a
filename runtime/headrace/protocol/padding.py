"""Lengths: whether those of a request can be padded, and to what. kernels/ has the same in padding.rs."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.errors import InvalidRequest, request_prefix
from headrace.model import ModelSpec
from headrace.tensor import Tensor

Shape = tuple[int, ...]

MAX_BYTES = (1 << 31) - 1
"""Of one input of one request, padded. Nothing larger could be sent, so nothing larger is made."""


class Lengths:
    """Judges the lengths of the requests for one version, whose spec says how they are padded."""

    def __init__(self, spec: ModelSpec) -> None:
        assert spec.padding is not None
        self._spec, self._padding = spec, spec.padding
        self._dimension = self._padding.axis + 1

    def judge(self, request_id: str, inputs: Mapping[str, Tensor]) -> tuple[int, int]:
        """The length of admitted inputs, and the length they are padded to; both 0 when none of them is padded.

        Raises:
            InvalidRequest: they have none, several, or one that no bucket holds.
        """
        sizes = {name: tensor.shape[self._dimension] for name, tensor in inputs.items() if name in self._padding.values}
        if not sizes:
            return 0, 0
        name, length = next(iter(sizes.items()))
        for other, size in sizes.items():
            if size != length:
                raise self._wrong(request_id, other, size, f", but input '{name}' has {length}: send inputs of the same length")
        if length == 0:
            raise self._wrong(request_id, name, 0, ": send at least 1")
        largest = self._padding.edges[-1]
        if length > largest:
            told = f"; the largest bucket is {largest}: send at most that, or configure a larger one"
            raise self._wrong(request_id, name, length, told)
        padded = self._padding.edge(length)
        for other in sizes:
            nbytes = inputs[other].nbytes // length * padded
            if nbytes > MAX_BYTES:
                told = f"; padded to {padded} it has {nbytes} bytes, more than the {MAX_BYTES} that there may be: send less"
                raise self._wrong(request_id, other, length, told)
        return length, padded

    def seen(self, shapes: tuple[Shape | None, ...], padded: int) -> tuple[Shape | None, ...]:
        """The shapes of the inputs, without the batch dimension, as the model sees them: padded, and the mask there."""
        axis, padding = self._padding.axis, self._padding
        return tuple(
            _sized(spec.dims if shape is None else shape, axis, padded)
            if spec.name in padding.values and (shape is not None or spec.name == padding.mask)
            else shape
            for spec, shape in zip(self._spec.inputs, shapes, strict=True)
        )

    def _wrong(self, request_id: str, name: str, length: int, told: str) -> InvalidRequest:
        who = f"{request_prefix(request_id)}input '{name}' of model '{self._spec.name}'"
        return InvalidRequest(f"{who} has length {length} along dimension {self._dimension}{told}")


def _sized(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])
