"""Inputs of different lengths in one array, and outputs cut back to each request's own length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.model import ModelSpec, Padding
from headrace.protocol.validate import Admitted
from headrace.tensor import DTYPES, BytesTensor, Tensor, TensorSpec, concatenate

_MOST_COUNTED = (1 << 32) - 1


def padded_inputs(spec: ModelSpec, members: Sequence[Admitted]) -> dict[str, Tensor]:
    """The inputs of requests of one bucket by name, rows stacked, all padded to the same length; the mask made where it lacks."""
    padding = spec.padding
    assert padding is not None
    stacked: dict[str, Tensor] = {}
    for declared in spec.inputs:
        parts = [member.inputs.get(declared.name) for member in members]
        given = [part for part in parts if part is not None]
        is_padded = declared.name in padding.values
        if is_padded and (given or declared.name == padding.mask):
            if len(given) == len(members) and all(member.length == member.padded for member in members):
                stacked[declared.name] = concatenate(given)
            else:
                stacked[declared.name] = _padded(padding, declared, members, parts)
        elif given:
            stacked[declared.name] = concatenate(given)
    return stacked


class Padded(Protocol):
    """What is known of an entry."""

    admitted: Admitted


def settle_padding(mates: Sequence[Padded]) -> None:
    """Mates are padded to the longest of them: their bucket said no more than that they are about as long."""
    longest = max((mate.admitted.length for mate in mates), default=0)
    if longest:
        for mate in mates:
            mate.admitted = mate.admitted._replace(padded=longest)


def padding_of(members: Sequence[Admitted]) -> int:
    """Elements along the padded dimension that nobody sent; no more than a record holds."""
    return min(sum(member.rows * (member.padded - member.length) for member in members), _MOST_COUNTED)


def cut(model: ModelSpec, outputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Outputs, as clients see them, each cut back to `length` along its first variable dimension, if it has one."""
    dimensions = {output.name: cut_dimension(model, output) for output in model.outputs}
    return {name: _cut(tensor, dimensions[name], length) for name, tensor in outputs.items()}


def _cut(tensor: Tensor, dimension: int | None, length: int) -> Tensor:
    if dimension is None:
        return tensor
    where = (*[slice(None)] * dimension, slice(length))
    if isinstance(tensor, BytesTensor):
        return tensor.take(np.arange(tensor.size).reshape(tensor.shape)[where])
    return np.ascontiguousarray(tensor[where])


def cut_dimension(model: ModelSpec, output: TensorSpec) -> int | None:
    """Along which dimension an output is cut back, the batch dimension included; None: it stays whole."""
    if model.padding is not None and output.name in model.padding.whole:
        return None
    return output.dims.index(-1) + (model.max_batch_size > 0) if -1 in output.dims else None


def _padded(padding: Padding, declared: TensorSpec, members: Sequence[Admitted], parts: Sequence[Tensor | None]) -> NDArray[Any]:
    inner = list(next((part.shape[1:] for part in parts if part is not None), declared.dims))
    inner[padding.axis] = members[0].padded
    rows = sum(member.rows for member in members)
    to = np.full((rows, *inner), padding.values[declared.name], DTYPES[declared.datatype])
    at = 0
    for member, part in zip(members, parts, strict=True):
        where = (slice(at, at + member.rows), *[slice(None)] * padding.axis, slice(member.length))
        assert not isinstance(part, BytesTensor)
        to[where] = 1 if part is None else part
        at += member.rows
    return to
