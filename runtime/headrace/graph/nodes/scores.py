"""From the scores of a classifier to what people ask for: probabilities, the best few, a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from headrace.errors import BackendFailed, InvalidRepository, InvalidRequest
from headrace.graph.nodes.parameters import Parameters, file_of, parameters
from headrace.node import Array, Context


class Softmax:
    """`logits` FP32[-1] to `probabilities` FP32[-1]."""

    inputs: Mapping[str, str] = {"logits": "FP32[-1]"}
    outputs: Mapping[str, str] = {"probabilities": "FP32[-1]"}

    def load(self, context: Context) -> None:
        """Nothing to get ready; there are no parameters."""
        parameters(Parameters, context)

    def run(self, tensors: Mapping[str, Array]) -> Mapping[str, Any]:
        """Over the last axis. A row with NaN or +inf, or of -inf only, has no probabilities, and is NaN."""
        logits = tensors["logits"]
        # The largest becomes 0, so that no exponential overflows; a difference may, to -inf, of which it is rightly 0.
        with np.errstate(invalid="ignore", over="ignore"):
            probabilities = np.exp(logits - logits.max(-1, keepdims=True, initial=-np.inf))
            probabilities /= probabilities.sum(-1, keepdims=True)
        return {"probabilities": probabilities}


class TopKParameters(Parameters):
    """Those of `top_k`."""

    k: Annotated[int, Field(gt=0)]
    """how many of the highest scores to return"""


class TopK:
    """`scores` FP32[-1] to `values` FP32[k] and `indices` INT64[k]: descending, equal ones by lower index, NaN last."""

    inputs: Mapping[str, str] = {"scores": "FP32[-1]"}
    outputs: Mapping[str, str]

    def load(self, context: Context) -> None:
        """Settle k."""
        self._k = parameters(TopKParameters, context).k
        self.outputs = {"values": f"FP32[{self._k}]", "indices": f"INT64[{self._k}]"}

    def run(self, tensors: Mapping[str, Array]) -> Mapping[str, Any]:
        """Only the k that are returned are sorted.

        Raises:
            InvalidRequest: there are fewer than k scores.
        """
        scores, k = tensors["scores"], self._k
        if scores.shape[-1] < k:
            raise InvalidRequest(f"top_k is to return {k} scores, and there are {scores.shape[-1]}; send more, or ask for fewer")
        keys = np.partition(_keys(scores), k - 1, -1)[..., :k]
        keys.sort(-1)
        indices = keys & 0xFFFF_FFFF
        return {"values": np.take_along_axis(scores, indices, -1), "indices": indices}


def _keys(scores: Array) -> Array:
    # Whole numbers that stand in the order wanted and differ from each other, so that there are no ties: above, the bits of the
    # negated score, which order like a whole number once those behind a minus sign are turned over; below, the index.
    negated = np.where(np.isnan(scores), np.float32(np.nan), 0 - scores)  # 0 - x is never -0.0; this NaN is above all numbers
    bits = negated.view(np.int32)
    ordered = np.where(bits < 0, bits ^ 0x7FFF_FFFF, bits).astype(np.int64)
    return (ordered << 32) | np.arange(scores.shape[-1])


class LabelsParameters(Parameters):
    """Those of `labels`: one of the two."""

    file: str | None = None
    """A file beside the graph, UTF-8, one label a line."""
    labels: Annotated[list[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> LabelsParameters:
        if (self.file is None) == (self.labels is None):
            raise PydanticCustomError("labels", "expected one of the parameters 'file' and 'labels'")
        return self


class Labels:
    """`scores` FP32[-1] to `label` BYTES[1] and `score` FP32[1] of the highest; of equal ones, the first."""

    inputs: Mapping[str, str] = {"scores": "FP32[-1]"}
    outputs: Mapping[str, str] = {"label": "BYTES[1]", "score": "FP32[1]"}

    def load(self, context: Context) -> None:
        """Read the labels."""
        given = parameters(LabelsParameters, context)
        labels = given.labels or _lines(context, str(given.file))
        self._name = context.name
        self._labels = np.array([label.encode() for label in labels], np.object_)

    def run(self, tensors: Mapping[str, Array]) -> Mapping[str, Any]:
        """Look up the best of every row.

        Raises:
            BackendFailed: there are not as many labels as scores.
        """
        scores = tensors["scores"]
        if scores.shape[-1] != len(self._labels):
            raise BackendFailed(
                f"node '{self._name}' has {len(self._labels)} labels for {scores.shape[-1]} scores; give it one a score"
            )
        best = scores.argmax(-1)[:, np.newaxis]
        return {"label": self._labels[best], "score": np.take_along_axis(scores, best, -1)}


def _lines(context: Context, name: str) -> list[str]:
    file = file_of(context, "file", name)
    try:
        return file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRepository(f"node '{context.name}': cannot read {file}: {error}") from None
