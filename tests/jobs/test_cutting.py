"""How rows become batches: whatever they are, each is in one batch, and batches are as the shapes say."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.profile import Calls, Point, Profile
from headrace.errors import BackendDown
from headrace.jobs.cutting import bisect, count, cut, in_parallel, shapes_for, units
from headrace.jobs.manifest import Shapes
from headrace.model import ModelSpec, Padding
from headrace.tensor import TensorSpec

EDGES = (4, 8, 16)


def shapes(*rows: int, unit: int = 0) -> Shapes:
    batch = tuple(zip(EDGES, rows, strict=True)) if len(rows) > 1 else ((0, rows[0]),)
    return Shapes(batch_rows=batch, unit_rows=unit, window_rows=64, split_rows=64, runners=2, threads=1)


def spec(padding: Padding | None = None, rows: int = 64) -> ModelSpec:
    return ModelSpec("m", 1, "", "", "", rows, (), (), padding=padding)


@given(st.lists(st.integers(1, 16), max_size=60), st.data())
def test_every_row_once_and_batches_of_one_bucket(lengths: list[int], data: st.DataObject) -> None:
    long = np.array(lengths, np.int64)
    buckets = np.array([min(edge for edge in EDGES if edge >= length) for length in lengths], np.int64)
    left = data.draw(st.sets(st.sampled_from(range(len(lengths))))) if lengths else set()
    places = np.array(sorted(left), np.intp)
    batches = cut(buckets, long, places, how := shapes(5, 3, 2))
    rows = [np.arange(len(lengths))[batch].tolist() for batch in batches]
    assert sorted(row for batch in rows for row in batch) == sorted(left)
    most = dict(how.batch_rows)
    by_bucket: dict[int, list[int]] = {}
    for batch in rows:
        (bucket,) = set(buckets[batch].tolist())
        by_bucket.setdefault(bucket, []).append(len(batch))
        assert long[batch].tolist() == sorted(long[batch].tolist())
    for bucket, sizes in by_bucket.items():
        # Full, but for the last: no batch more than there must be.
        assert all(size == most[bucket] for size in sizes[:-1])
        assert sizes[-1] <= most[bucket]


@given(st.integers(0, 200), st.integers(1, 70))
def test_rows_of_one_kind_are_not_moved(rows: int, size: int) -> None:
    """They run from where they are."""
    zeros = np.zeros(rows, np.int64)
    batches = cut(zeros, zeros, np.arange(rows, dtype=np.intp), shapes(size))
    assert all(isinstance(batch, slice) for batch in batches)
    assert [row for batch in batches for row in range(rows)[batch]] == list(range(rows))


@given(st.lists(st.integers(1, 64), max_size=50), st.sampled_from([0, 16, 256]))
def test_units_are_runs_of_batches(sizes: list[int], unit: int) -> None:
    """In order, about as many for each runner; over borders no more rows than go together, but for a batch that is larger."""
    ends = np.cumsum([0, *sizes]).tolist()
    batches = [slice(a, b) for a, b in pairwise(ends)]
    found = units(batches, shapes(64, unit=unit))
    assert [batch for each in found for batch in each] == batches
    if unit:
        assert all(sum(map(count, each[:-1])) < unit for each in found)


def profile(calls: Calls | None = None) -> Profile:
    """32 rows do most of what has length 16, 4 of what is longer."""
    times = {(16, 1): 10, (16, 4): 20, (16, 32): 80, (16, 64): 400, (512, 1): 100, (512, 4): 200, (512, 32): 5000}
    points = [Point(0, length, rows, (ms * 1_000_000,)) for (length, rows), ms in times.items()]
    return Profile(tuple(points), calls)


def test_the_best_batch_by_the_profile() -> None:
    """Of each bucket, as of the next length that was looked at; not more elements than the model is padded to."""
    padding = Padding(0, {}, (8, 16, 100, 512, 600), max_elements=3000)
    found = shapes_for(spec(padding), profile(), (2, 1), 100, asked=None, has_borders=False)
    assert found.batch_rows == ((8, 32), (16, 32), (100, 4), (512, 4), (600, 4))
    assert found.window_rows == 4096
    # 20 s of the slowest: 20 rows/s.
    assert found.split_rows == 4096
    asked = shapes_for(spec(padding), None, (2, 1), 100, asked=64, has_borders=True)
    assert asked.batch_rows == ((8, 64), (16, 64), (100, 30), (512, 5), (600, 5))
    assert asked.unit_rows > 0


def test_the_quickest_run_of_a_size_counts() -> None:
    """Whatever else was going on, and however little more it does: a job waits for no batch in particular."""
    ms = 1_000_000
    points = (
        Point(0, 0, 32, (4 * ms, 4 * ms, 4 * ms)),
        Point(0, 0, 64, (9 * ms, 7 * ms, 9 * ms)),
        Point(0, 0, 128, (15 * ms,) * 3),
    )
    found = shapes_for(spec(), Profile(points), (2, 1), 100, asked=None, has_borders=False)
    assert found.batch_rows == ((0, 64),)


def test_a_fast_model_has_large_windows() -> None:
    """As many rows as all runners do in 50 ms, where they fit; and 20 s of all runners make a split."""

    def of(us: int, runners: int, width: int = 1) -> Shapes:
        of_width = replace(spec(), inputs=(TensorSpec("x", "FP32", (width,)),))
        fast = Profile((Point(0, 0, 64, (us * 1000,)),))
        return shapes_for(of_width, fast, (runners, 1), 4, asked=None, has_borders=False)

    assert of(400, 1).window_rows == 64 * 125
    assert of(400, 2).window_rows == 64 * 250
    assert of(20, 2).window_rows == 1 << 15
    assert of(20, 2, 1 << 10).window_rows == 1 << 13  # packed in the file, and 4 KiB each when read
    assert (of(64_000, 1).split_rows, of(64_000, 4).split_rows) == (4 * 4096, 19 * 4096)


def test_windows_fit_into_memory() -> None:
    """A window of large rows has few of them, in full batches; never less than one."""
    assert shapes_for(spec(), None, (2, 1), 1 << 20, asked=8, has_borders=False).window_rows == 32
    assert shapes_for(spec(), None, (2, 1), 1 << 30, asked=8, has_borders=False).window_rows == 8


@pytest.mark.parametrize(
    ("calls", "expected"), [(None, (4, 1)), (Calls(4, 8, 100.0, 250.0), (4, 1)), (Calls(4, 8, 100.0, 90.0), (1, 4))]
)
def test_one_batch_a_core_unless_one_on_all_does_more(calls: Calls | None, expected: tuple[int, int]) -> None:
    assert in_parallel(profile(calls), 4) == expected


@given(st.integers(1, 100), st.sets(st.integers(0, 99)))
def test_the_guilty_are_found(rows: int, guilty: set[int]) -> None:
    """Each alone, whatever their company; nobody else fails, and everybody else has run once."""
    ran: list[int] = []
    failed: list[int] = []

    def run(first: int, last: int) -> None:
        if guilty & set(range(first, last)):
            raise ValueError
        ran.extend(range(first, last))

    bisect(0, rows, run, lambda place, error: failed.append(place))
    assert failed == sorted(guilty & set(range(rows)))
    assert ran == [row for row in range(rows) if row not in guilty]


def test_what_cannot_run_at_all_is_nobodys_fault() -> None:
    def run(first: int, last: int) -> None:
        raise BackendDown("m", "nobody answers")

    with pytest.raises(BackendDown):
        bisect(0, 8, run, lambda place, error: pytest.fail("no row is guilty"))
