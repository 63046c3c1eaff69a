"""Batches of zeros: what a version is warmed up and measured with, before anybody has asked it for anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np

from headrace.model import ModelSpec
from headrace.protocol.validate import Shape, bucket_of, resolve_reshape
from headrace.request import Head, Request
from headrace.tensor import DTYPES, BytesTensor, Tensor, TensorSpec

_MOST_LENGTHS = 5
_TEXT_BYTES = 64
"""What an empty text costs on its way into a model, about."""


def lengths_of(spec: ModelSpec) -> tuple[int, ...]:
    """The lengths at which to look at a version: edges it is padded to, spread over all of them; 0 without padding."""
    if spec.padding is None:
        return (0,)
    edges = spec.padding.edges
    count = min(len(edges), _MOST_LENGTHS)
    return tuple(edges[place * (len(edges) - 1) // max(1, count - 1)] for place in range(count))


def sizes_of(spec: ModelSpec, length: int) -> Iterator[int]:
    """The row counts to look at: powers of two, and the most there can be."""
    most = max(1, spec.max_batch_size)
    if spec.padding is not None and spec.padding.max_elements:
        most = max(1, min(most, spec.padding.max_elements // max(1, length)))
    rows = 1
    while rows < most:
        yield rows
        rows *= 2
    yield most


class Zeros:
    """A batch of zeros of the declared shape, as one request.

    Optional inputs are left out. Dimensions that vary are 1, but for those that are padded: they are `length`, and the mask says
    that all of it is real.

    Args:
        spec: of the version.
        rows: how many; 1 where the model does not batch.
        length: one of `lengths_of`; the first of them when it is 0.
    """

    def __init__(self, spec: ModelSpec, rows: int = 1, length: int = 0) -> None:
        self._spec = spec
        self.rows, self.offsets = rows, [0, rows]
        self._length = length or lengths_of(spec)[0]
        self._padded = frozenset(spec.padding.values) if spec.padding is not None else frozenset[str]()

    @property
    def requests(self) -> list[Request]:
        """One."""
        return [Request(self._spec.name, self.tensors())]

    @property
    def heads(self) -> list[Head]:
        """One, that nobody has sent."""
        return [Head(self._spec.name, outputs=self.wanted())]

    def wanted(self) -> tuple[str, ...]:
        """All outputs."""
        return tuple(output.name for output in self._spec.outputs)

    def tensors(self) -> Mapping[str, Tensor]:
        """The inputs; made once."""
        return self._tensors

    def away(self) -> None:
        """Nothing was before it."""

    @property
    def bucket(self) -> int:
        """The bucket of requests of these shapes."""
        shapes = (self._shape(spec) if self._is_given(spec) else None for spec in self._spec.inputs)
        return bucket_of(tuple(shapes))

    @property
    def nbytes(self) -> int:
        """How large the inputs are."""
        return sum(
            self.rows
            * math.prod(self._shape(spec))
            * (DTYPES[spec.datatype].itemsize if spec.datatype in DTYPES else _TEXT_BYTES)
            for spec in self._spec.inputs
            if self._is_given(spec)
        )

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return {spec.name: self._tensor(spec) for spec in self._spec.inputs if self._is_given(spec)}

    def _is_given(self, spec: TensorSpec) -> bool:
        # A mask that a request leaves out is made for the model.
        return not spec.optional or (self._spec.padding is not None and spec.name == self._spec.padding.mask)

    def _shape(self, spec: TensorSpec) -> Shape:
        """Without the batch dimension, as the model sees it."""
        shape = [1 if size == -1 else size for size in spec.dims]
        if self._spec.padding is not None and spec.name in self._padded:
            shape[self._spec.padding.axis] = self._length
        return tuple(shape) if spec.reshape is None else resolve_reshape(tuple(shape), spec.dims, spec.reshape)

    def _tensor(self, spec: TensorSpec) -> Tensor:
        shape = self._shape(spec)
        if self._spec.max_batch_size > 0:
            shape = (self.rows, *shape)
        if spec.datatype == "BYTES":
            return BytesTensor.of([b""] * math.prod(shape), shape)
        is_mask = self._spec.padding is not None and spec.name == self._spec.padding.mask
        return np.full(shape, is_mask, DTYPES[spec.datatype]) if is_mask else np.zeros(shape, DTYPES[spec.datatype])
