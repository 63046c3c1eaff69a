"""How fast an error budget is spent. Pure: of what was counted, and of the instant.

The burn rate is the share of bad requests over the share that may be bad: at 1 the budget lasts exactly as long as its window.
Alerts look at pairs of windows, as in chapter 5 of Google's SRE workbook (https://sre.google/workbook/alerting-on-slos/): the
long one says that it matters, the short one that it still goes on. Theirs are for 30 days; those of another window are as long
in proportion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.budgets.history import BAD, HOUR, MINUTE, TOTAL, History
from headrace.clock import MILLISECOND, SECOND

FAST, SLOW = 5 * SECOND, 30 * SECOND
"""The windows that steer."""
DAY = 24 * HOUR
_WORKBOOKS_WINDOW = 30 * DAY
_UNITS = [(unit, ns // MILLISECOND) for unit, ns in (("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", MILLISECOND))]


@dataclass(frozen=True, slots=True)
class Pair:
    """An alert: the burn rate over both windows (ns) is above `factor`.

    At that rate so much of the budget, `spent`, is gone within the long one.
    """

    severity: str
    spent: float
    long_ns: int
    short_ns: int
    factor: float


WORKBOOK = (
    Pair("page", 0.02, HOUR, 5 * MINUTE, 14.4),
    Pair("page", 0.05, 6 * HOUR, 30 * MINUTE, 6),
    Pair("ticket", 0.1, DAY, 2 * HOUR, 3),
    Pair("ticket", 0.1, 3 * DAY, 6 * HOUR, 1),
)


def pairs_of(window_ns: int) -> tuple[Pair, ...]:
    """The pairs for an objective with this window, to the millisecond."""

    def scaled(ns: int) -> int:
        return round(ns * window_ns / _WORKBOOKS_WINDOW / MILLISECOND) * MILLISECOND

    return tuple(Pair(p.severity, p.spent, scaled(p.long_ns), scaled(p.short_ns), p.factor) for p in WORKBOOK)


def duration_text(ns: int) -> str:
    """A duration as Prometheus writes it, as in `30d` or `1h30m`; to the millisecond."""
    rest, text = ns // MILLISECOND, ""
    for unit, milliseconds in _UNITS:
        count, rest = divmod(rest, milliseconds)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


@dataclass(frozen=True, slots=True)
class Burn:
    """How the budget of one objective is spent.

    `fast` and `slow` are burn rates over the windows that steer, and stand on so many requests: `fast_requests`,
    `slow_requests`. `left` is the share of the budget that is left of the objective's window, below 0 when more than that is
    spent. `exhausted_in_ns` is how long the rest lasts at the rate of the latest hour (in proportion, where the window is not
    30 days): None if nothing is spent, 0 if nothing is left. `windows` has the rates over all windows of the pairs, by their
    length in ns, and `firing` the pairs that are above theirs.
    """

    fast: float
    slow: float
    fast_requests: float
    slow_requests: float
    left: float
    exhausted_in_ns: int | None
    windows: Mapping[int, float]
    firing: tuple[Pair, ...]


def rates(history: History, now: int) -> Burn:
    """The burn of a history at an instant (ns of CLOCK_MONOTONIC)."""
    objective = history.objective
    (fast, fast_requests), (slow, slow_requests) = _rate(history, now, FAST), _rate(history, now, SLOW)
    pairs = pairs_of(objective.window_ns)
    lengths = sorted({ns for pair in pairs for ns in (pair.short_ns, pair.long_ns)})
    windows = {window: _rate(history, now, window)[0] for window in lengths}
    left = 1 - _rate(history, now, objective.window_ns)[0]
    current = windows[pairs[0].long_ns]
    lasts = max(0, round(left * objective.window_ns / current)) if current > 0 else 0 if left <= 0 else None
    firing = tuple(pair for pair in pairs if min(windows[pair.short_ns], windows[pair.long_ns]) > pair.factor)
    return Burn(fast, slow, fast_requests, slow_requests, left, lasts, windows, firing)


def burning(history: History, now: int) -> float:
    """The burn rate over the last second, or over `FAST` if that is lower: above 1 the budget burns now, and not by chance."""
    return min(_rate(history, now, window)[0] for window in (SECOND, FAST))


def _rate(history: History, now: int, window: int) -> tuple[float, float]:
    """The burn rate over a window, and on how many requests it stands."""
    counts = history.counts(now, window)
    requests = float(counts[TOTAL])
    return (float(counts[BAD]) / requests / history.objective.budget if requests > 0 else 0.0), requests
