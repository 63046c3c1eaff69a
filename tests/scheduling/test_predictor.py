"""What is learned of execution times."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.clock import MICROSECOND, MILLISECOND, SECOND
from headrace.scheduling.admission import Line
from headrace.scheduling.predictor import LEAST, WINDOW, Learned

RUNS = st.lists(st.tuples(st.integers(0, 64), st.integers(1, 10**9)), min_size=LEAST, max_size=200)


def taught(*runs: tuple[int, int], quantile: float = 0.75) -> Learned:
    learned = Learned(quantile)
    for rows, ns in runs:
        learned.observe(0, rows, ns)
    return learned


def test_nothing_is_foretold_before_a_few_runs() -> None:
    learned = Learned()
    for _ in range(LEAST):
        assert learned.execute_ns(0, 1) is None
        assert learned.line(0, 64) is None
        learned.observe(0, 1, 100)
    assert learned.execute_ns(0, 1) == 100


def test_buckets_know_nothing_of_each_other() -> None:
    assert taught((1, 100), (1, 100), (1, 100)).execute_ns(7, 1) is None


def test_it_is_a_quantile_of_the_last_runs() -> None:
    learned = taught(*((4, n * MILLISECOND) for n in range(1, WINDOW + 1)), quantile=0.9)
    assert learned.execute_ns(0, 4) == pytest.approx(0.9 * WINDOW * MILLISECOND, abs=2 * MILLISECOND)
    learned = taught(*((4, SECOND) for _ in range(WINDOW)), *((4, 5 * MILLISECOND) for _ in range(WINDOW + 8)))
    assert learned.execute_ns(0, 4) == 5 * MILLISECOND


def test_of_short_runs_it_looks_at_many_together() -> None:
    """The first ones count at once; then it is 25 ms of them, however many those are."""
    learned = Learned()
    told = [learned.observe(0, 4, 10 * MICROSECOND) for _ in range(5000)]
    assert [place for place, is_told in enumerate(told, 1) if is_told] == [1, 2, 3, 4, 5, 6, 7, 8, 2512]


def test_between_known_row_counts_it_is_linear_and_beyond_it_goes_on() -> None:
    learned = taught((2, 100), (6, 300), (2, 100), (6, 300))
    assert [learned.execute_ns(0, rows) for rows in (1, 2, 4, 6, 10)] == [100, 100, 200, 300, 500]
    assert learned.line(0, 64) == Line(0, 50, 64)


def test_of_one_row_count_more_rows_are_in_proportion() -> None:
    learned = taught((4, 100), (4, 100), (4, 100))
    assert [learned.execute_ns(0, rows) for rows in (1, 4, 8)] == [100, 100, 200]
    assert learned.line(0, 64) == Line(100, 0, 64)


def test_of_batches_without_rows_more_rows_are_in_proportion_to_one() -> None:
    learned = taught((0, 100), (0, 100), (0, 100))
    assert [learned.execute_ns(0, rows) for rows in (0, 1, 4)] == [100, 100, 400]
    assert learned.line(0, 64) == Line(100, 0, 64)


def test_what_falls_is_pooled() -> None:
    """Sixteen rows are no quicker than eight, whatever one measurement says."""
    learned = taught(*([(8, 200)] * 30), (16, 100))
    eight, sixteen = learned.execute_ns(0, 8), learned.execute_ns(0, 16)
    assert eight is not None
    assert eight == sixteen
    assert 190 < eight <= 200


@given(RUNS)
def test_more_rows_never_take_less(runs: list[tuple[int, int]]) -> None:
    learned = taught(*runs)
    times = [learned.execute_ns(0, rows) for rows in range(1, 100)]
    known = [time for time in times if time is not None]
    assert len(known) == len(times)
    assert known == sorted(known)
    assert known[0] >= 0
    line = learned.line(0, 64)
    assert line is not None
    assert min(line) >= 0


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 2.0))
def test_it_follows_a_machine_that_slows_down(seed: int, factor: float) -> None:
    random = np.random.default_rng(seed)
    learned = Learned()
    for scale in (1.0, factor):
        for _ in range(WINDOW + 8):
            rows = 4
            learned.observe(0, rows, int(scale * (10 + rows) * MILLISECOND * random.uniform(0.95, 1.05)))
    assert learned.execute_ns(0, 4) == pytest.approx(factor * 14 * MILLISECOND, rel=0.1)


def test_shapes_without_end_do_not_fill_the_memory() -> None:
    learned = Learned()
    for bucket in range(10_000):
        learned.observe(bucket, 1, 5)
    assert len(learned._buckets) == 256
    for _ in range(LEAST):
        learned.observe(9_999, 1, 5)
    assert learned.execute_ns(9_999, 1) == 5


def test_the_line_ends_at_a_full_batch() -> None:
    """What is longer does not come up: 64 rows take far more than eight times eight."""
    learned = taught(*[(1, 10), (8, 80), (64, 6400)] * 3)
    assert learned.line(0, 8) == Line(0, 10, 8)


@pytest.mark.parametrize(
    ("lasts", "best"),
    [
        pytest.param({1: 100, 2: 110, 4: 130, 8: 170}, None, id="the-largest"),
        pytest.param({1: 30, 4: 14 * 4, 16: 20 * 16, 64: 98 * 64}, 4, id="a-small-one"),
        pytest.param({1: 100, 2: 198, 4: 396, 8: 790}, 1, id="as-good-alone"),
        pytest.param({1: 1, 2: 2, 4: 4, 8: 8}, None, id="what-is-around-a-short-run-counts"),
    ],
)
def test_the_best_batch_is_the_smallest_that_is_as_good_as_any(lasts: dict[int, int], best: int | None) -> None:
    learned = taught(*[(rows, ms * MILLISECOND) for rows, ms in lasts.items() for _ in range(5)])
    assert learned.best_rows(0) is None, "it was not measured on purpose yet"
    learned.settle()
    assert learned.best_rows(0) == best


def test_one_odd_run_makes_no_best_batch() -> None:
    learned = taught(*[(rows, 100 + rows) for rows in (1, 4, 8) for _ in range(5)], (8, 10**6))
    learned.settle()
    assert learned.best_rows(0) is None


def test_one_run_that_was_interrupted_does_not_count() -> None:
    learned = taught(*[(rows, 100 * rows) for rows in (1, 2, 4, 8)] * 3, (4, 40_000))
    assert learned.execute_ns(0, 4) == 400


def test_all_sizes_learn_from_one_that_they_are_slower_now() -> None:
    learned = taught(*[(rows, rows * MILLISECOND) for rows in (1, 2, 4, 8)] * 3)
    for _ in range(WINDOW):
        learned.observe(0, 8, 16 * MILLISECOND)
    eight, two = learned.execute_ns(0, 8), learned.execute_ns(0, 2)
    assert eight == pytest.approx(16 * MILLISECOND, rel=0.05)
    assert two is not None
    assert two >= 2 * MILLISECOND
