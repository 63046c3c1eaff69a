"""Models in Python behind real servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.python.test_models import BATCHES, TEXT, add, parameters
from tests.transport.serving import TRANSPORTS, serving, tensor


@pytest.mark.parametrize("way", TRANSPORTS)
@pytest.mark.parametrize("rows", [1, 3])
def test_over_the_network(tmp_path: Path, isolation: str, way: str, rows: int) -> None:
    add(tmp_path, TEXT, parameters(isolation=isolation))
    add(tmp_path, "return {'y': x * 2}", BATCHES + parameters(isolation=isolation), name="doubles")
    x = np.random.default_rng(rows).standard_normal((rows, 100_000), np.float32)
    with serving(way, tmp_path) as server:
        for _ in range(5):
            answer: Any = server.client.infer("doubles", [tensor("x", x, "FP32")])
            assert np.array_equal(answer.as_numpy("y"), x * 2)
            answer = server.client.infer("m", [tensor("text", [[b"abc"]] * rows, "BYTES")])
            assert answer.as_numpy("shout").tolist() == [[b"ABC"]] * rows
