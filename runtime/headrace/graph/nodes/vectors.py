"""One vector for a sequence of them, and vectors of length 1: what makes embeddings of a model's hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace.graph.nodes.parameters import Parameters, parameters
from headrace.node import Array, Context


class PoolingParameters(Parameters):
    """Those of `mean_pooling`."""

    normalise: bool = True
    """Whether vectors come out with length 1."""


class MeanPooling:
    """The mean of the tokens: `hidden` FP32[-1,-1] (tokens, width) and `mask` INT64[-1] (0 is padding) to `vector` FP32[-1].

    The numbers are those of sentence-transformers; of a row without a token, zeros.
    """

    inputs: Mapping[str, str] = {"hidden": "FP32[-1,-1]", "mask": "INT64[-1]"}
    outputs: Mapping[str, str] = {"vector": "FP32[-1]"}

    def load(self, context: Context) -> None:
        """Settle whether to normalise."""
        self._normalise = parameters(PoolingParameters, context).normalise

    def run(self, tensors: Mapping[str, Array]) -> Mapping[str, Any]:
        """One product of matrices a row, all in one call."""
        weights = tensors["mask"].astype(np.float32)[:, np.newaxis]
        sums = (weights @ tensors["hidden"])[:, 0]
        vector = sums / np.maximum(weights.sum(-1), np.float32(1e-9))
        return {"vector": normalised(vector) if self._normalise else vector}


class L2Normalise:
    """`x` FP32[-1] to `y` FP32[-1], the same direction with length 1; zeros stay zeros."""

    inputs: Mapping[str, str] = {"x": "FP32[-1]"}
    outputs: Mapping[str, str] = {"y": "FP32[-1]"}

    def load(self, context: Context) -> None:
        """Nothing to get ready; there are no parameters."""
        parameters(Parameters, context)

    def run(self, tensors: Mapping[str, Array]) -> Mapping[str, Any]:
        """Normalise every row."""
        return {"y": normalised(tensors["x"])}


def normalised(x: Array) -> Array:
    """Vectors along the last axis, each of length 1; one that is shorter than 1e-12 is divided by that, as in torch."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), x.dtype.type(1e-12))
