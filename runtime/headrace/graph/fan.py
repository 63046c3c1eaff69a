"""Rows that are not those that came in: what a border node gave, taken apart and put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import BackendFailed
from headrace.model import ModelSpec
from headrace.node import Rows
from headrace.tensor import DTYPES, BytesTensor, Tensor, TensorSpec, concatenate, datatype_of, format_shape, rows_of

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Ragged = Sequence[Tensor]
"""Rows of any shape, each without the dimension of rows."""


class Fan:
    """The rows of a border node, by tensor; `starts` says where those of each input row begin, and at last how many there are.

    A tensor is stacked, if its rows are alike, or a list of rows.
    """

    __slots__ = ("_tensors", "starts")

    def __init__(self, tensors: Mapping[str, Tensor | Ragged], starts: Sequence[int]) -> None:
        self._tensors, self.starts = tensors, starts

    def alike(self, names: Sequence[str], begin: int, end: int) -> list[list[int]]:
        """The rows from `begin` to `end` in groups of one shape each, in the order in which the groups begin."""
        ragged = [rows for name in names if not _is_stacked(rows := self._tensors[name])]
        if not ragged or end - begin < 2:
            return [list(range(begin, end))] if end > begin else []
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for row in range(begin, end):
            groups.setdefault(tuple([rows[row].shape for rows in ragged]), []).append(row)
        return list(groups.values())

    def renamed(self, names: Mapping[str, str]) -> Fan:
        """Those of its tensors that are named, under their new names."""
        return Fan({new: self._tensors[old] for old, new in names.items()}, self.starts)

    def take(self, name: str, rows: Sequence[int]) -> Tensor:
        """Some rows of a tensor, stacked; they are alike, and ascend."""
        tensor = self._tensors[name]
        if _is_stacked(tensor):
            return picked(tensor, rows)
        return stacked([tensor[row] for row in rows])


def fan_of(result: Rows, spec: ModelSpec, rows: int) -> Fan:
    """What a border node returned, checked.

    Args:
        result: of its runner, which has seen to it that there are as many rows as it says.
        spec: what it declares.
        rows: how many it got.

    Raises:
        BackendFailed: it is not what was declared.
    """
    starts = [0, *accumulate([1] * rows if result.counts is None else result.counts)]
    tensors: dict[str, Tensor | Ragged] = {}
    for declared in spec.outputs:
        if declared.name not in result.tensors:
            raise BackendFailed(f"node '{spec.name}' did not return '{declared.name}'")
        given: Any = result.tensors[declared.name]
        _check_rows(spec.name, declared, given)
        tensors[declared.name] = given
    return Fan(tensors, starts)


def _check_rows(node: str, declared: TensorSpec, given: Tensor | Ragged) -> None:
    kinds = {(datatype_of(given), given.shape[1:])} if _is_stacked(given) else {(datatype_of(row), row.shape) for row in given}
    for datatype, shape in kinds:
        fits = len(shape) == len(declared.dims) and all(a in (-1, b) for a, b in zip(declared.dims, shape, strict=True))
        if datatype != declared.datatype or not fits:
            raise BackendFailed(
                f"node '{node}': a row of '{declared.name}' is {datatype}{format_shape(shape)}, declared is "
                f"{declared.datatype}{format_shape(declared.dims)}"
            )


def _is_stacked(tensor: Tensor | Ragged) -> TypeIs[Tensor]:
    return isinstance(tensor, (np.ndarray, BytesTensor))


def picked(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of a stacked tensor, in this order, each as often as it is named; without copying, where they follow one another."""
    if all(after == row + 1 for row, after in pairwise(rows)):
        first = rows[0] if rows else 0
        return rows_of(tensor, first, first + len(rows))
    places = np.asarray(rows)
    if isinstance(tensor, BytesTensor):
        width = tensor.size // max(1, tensor.shape[0])
        cells = places[:, None] * width + np.arange(width)
        return tensor.take(cells.reshape((len(rows), *tensor.shape[1:])))
    return tensor[places]


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """Rows of one shape as one tensor; at least one."""
    return concatenate([row.reshape((1, *row.shape)) for row in rows])


def nothing(spec: TensorSpec, *before: int) -> Tensor:
    """A tensor of a declared type in which every size that varies is 0; `before` come first."""
    shape = (*before, *(0 if size == -1 else size for size in spec.dims))
    return BytesTensor.of([], shape) if spec.datatype == "BYTES" else np.zeros(shape, DTYPES[spec.datatype])


def in_order(pieces: Sequence[tuple[Sequence[int], Tensor]]) -> Tensor:
    """Tensors as one, whose rows have these places; at least one.

    Raises:
        ValueError: their rows differ in shape.
    """
    if len({tensor.shape[1:] for _, tensor in pieces}) > 1:
        raise ValueError
    places = [place for rows, _ in pieces for place in rows]
    return picked(concatenate([tensor for _, tensor in pieces]), np.argsort(places).tolist())
