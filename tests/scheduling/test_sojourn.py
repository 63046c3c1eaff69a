"""The bound of a queue that stands, on a clock of numbers."""

from __future__ import annotations

from headrace.clock import SECOND
from headrace.scheduling.sojourn import Sojourn

TARGET, MOST = 10 * SECOND, 16384


def test_a_queue_that_moves_has_no_bound_of_its_own() -> None:
    sojourn = Sojourn(TARGET, MOST)
    for second in range(100):
        # Long waits come, and short ones between them: it is a burst, no standing queue.
        waited = 30 * SECOND if second % 2 else SECOND
        assert sojourn.saw(waited, 25, second * SECOND // 4) == MOST


def test_a_standing_queue_is_cut_to_what_is_done_within_the_target() -> None:
    sojourn = Sojourn(TARGET, MOST)
    limits = [sojourn.saw(40 * SECOND, 50, second * SECOND // 2) for second in range(4)]
    assert limits[0] == MOST, "not before an interval is over"
    assert limits[-1] == 1000, "100 a second go through, so 1000 in ten seconds"


def test_the_bound_goes_when_the_queue_has_gone() -> None:
    sojourn = Sojourn(TARGET, MOST)
    for second in range(10):
        sojourn.saw(40 * SECOND, 100, second * SECOND)
    limits = [sojourn.saw(SECOND, 100, (10 + second) * SECOND) for second in range(20)]
    assert limits == sorted(limits)
    assert limits[-1] == MOST


def test_a_few_may_always_wait() -> None:
    sojourn = Sojourn(TARGET, MOST)
    for second in range(10):
        sojourn.saw(4000 * SECOND, 1, second * SECOND)
    assert sojourn.limit == 16


def test_between_the_two_borders_nothing_changes() -> None:
    sojourn = Sojourn(TARGET, MOST)
    for second in range(4):
        sojourn.saw(40 * SECOND, 100, second * SECOND)
    settled = sojourn.limit
    for second in range(20):
        sojourn.saw(8 * SECOND, 100, (4 + second) * SECOND)
    assert sojourn.limit == settled
