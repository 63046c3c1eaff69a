"""Numbers out of samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.clock import MILLISECOND, SECOND
from headrace.load.analysis import NOT_SENT, SAMPLE, Samples, Shares, Summary, Window, is_steady, summarise


def samples(count: int, latency: Any = MILLISECOND, code: Any = 0, message: Any = 0, lag: Any = 0) -> Samples:
    """`count` of them, one each millisecond; the rest is the same for all, or one for each."""
    made = np.zeros(count, SAMPLE)
    made["due"] = 5 * SECOND + np.arange(count) * MILLISECOND
    made["sent"] = made["due"] + lag
    made["done"] = made["due"] + latency
    made["code"], made["message"] = code, message
    return made


def summary(of: Samples, objective: int | None = None, cpu: float = 0.1, is_open: bool = True, **shares: Any) -> Summary:
    window = shares.pop("window", Window(5 * SECOND, 5 * SECOND + max(1, len(of)) * MILLISECOND))
    return summarise(of, window, Shares(**shares), objective, cpu, is_open=is_open)


def test_rate_and_latency() -> None:
    told = summary(samples(1000, latency=np.arange(1, 1001) * 1000))
    assert told.seconds == pytest.approx(1.0)
    assert told.offered == pytest.approx(1000.0)
    assert told.total.rate == pytest.approx(999.0)  # one came after the end
    assert told.total.latency is not None
    assert told.total.latency.quantiles[0] == pytest.approx(500_500)
    assert told.total.latency.quantiles[3] == pytest.approx(990_010)
    assert told.total.latency.most == 1_000_000
    assert told.total.errors == {}


def test_errors_are_counted_by_code_and_are_no_latencies() -> None:
    codes = np.zeros(1000, np.uint8)
    codes[:100], codes[100:150], codes[150:160] = 14, 4, NOT_SENT
    fast_failures = np.where(codes, 1, 5 * MILLISECOND)
    told = summary(samples(1000, code=codes, latency=fast_failures), objective=10 * MILLISECOND)
    assert told.total.errors == {"DEADLINE_EXCEEDED": 50, "UNAVAILABLE": 100, "NOT_SENT": 10}
    assert (told.total.due, told.total.answered) == (1000, 840)
    assert told.total.latency is not None
    assert set(told.total.latency.quantiles) == {5 * MILLISECOND}
    assert told.total.goodput == pytest.approx(835)
    assert any("10 requests were due and not sent" in doubt for doubt in told.doubts)


def test_latency_counts_from_the_instant_it_was_due() -> None:
    late = summary(samples(1000, latency=8 * MILLISECOND, lag=7 * MILLISECOND))
    assert late.total.latency is not None
    assert late.total.latency.quantiles[0] == 8 * MILLISECOND
    assert late.lag == (7 * MILLISECOND, 7 * MILLISECOND)
    assert any("fell behind" in doubt for doubt in late.doubts)


def test_goodput_is_what_comes_within_the_objective() -> None:
    latency = np.where(np.arange(1000) % 4, MILLISECOND, 30 * MILLISECOND)
    assert summary(samples(1000, latency=latency), objective=20 * MILLISECOND).total.goodput == pytest.approx(750, abs=1)
    assert summary(samples(1000)).total.goodput is None


def test_shares_add_up() -> None:
    messages = np.arange(1000) % 3
    told = summary(samples(1000, message=messages, latency=(messages + 1) * 1000), owners=(0, 0, 1), names=("a", "b"))
    assert [(each.name, each.due) for each in told.shares] == [("a", 667), ("b", 333)]
    assert sum(each.rate for each in told.shares) == pytest.approx(told.total.rate)
    assert told.shares[1].latency is not None
    assert told.shares[1].latency.mean == 3000


@pytest.mark.parametrize(
    ("cpu", "latency", "doubt"),
    [
        (0.95, MILLISECOND, "is the bottleneck"),
        (0.1, np.linspace(1, 3, 1000) * MILLISECOND, "median latency grows by"),
        (0.1, np.linspace(3, 1, 1000) * MILLISECOND, "median latency falls by"),
    ],
)
def test_what_is_not_to_be_believed_is_told(cpu: float, latency: Any, doubt: str) -> None:
    assert any(doubt in told for told in summary(samples(1000, latency=latency), cpu=cpu).doubts)


def test_a_good_load_leaves_no_doubt() -> None:
    assert summary(samples(1000)).doubts == []


def test_nothing_is_nothing() -> None:
    told = summary(samples(0))
    assert (told.total.due, told.total.answered, told.total.latency) == (0, 0, None)
    failed = summary(samples(50, code=14))
    assert (failed.total.answered, failed.total.rate, failed.total.latency) == (0, 0.0, None)
    assert "nothing was answered" in failed.doubts


def test_samples_may_come_in_any_order() -> None:
    shuffled = samples(1000, latency=np.arange(1, 1001) * 1000)
    np.random.default_rng(0).shuffle(shuffled)
    assert summary(shuffled).total == summary(np.sort(shuffled, order="due")).total


def test_a_server_that_falls_behind_answers_no_more_than_it_does() -> None:
    """In an open loop of 1000/s, 500/s come: what is answered after the end because somebody waits for it is no throughput."""
    told = summary(samples(1000, latency=np.arange(1000) * MILLISECOND))
    assert told.offered == pytest.approx(1000.0)
    assert told.total.answered == 1000
    assert told.total.rate == pytest.approx(500.0)


def test_clients_that_all_wait_leave_the_time_as_it_was() -> None:
    """Sixteen clients ask at once and wait for three seconds: five answers a second, not sixteen in no time."""
    made = samples(16, latency=3 * SECOND)
    made["due"] = 5 * SECOND
    made["done"] = 8 * SECOND
    told = summary(made, window=Window(5 * SECOND, 8 * SECOND + 1), is_open=False)
    assert told.total.rate == pytest.approx(16 / 3)


def test_what_the_warm_up_left_is_told() -> None:
    made = samples(1000)
    made["code"][:30] = 4
    told = summary(made, window=Window(5 * SECOND + 100 * MILLISECOND, 6 * SECOND))
    assert told.total.errors == {}
    assert "of the requests of the warm-up, 30 were not answered well: DEADLINE_EXCEEDED 30" in told.doubts


class TestSteady:
    """`is_steady`: the last window is like the one before."""

    def look(self, latency: Any, count: int = 1000) -> bool:
        made = samples(count, latency=latency)
        return is_steady(made, int(made["due"][-1]), SECOND // 2)

    def test_when_nothing_changes(self) -> None:
        assert self.look(MILLISECOND)

    def test_not_while_it_falls(self) -> None:
        assert not self.look(np.linspace(5, 1, 1000) * MILLISECOND)

    def test_an_old_start_is_forgotten(self) -> None:
        latency = np.where(np.arange(2000) < 1000, 50, 1) * MILLISECOND
        assert self.look(latency, count=2000)

    def test_not_on_a_few(self) -> None:
        assert not self.look(MILLISECOND, count=10)

    def test_not_when_a_stall_has_just_begun(self) -> None:
        made = samples(1000)
        assert not is_steady(made[:-350], int(made["due"][-1]), SECOND // 2)

    def test_errors_are_no_latencies(self) -> None:
        made = samples(1000, code=14)
        assert not is_steady(made, int(made["due"][-1]), SECOND // 2)
