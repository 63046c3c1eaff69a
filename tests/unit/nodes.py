"""What the tests of built-in nodes share: a node by its name in a graph, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from headrace.graph.nodes import BUILT_IN
from headrace.node import Context, Node, tensor_of


def loaded(name: str, directory: Path = Path("/nonexistent"), **parameters: Any) -> Node:
    module, _, kind = BUILT_IN[name].partition(":")
    node = getattr(import_module(module), kind)()
    node.load(Context("mine", directory, parameters))
    return node


def ran(node: Node, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a node of one row a row returns, which must be what it declares."""
    made = node.run(tensors)
    assert isinstance(made, Mapping)
    rows = len(next(iter(tensors.values())))
    assert set(made) == set(node.outputs)
    for output, text in node.outputs.items():
        spec = tensor_of(output, text)
        array = made[output]
        assert array.shape[0] == rows
        assert array.dtype == {"FP32": np.float32, "INT64": np.int64, "BYTES": np.object_}[spec.datatype]
        assert all(dim in (-1, size) for dim, size in zip(spec.dims, array.shape[1:], strict=True))
    return made


def column(*elements: bytes) -> np.ndarray[Any, Any]:
    """BYTES[1]: one element a row."""
    array = np.empty((len(elements), 1), np.object_)
    array[:, 0] = elements
    return array
