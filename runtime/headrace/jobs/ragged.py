"""Rows of different shapes in one array: what a list column is as a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.tensor import BytesTensor, Tensor, concatenate, rows_of


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Row i is `values[offsets[i]:offsets[i + 1]]` in the shape `shapes[i]`.

    Attributes:
        values: all elements, flat.
        offsets: int64 [rows + 1], in elements; may start above 0.
        shapes: int64 [rows, dimensions].
    """

    values: Tensor
    offsets: NDArray[np.int64]
    shapes: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> Ragged:
        """From one tensor a row, at least one, of as many dimensions each; their elements are copied."""
        sizes = [row.size for row in rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        flat: list[Tensor] = [row.reshape((size,)) for row, size in zip(rows, sizes, strict=True)]
        return cls(concatenate(flat), offsets, np.array([row.shape for row in rows], np.int64))

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.shapes)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How long each row is along its first dimension."""
        return self.shapes[:, 0]

    def row(self, place: int) -> Tensor:
        """One row, without the dimension of rows and without copying."""
        begin, end = self.offsets[place : place + 2].tolist()
        return rows_of(self.values, begin, end).reshape(tuple(self.shapes[place].tolist()))

    def take(self, places: Sequence[int] | NDArray[np.intp]) -> Ragged:
        """The rows at these places, in this order; copied."""
        chosen = np.asarray(places, np.intp)
        begins, lengths = self.offsets[:-1][chosen], np.diff(self.offsets)[chosen]
        offsets = np.zeros(len(chosen) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        elements = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], lengths)
        values: Any = self.values
        return Ragged(
            values.take(elements) if isinstance(values, BytesTensor) else values[elements], offsets, self.shapes[chosen]
        )
