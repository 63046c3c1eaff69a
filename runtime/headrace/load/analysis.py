"""Numbers out of samples: whether a load is warm, what the rate and the latencies were, and whether to believe them.

Latencies are counted from the instant a request was due, and only of those that were answered well; everything else is
counted by its code. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.clock import SECOND
from headrace.errors import Code

SAMPLE = np.dtype([("due", "<i8"), ("sent", "<i8"), ("done", "<i8"), ("message", "<u4"), ("code", "u1"), ("unused", "u1", 3)])
"""One request: instants in ns of CLOCK_MONOTONIC, its place among the messages, its gRPC code or one of the two below."""
NOT_SENT = 255
"""It was due, and as many as may be were on their way."""
NOT_ANSWERED = 254
"""It was sent, and the load ended before it was answered."""
_OURS = {NOT_SENT: "NOT_SENT", NOT_ANSWERED: "NOT_ANSWERED"}
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
_FEWEST = 20
_FEW = 200
_MOST_DRIFT = 0.1
_MOST_LAG = 0.1
_BUSY = 0.9

Samples = NDArray[np.void]


class Shares(NamedTuple):
    """By message, the number of its share; and the names of the shares."""

    owners: Sequence[int] = (0,)
    names: Sequence[str] = ("all",)


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the answered ones, from due to done, in ns. `quantiles` are those of `QUANTILES`."""

    mean: float
    quantiles: tuple[float, ...]
    most: float

    @classmethod
    def of(cls, latencies: NDArray[np.int64]) -> Latency | None:
        """Of so many; None of none."""
        if not len(latencies):
            return None
        return cls(float(latencies.mean()), tuple(np.quantile(latencies, QUANTILES).tolist()), float(latencies.max()))

    @property
    def shown(self) -> tuple[float, ...]:
        """What a table has room for: p50, p90, p99, p99.9 and the most."""
        p50, p90, _, p99, p999 = self.quantiles
        return p50, p90, p99, p999, self.most


@dataclass(frozen=True, slots=True)
class Counted:
    """One share of the load, or all of it.

    Attributes:
        name: of the share.
        due: requests that were due in the time that counts.
        answered: of those, how many were answered well, whenever.
        errors: of those, how many were not, by code.
        rate: answers a second, of whatever came in the time that counts.
        latency: of those that were due in it and answered.
        goodput: answers a second that came within the objective; None without one.
    """

    name: str
    due: int
    answered: int
    errors: dict[str, int]
    rate: float
    latency: Latency | None
    goodput: float | None

    @property
    def told_errors(self) -> str:
        """The errors in words."""
        return ", ".join(f"{code} {count}" for code, count in self.errors.items()) or "none"


