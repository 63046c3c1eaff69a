"""The classification extension: the likeliest classes of an output instead of its values, for every way in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import InvalidRequest
from headrace.model import ModelSpec
from headrace.request import Request
from headrace.tensor import BytesTensor, Tensor, datatype_of

_MOST_ELEMENTS = 1_000_000
_DATATYPES = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64")


def check_classes(datatype: str) -> None:
    """Whether an output of this datatype can be classified.

    Raises:
        InvalidRequest: it cannot.
    """
    if datatype not in _DATATYPES:
        raise InvalidRequest(f"class result not available for output due to unsupported type '{datatype}'")


def classified(request: Request, spec: ModelSpec, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of one request, with the classes of those it wants classified.

    Raises:
        InvalidRequest: one is too large.
    """
    labels = {output.name: output.labels for output in spec.outputs}
    return {
        name: top(tensor, request.classes[name], labels[name], batched=spec.max_batch_size > 0)
        if name in request.classes
        else tensor
        for name, tensor in outputs.items()
    }


def top(tensor: Tensor, count: int, labels: Sequence[str], *, batched: bool) -> BytesTensor:
    """The `count` largest elements of each row as `<value>:<index>` or `<value>:<index>:<label>`, the largest first.

    Args:
        tensor: of any shape; what follows the batch dimension is taken as one row.
        count: how many; less if there are not so many elements.
        labels: by index; an empty one, or none, is left out.
        batched: whether the first dimension is the batch.

    Returns:
        BYTES of shape [batch, count], or [count] without batching. Of equals, the one with the lower index comes first.

    Raises:
        InvalidRequest: it has no numbers, or too many.
    """
    check_classes(datatype_of(tensor))
    assert not isinstance(tensor, BytesTensor)
    if tensor.size > _MOST_ELEMENTS:
        raise InvalidRequest("classification output tensor too large")
    batch = tensor.shape[0] if batched else 1
    width = math.prod(tensor.shape[1:] if batched else tensor.shape)
    rows: NDArray[Any] = tensor.reshape(batch, width)
    kept = min(count, width)
    # Sorted backwards and read backwards, so that equals keep their order and unsigned numbers need no minus.
    order = (width - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable"))[:, ::-1][:, :kept]
    values = np.take_along_axis(rows, order, axis=1)
    form = "f" if tensor.dtype.kind == "f" else "d"
    told = [
        f"{value:{form}}:{index}" + (f":{labels[index]}" if index < len(labels) and labels[index] else "")
        for value, index in zip(values.reshape(-1).tolist(), order.reshape(-1).tolist(), strict=True)
    ]
    return BytesTensor.of(told, (batch, kept) if batched else (kept,))
