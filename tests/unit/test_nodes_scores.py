"""Softmax, the best few and labels, against plain code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from headrace.errors import BackendFailed, InvalidRepository, InvalidRequest
from tests.unit.nodes import loaded, ran

LEISURELY = settings(deadline=None)
SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=6)
NUMBERS = arrays.arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
TIES = st.sampled_from([0.0, -0.0, 1.5, -1.5, 1e-45, -1e-45, math.inf, -math.inf, math.nan])
ANYTHING = arrays.arrays(np.float32, SHAPES, elements=TIES | st.floats(width=32))


def few(*rows: list[float]) -> np.ndarray[Any, Any]:
    return np.array(rows, np.float32)


@LEISURELY
@given(NUMBERS)
def test_softmax_is_what_the_formula_says(logits: np.ndarray[Any, Any]) -> None:
    before = logits.copy()
    probabilities = ran(loaded("softmax"), {"logits": logits})["probabilities"]
    wanted = np.array([[1 / math.fsum(math.exp(min(float(b) - float(a), 700)) for b in row) for a in row] for row in logits])
    np.testing.assert_allclose(probabilities, wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(logits, before)


def test_softmax_of_what_is_hardly_a_number() -> None:
    inf, nan = np.inf, np.nan
    logits = few([-inf, 0, 0], [-inf, -inf, -inf], [nan, 0, 0], [inf, 0, 0])
    probabilities = ran(loaded("softmax"), {"logits": logits})["probabilities"]
    np.testing.assert_array_equal(probabilities[0], [0, 0.5, 0.5])
    largest = float(np.finfo(np.float32).max)
    np.testing.assert_array_equal(ran(loaded("softmax"), {"logits": few([largest, -largest])})["probabilities"], [[1, 0]])
    assert np.isnan(probabilities[1:]).any(-1).all()


def test_softmax_of_nothing() -> None:
    assert ran(loaded("softmax"), {"logits": np.zeros((2, 0), np.float32)})["probabilities"].shape == (2, 0)


def rank(score: float) -> tuple[bool, float]:
    return (True, 0) if math.isnan(score) else (False, -score)


@LEISURELY
@given(ANYTHING, st.data())
def test_top_k_is_the_head_of_a_stable_sort(scores: np.ndarray[Any, Any], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, scores.shape[1]))
    made = ran(loaded("top_k", k=k), {"scores": scores})
    for row, values, indices in zip(scores, made["values"], made["indices"], strict=True):
        wanted = sorted(range(len(row)), key=lambda index: rank(row[index]))
        assert indices.tolist() == wanted[:k]
        np.testing.assert_array_equal(values, row[indices])


def test_top_k_of_many() -> None:
    scores = np.random.default_rng(1).integers(0, 50, (3, 5000)).astype(np.float32)
    made = ran(loaded("top_k", k=300), {"scores": scores})
    np.testing.assert_array_equal(made["indices"], np.argsort(-scores, axis=-1, kind="stable")[:, :300])


def test_top_k_of_fewer() -> None:
    with pytest.raises(InvalidRequest, match="top_k is to return 3 scores, and there are 2"):
        loaded("top_k", k=3).run({"scores": few([1, 2])})


def test_labels() -> None:
    made = ran(loaded("labels", labels=["Katze", "Hund", "Kälte"]), {"scores": few([0.1, 0.2, 0.7], [5, 5, 1])})
    assert made["label"].tolist() == [["Kälte".encode()], [b"Katze"]]
    np.testing.assert_array_equal(made["score"], few([0.7], [5]))


@pytest.mark.parametrize(
    "content", [b"cat\nbig dog\n", b"cat\r\nbig dog\r\n", b"\xef\xbb\xbfcat\nbig dog"], ids=["unix", "windows", "with a mark"]
)
def test_labels_of_a_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    made = ran(loaded("labels", tmp_path, file="labels.txt"), {"scores": few([0, 1], [1, 0])})
    assert made["label"].tolist() == [[b"big dog"], [b"cat"]]


def test_labels_of_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(b"\xff\n")
    with pytest.raises(InvalidRepository, match=r"node 'mine': cannot read .*labels\.txt"):
        loaded("labels", tmp_path, file="labels.txt")


@pytest.mark.parametrize("scores", [few([1]), few([1, 2, 3])])
def test_labels_for_other_scores(scores: np.ndarray[Any, Any]) -> None:
    with pytest.raises(BackendFailed, match=rf"node 'mine' has 2 labels for {scores.shape[1]} scores"):
        loaded("labels", labels=["a", "b"]).run({"scores": scores})
