"""When the requests of an open loop are due."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace.clock import SECOND
from headrace.errors import InvalidLoad
from headrace.load.arrivals import due


@pytest.mark.parametrize("kind", ["poisson", "constant", "bursts", "bursts:7"])
def test_they_come_in_order_at_the_rate_that_was_asked_for(kind: str) -> None:
    instants = due(kind, 1000.0, 5.0, seed=3)
    assert instants.dtype == np.int64
    assert (np.diff(instants) >= 0).all()
    assert 0 <= instants[0] <= instants[-1] < 5 * SECOND
    assert len(instants) == pytest.approx(5000, abs=32)


def test_gaps_of_a_poisson_process_are_exponential() -> None:
    gaps = np.diff(due("poisson", 1000.0, 50.0, seed=1)) / SECOND
    assert gaps.mean() == pytest.approx(1e-3, rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def test_constant_gaps_are_constant() -> None:
    assert set(np.diff(due("constant", 1000.0, 1.0, seed=0)).tolist()) <= {999_999, 1_000_000, 1_000_001}


def test_bursts_come_at_once() -> None:
    _, sizes = np.unique(due("bursts:7", 1000.0, 5.0, seed=1), return_counts=True)
    assert set(sizes % 7) == {0}


def test_the_seed_decides() -> None:
    one, again, other = (due("poisson", 100.0, 1.0, seed).tolist() for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    ("text", "rate", "instants"),
    [
        ("0\n0.5\n0.25\n", None, [0, SECOND // 4, SECOND // 2]),
        ("seconds,what\n10.0,a\n10.5,b\n\n# nothing\n", None, [0, SECOND // 2]),
        ("0\n1\n2\n3\n", 8.0, [0, SECOND // 6, SECOND // 3, SECOND // 2]),
        ("0\n1\n99\n", None, [0, SECOND]),
    ],
)
def test_a_file_is_replayed(tmp_path: Path, text: str, rate: float | None, instants: list[int]) -> None:
    file = tmp_path / "arrivals.csv"
    file.write_text(text)
    assert due(str(file), rate, 10.0, seed=0).tolist() == pytest.approx(instants, abs=1)


@pytest.mark.parametrize(
    ("kind", "rate", "told"),
    [
        ("poisson", None, "need a rate"),
        ("bursts:0", 5.0, "bursts:N"),
        ("bursts:x", 5.0, "bursts:N"),
        ("uniform", 5.0, "neither poisson, constant, bursts, bursts:N, nor a file"),
        ("poisson", 1e9, "more than one load may have"),
    ],
)
def test_what_cannot_be_is_told(kind: str, rate: float | None, told: str) -> None:
    with pytest.raises(InvalidLoad, match=told):
        due(kind, rate, 10.0, seed=0)


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / "arrivals.bin"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidLoad, match="cannot be read"):
        due(str(file), None, 10.0, seed=0)


@pytest.mark.parametrize(("text", "told"), [("", "no instants"), ("a\nb\n", "line 2: 'b'"), ("0\nnan\n", "not finite")])
def test_a_file_that_is_none_is_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "arrivals.txt"
    file.write_text(text)
    with pytest.raises(InvalidLoad, match=told):
        due(str(file), None, 10.0, seed=0)
