"""Numbers out of samples: which of them count, what the rate and the latencies were, and whether to believe them.

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
_PER_BATCH = 5
_FEWEST_BATCHES = 20
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
        seconds: how long the part lasted that counts.
        warm_up: how much was left out before it, in seconds.
        offered: requests due a second.
        total: all shares.
        shares: each, where there are several.
        lag: how long after it was due a request was sent: median and 99th percentile, in ns.
        cpu: cores that the sending thread kept busy.
        doubts: why not to believe it, in words.
    """

    seconds: float
    warm_up: float
    offered: float
    total: Counted
    shares: Sequence[Counted]
    lag: tuple[float, float]
    cpu: float
    doubts: Sequence[str]


def summarise(
    samples: Samples,
    owners: Sequence[int],
    names: Sequence[str],
    warm_up: float,
    objective: int | None,
    cpu: float,
    *,
    is_open: bool,
) -> tuple[Summary, Samples]:
    """The summary of a load, and the samples that count for it.

    Args:
        samples: of the whole load, array of `SAMPLE`.
        owners: by message, its share.
        names: of the shares.
        warm_up: seconds to leave out in any case; what is not yet steady after them is left out, too.
        objective: a good answer comes within so many ns; None without one.
        cpu: cores that the sending thread kept busy.
        is_open: the load did not wait for answers.
    """
    samples = samples[np.argsort(samples["due"], kind="stable")]
    if not len(samples):
        nothing = _counted("all", samples, 1.0, objective)
        return Summary(0.0, 0.0, 0.0, nothing, (), (0.0, 0.0), cpu, ("nothing was sent",)), samples
    start = int(samples["due"][0])
    rest = samples[samples["due"] >= start + int(warm_up * SECOND)]
    if len(rest):
        rest = rest[steady_from((rest["done"] - rest["due"]).astype(np.float64)) :]
    counted = rest if len(rest) else samples
    # Up to the last that was due: what is answered after that was waited for, and no further load came.
    begin, end = int(counted["due"][0]), int(counted["due"][-1])
    seconds = max((end - begin) / SECOND, 1e-9) * len(counted) / max(1, len(counted) - 1)
    total = _counted("all", counted, seconds, objective)
    shares = np.asarray(owners)[counted["message"]]
    each = [_counted(name, counted[shares == n], seconds, objective) for n, name in enumerate(names)] if len(names) > 1 else []
    sent = counted[counted["code"] != NOT_SENT]
    lags = (sent["sent"] - sent["due"]) if is_open and len(sent) else np.zeros(1)
    lag = (float(np.quantile(lags, 0.5)), float(np.quantile(lags, 0.99)))
    doubts = [*_unsteady(counted), *_slow_generator(total, lag, cpu), *_unsent(total)]
    return Summary(seconds, (begin - start) / SECOND, len(counted) / seconds, total, each, lag, cpu, doubts), counted


def steady_from(latencies: NDArray[np.float64]) -> int:
    """From which request on a load is steady: at most the middle.

    MSER-5 (K. P. White, "An effective truncation heuristic for bias reduction in simulation output", 1997): over means of
    five, the cut that makes the standard error of what is left smallest.
    """
    batches = len(latencies) // _PER_BATCH
    if batches < _FEWEST_BATCHES:
        return 0
    means = latencies[: batches * _PER_BATCH].reshape(batches, _PER_BATCH).mean(axis=1)
    left = np.arange(batches, 0, -1)
    # Sums from each place to the end, about the overall mean, for the sake of the digits.
    about = means - means.mean()
    sums, squares = np.cumsum(about[::-1])[::-1], np.cumsum((about**2)[::-1])[::-1]
    errors = (squares - sums**2 / left) / left.astype(np.float64) ** 2
    return int(np.argmin(errors[: batches // 2 + 1])) * _PER_BATCH


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
    if len(answered) < 2 * _PER_BATCH * _FEWEST_BATCHES:
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
