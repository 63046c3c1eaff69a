from __future__ import annotations

from headrace.backends.backoff import Backoff
from headrace.clock import SECOND


def test_each_end_waits_twice_as_long_and_half_a_minute_at_most() -> None:
    backoff, now = Backoff(), 5 * SECOND
    assert backoff.wait(now) == 0
    waits = []
    for _ in range(100):
        backoff.ended(now)
        waits.append(backoff.wait(now) / SECOND)
        now += backoff.wait(now)
        assert backoff.wait(now) == 0
    assert waits[:10] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30]
    assert set(waits[9:]) == {30}


def test_what_went_well_begins_anew() -> None:
    backoff = Backoff()
    for _ in range(4):
        backoff.ended(0)
    assert backoff.wait(SECOND // 2) == SECOND * 3 // 10
    backoff.went_well()
    backoff.ended(SECOND)
    assert backoff.wait(SECOND) == SECOND // 10
