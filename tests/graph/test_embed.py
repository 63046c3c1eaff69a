"""The graph `embed` makes of texts of all lengths the vectors that a tokenizer, a model and numpy make of each alone, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from demo import reference
from demo.embed import build_repository
from tests.transport.serving import Asked, serving, tensor

TOLERANCE = 1e-5
"""Absolute, of numbers up to 0.3: padded and unpadded differ by rounding."""
TEXTS = (
    "",
    "Why?",
    "水車",
    "The mill wheel turns.",
    "Water turns the wheel of the mill.",
    "A headrace leads water to a mill wheel; what the wheel does not need goes over the weir.",
    "Requests of different lengths share a batch. " * 12,
    "word " * 1000,  # cut off
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repository")
    build_repository(path)
    return path


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return np.float32(reference.embed(list(TEXTS)))


def test_texts_of_all_lengths(transport: str, repository: Path, expected: np.ndarray) -> None:
    """In a request each, all at once, and in one request."""
    with serving(transport, repository) as server:
        assert server.engine.ready, server.engine.statuses()
        asked = [Asked(server, "embed", [tensor("text", [[text.encode()]], "BYTES")]) for text in TEXTS]
        together = Asked(server, "embed", [tensor("text", [[text.encode()] for text in TEXTS], "BYTES")])
        apart = np.concatenate([answer.result().as_numpy("vector") for answer in asked])
        for vectors in (apart, together.result().as_numpy("vector")):
            np.testing.assert_allclose(vectors, expected, rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=TOLERANCE)
    # The model means what it says: the two sentences about wheels are the closest.
    likeness = np.triu(expected @ expected.T, 1)
    assert np.unravel_index(likeness.argmax(), likeness.shape) == (3, 4)