@dataclass(frozen=True, slots=True)
class Window:
    """The time of a load that counts, from `begin` to before `end`, in ns."""

    begin: int
    end: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return max(1, self.end - self.begin) / SECOND

    def holds(self, instants: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these are in it."""
        return (instants >= self.begin) & (instants < self.end)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a load was like.

    Attributes:
        seconds: how long the time was that counts.
        offered: requests due a second.
        total: all shares.
        shares: each, where there are several.
        lag: how long after it was due a request was sent: median and 99th percentile, in ns.
        cpu: cores that the sending thread kept busy.
        doubts: why not to believe it, in words.
    """

    seconds: float
    offered: float
    total: Counted
    shares: Sequence[Counted]
    lag: tuple[float, float]
    cpu: float
    doubts: Sequence[str]


def summarise(samples: Samples, window: Window, shares: Shares, objective: int | None, cpu: float, *, is_open: bool) -> Summary:
    """The summary of a load.

    Args:
        samples: all of them, array of `SAMPLE`, in any order.
        window: the time that counts.
        shares: which message is of which share, and their names.
        objective: a good answer comes within so many ns; None without one.
        cpu: cores that the sending thread kept busy.
        is_open: the load did not wait for answers.
    """
    samples = samples[np.argsort(samples["due"], kind="stable")]
    total = _counted("all", samples, window, objective)
    owners = np.asarray(shares.owners)[samples["message"]]
    several = enumerate(shares.names) if len(shares.names) > 1 else ()
    each = [_counted(name, samples[owners == number], window, objective) for number, name in several]
    due = samples[window.holds(samples["due"])]
    sent = due[due["code"] != NOT_SENT]
    lags = (sent["sent"] - sent["due"]) if is_open and len(sent) else np.zeros(1)
    lag = (float(np.quantile(lags, 0.5)), float(np.quantile(lags, 0.99)))
    doubts = [*_left_over(samples, window), *_unsteady(due), *_slow_generator(total, lag, cpu), *_unsent(total)]
    return Summary(window.seconds, len(due) / window.seconds, total, each, lag, cpu, doubts)


def is_steady(samples: Samples, now: int, window: int) -> bool:
    """Whether a load has warmed up: the median latency of the last `window` ns is about that of the window before.

    Args:
        samples: array of `SAMPLE`, in any order.
        now: the instant, in ns. What was due shortly before may not be answered yet; a stall that has just begun shows by how
            few were.
        window: in ns.
    """
    answered = samples[samples["code"] == Code.OK.value]
    ages = now - answered["due"]
    latencies = answered["done"] - answered["due"]
    late, early = (latencies[(ages > n * window) & (ages <= (n + 1) * window)] for n in (0, 1))
    if min(len(late), len(early)) < _FEWEST or len(late) < len(early) / 2:
        return False
    return abs(float(np.median(late)) / float(np.median(early)) - 1) <= _MOST_DRIFT


def _counted(name: str, samples: Samples, window: Window, objective: int | None) -> Counted:
    due = samples[window.holds(samples["due"])]
    answered = due[due["code"] == Code.OK.value]
    codes, counts = np.unique(due["code"], return_counts=True)
    errors = {name_of(int(code)): int(count) for code, count in zip(codes, counts, strict=True) if code != Code.OK.value}
    # What came in the time, whenever it was due: a server that falls behind answers no more because somebody waits for it.
    came = samples[(samples["code"] == Code.OK.value) & window.holds(samples["done"])]
    goodput = None
    if objective is not None:
        goodput = float((came["done"] - came["due"] <= objective).sum()) / window.seconds
    latency = Latency.of(answered["done"] - answered["due"])
    return Counted(name, len(due), len(answered), errors, len(came) / window.seconds, latency, goodput)


def name_of(code: int) -> str:
    """A gRPC code by its name, or what the generator has instead of one."""
    if code in _OURS:
        return _OURS[code]
    try:
        return Code(code).name
    except ValueError:
        return f"CODE_{code}"


def _left_over(samples: Samples, window: Window) -> list[str]:
    """Requests of the warm-up that came to a bad end: they are not among those that count."""
    old = samples[(samples["due"] < window.begin) & (samples["code"] != Code.OK.value)]
    if not len(old):
        return []
    codes, counts = np.unique(old["code"], return_counts=True)
    words = ", ".join(f"{name_of(int(code))} {count}" for code, count in zip(codes, counts, strict=True))
    return [f"of the requests of the warm-up, {len(old)} were not answered well: {words}"]


def _unsteady(samples: Samples) -> list[str]:
    """The second half against the first: the median latency."""
    answered = samples[samples["code"] == Code.OK.value]
    if len(answered) < _FEW:
        return [f"only {len(answered)} answers count; measure for longer"] if len(answered) else ["nothing was answered"]
    latencies = answered["done"] - answered["due"]
    first, second = (float(np.median(half)) for half in np.array_split(latencies, 2))
    drift = second / first - 1
    if abs(drift) <= _MOST_DRIFT:
        return []
    grows = "grows" if drift > 0 else "falls"
    return [f"not steady: the median latency {grows} by {abs(drift):.0%} from the first half to the second"]


def _slow_generator(total: Counted, lag: tuple[float, float], cpu: float) -> list[str]:
    doubts: list[str] = []
    if cpu > _BUSY:
        doubts.append(f"the load generator is the bottleneck: it kept {cpu:.2f} cores busy, and has one")
    if total.latency is not None and lag[1] > max(1_000_000, _MOST_LAG * total.latency.quantiles[3]):
        doubts.append(f"the load generator fell behind: 1 in 100 requests was sent more than {lag[1] / 1e6:.1f} ms late")
    return doubts


def _unsent(total: Counted) -> list[str]:
    count = total.errors.get("NOT_SENT", 0)
    return [f"{count} requests were due and not sent: too many were on their way"] if count else []
