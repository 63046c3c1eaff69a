"""Mean pooling and vectors of length 1, against plain code in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.unit.nodes import loaded, ran

LEISURELY = settings(deadline=None)
NUMBERS = st.floats(-1000, 1000, width=32)


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rows, tokens, width = draw(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5)))
    hidden = draw(arrays.arrays(np.float32, (rows, tokens, width), elements=NUMBERS))
    mask = draw(arrays.arrays(np.int64, (rows, tokens), elements=st.integers(0, 1)))
    return hidden, mask


@LEISURELY
@given(batches())
def test_pooling_is_the_mean_of_the_tokens(batch: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]) -> None:
    hidden, mask = batch
    pooled = ran(loaded("mean_pooling", normalise=False), {"hidden": hidden, "mask": mask})["vector"]
    for states, real, mean in zip(hidden.astype(np.float64), mask, pooled, strict=True):
        wanted = states[real == 1].mean(0) if real.any() else np.zeros(states.shape[1])
        np.testing.assert_allclose(mean, wanted, rtol=1e-5, atol=1e-3)
    normalised = ran(loaded("mean_pooling"), {"hidden": hidden, "mask": mask})["vector"]
    np.testing.assert_array_equal(normalised, ran(loaded("l2_normalise"), {"x": pooled})["y"])


def test_pooling_as_sentence_transformers_writes_it() -> None:
    """Its `Pooling` and `normalize`, in numpy."""
    random = np.random.default_rng(7)
    hidden = random.normal(size=(8, 40, 384)).astype(np.float32)
    mask = (np.arange(40) < random.integers(1, 41, (8, 1))).astype(np.int64)
    expanded = np.broadcast_to(mask[..., np.newaxis], hidden.shape).astype(np.float32)
    mean = (hidden * expanded).sum(1) / np.clip(expanded.sum(1), 1e-9, None)
    wanted = mean / np.clip(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12, None)
    vector = ran(loaded("mean_pooling"), {"hidden": hidden, "mask": mask})["vector"]
    np.testing.assert_allclose(vector, wanted, rtol=1e-4, atol=1e-6)


@LEISURELY
@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=NUMBERS))
def test_vectors_of_length_one(x: np.ndarray[Any, Any]) -> None:
    before = x.copy()
    y = ran(loaded("l2_normalise"), {"x": x})["y"]
    lengths = np.linalg.norm(x.astype(np.float64), axis=-1)
    np.testing.assert_allclose(np.linalg.norm(y[lengths > 1e-6], axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(y * lengths[:, np.newaxis], x, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(x, before)


def test_vectors_without_a_direction() -> None:
    np.testing.assert_array_equal(ran(loaded("l2_normalise"), {"x": np.zeros((2, 3), np.float32)})["y"], np.zeros((2, 3)))
