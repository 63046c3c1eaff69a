"""Numbers out of samples: whether a load is warm, what the rate and the latencies were, and whether to believe them.

Latencies are counted from the instant a request was due, and only of those that were answered well; everything else is
counted by its code. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.clock import SECOND
from headrace.errors import Code

SAMPLE = np.dtype([("due", "<i8"), ("sent", "<i8"), ("done", "<i8"), ("message", "<u4"), ("code", "u1"), ("unused", "u1", 3)])
"""One request: instants in ns of CLOCK_MONOTONIC, its place among the messages, its gRPC code or `NOT_SENT`."""
NOT_SENT = 255
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
_FEWEST = 20
_FEW = 200
_MOST_DRIFT = 0.1
_MOST_LAG = 0.1
_BUSY = 0.9

Samples = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the answered ones, from due to done, in ns. `quantiles` are those of `QUANTILES`; all 0 when there are none."""

    mean: float
    quantiles: tuple[float, ...]
    most: float

    @classmethod
    def of(cls, latencies: NDArray[np.int64]) -> Latency:
        """Of so many."""
        if not len(latencies):
            return cls(0.0, (0.0,) * len(QUANTILES), 0.0)
        quantiles = np.quantile(latencies, QUANTILES)
        return cls(float(latencies.mean()), tuple(float(q) for q in quantiles), float(latencies.max()))


@dataclass(frozen=True, slots=True)
class Counted:
    """One share of the load, or all of it."""

    name: str
    due: int
    answered: int
    errors: dict[str, int]
    rate: float
    """Answered a second."""
    latency: Latency
    goodput: float | None
    """Answered within the objective a second; None without one."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a load was like.

    Attributes:
        seconds: how long it lasted, without what it took to warm up.
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


def summarise(
    samples: Samples, owners: Sequence[int], names: Sequence[str], objective: int | None, cpu: float, *, is_open: bool
) -> Summary:
    """The summary of a load.

    Args:
        samples: those that count, array of `SAMPLE`, in any order.
        owners: by message, its share.
        names: of the shares.
        objective: a good answer comes within so many ns; None without one.
        cpu: cores that the sending thread kept busy.
        is_open: the load did not wait for answers.
    """
    if not len(samples):
        return Summary(0.0, 0.0, _counted("all", samples, 1.0, objective), (), (0.0, 0.0), cpu, ("no request was due",))
    samples = samples[np.argsort(samples["due"], kind="stable")]
    begin, end = int(samples["due"][0]), int(samples["due"][-1])
    # Up to the last that was due, and a gap: what is answered after that was waited for, and no further load came.
    seconds = max((end - begin) / SECOND, 1e-9) * len(samples) / max(1, len(samples) - 1)
    total = _counted("all", samples, seconds, objective)
    shares = np.asarray(owners)[samples["message"]]
    each = [_counted(name, samples[shares == n], seconds, objective) for n, name in enumerate(names)] if len(names) > 1 else []
    sent = samples[samples["code"] != NOT_SENT]
    lags = (sent["sent"] - sent["due"]) if is_open and len(sent) else np.zeros(1)
    lag = (float(np.quantile(lags, 0.5)), float(np.quantile(lags, 0.99)))
    doubts = [*_unsteady(samples), *_slow_generator(total, lag, cpu), *_unsent(total)]
    return Summary(seconds, len(samples) / seconds, total, each, lag, cpu, doubts)


def is_steady(samples: Samples, now: int, window: int) -> bool:
    """Whether a load has warmed up: the median latency of the last `window` ns is about that of the window before.

    Args:
        samples: array of `SAMPLE`, in any order.
        now: the instant, in ns.
        window: in ns; what was due in the last of them may not be answered yet, and is left to the next look.
    """
    answered = samples[samples["code"] == Code.OK.value]
    ages = now - answered["due"]
    latencies = answered["done"] - answered["due"]
    late, early = (latencies[(ages > n * window) & (ages <= (n + 1) * window)] for n in (0, 1))
    if min(len(late), len(early)) < _FEWEST:
        return False
    return abs(float(np.median(late)) / float(np.median(early)) - 1) <= _MOST_DRIFT


def _counted(name: str, samples: Samples, seconds: float, objective: int | None) -> Counted:
    answered = samples[samples["code"] == Code.OK.value]
    latencies = answered["done"] - answered["due"]
    codes, counts = np.unique(samples["code"], return_counts=True)
    errors = {name_of(int(code)): int(count) for code, count in zip(codes, counts, strict=True) if code != Code.OK.value}
    goodput = None if objective is None else float((latencies <= objective).sum()) / seconds
    return Counted(name, len(samples), len(answered), errors, len(answered) / seconds, Latency.of(latencies), goodput)


def name_of(code: int) -> str:
    """A gRPC code by its name; NOT_SENT for what the generator could not send."""
    if code == NOT_SENT:
        return "NOT_SENT"
    try:
        return Code(code).name
    except ValueError:
        return f"CODE_{code}"


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
    if total.answered and lag[1] > max(1_000_000, _MOST_LAG * total.latency.quantiles[3]):
        doubts.append(f"the load generator fell behind: 1 in 100 requests was sent more than {lag[1] / 1e6:.1f} ms late")
    return doubts


def _unsent(total: Counted) -> list[str]:
    count = total.errors.get("NOT_SENT", 0)
    return [f"{count} requests were due and not sent: too many were on their way"] if count else []
