"""Which traces are worth keeping. Pure: records in, reasons out.

The decision falls after the fact, on what became of a request, and for a batch as a whole: whoever was in it is part of the
explanation. What is dull is kept at random, at a rate that its trace says (OpenTelemetry's probability sampling, OTEP 235), so
that counts can be extrapolated: `ot=th:…;rv:…` in the tracestate of what stands for others, `ot=th:0` of what stands for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.clock import MILLISECOND, SECOND
from headrace.ledger.records import Outcome, Records
from headrace.protocol.origin import GIVEN

_RANDOM_BITS = 56
SAMPLED = 1
"""The flag of a `traceparent` whose trace is recorded."""


class Why(IntFlag):
    """Why a trace is kept."""

    LATE = 1
    """It was answered after its deadline, or never, because that was over."""
    ERROR = 2
    """It was not answered: failed, refused, invalid. Whoever cancelled did not want an answer."""
    MISPREDICTED = 4
    """Its batch took much longer than the plan had reckoned with."""
    UPSTREAM = 8
    """Who called has its trace recorded, and said so."""
    ASKED = 16
    """A client asked for it, by Triton's trace settings."""
    BASELINE = 32
    """By lot."""
    FAMILY = 64
    """It is part of a request that is kept, or has a part that is."""

    @property
    def words(self) -> tuple[str, ...]:
        """The reasons by name."""
        return _words_of(self)


@lru_cache(256)
def _words_of(why: Why) -> tuple[str, ...]:
    return tuple(str(each.name).lower() for each in Why if each in why)


@dataclass(frozen=True, slots=True)
class Policy:
    """What to keep.

    `baseline` is the share of dull batches, 0 to 1. A batch is mispredicted if it took more than `ratio` times as long as
    predicted, and more than `least_ns` longer. What is predicted is an upper quartile: that one is shorter is no surprise.
    """

    baseline: float = 0.001
    ratio: float = 2.0
    least_ns: int = 5 * MILLISECOND

    @property
    def threshold(self) -> int:
        """Of 2**56 random numbers, those from here on are sampled."""
        return round((1 - self.baseline) * (1 << _RANDOM_BITS))


def whys_of(requests: Records) -> NDArray[np.uint8]:
    """What each of these requests has in itself, as bits of `Why`."""
    outcome = requests["outcome"]
    late = (outcome == Outcome.EXPIRED) | ((requests["deadline"] != 0) & (requests["sent"] > requests["deadline"]))
    error = np.isin(outcome, (Outcome.FAILED, Outcome.REFUSED, Outcome.INVALID))
    upstream = (requests["context"] == GIVEN) & (requests["trace_flags"] & SAMPLED != 0)
    return _bits((late, Why.LATE), (error, Why.ERROR), (upstream, Why.UPSTREAM))


def whys_of_batches(batches: Records, policy: Policy) -> NDArray[np.uint8]:
    """What each of these batches has in itself, as bits of `Why`."""
    actual, predicted = batches["executed"] - batches["gathered"], batches["predicted"]
    known = (predicted > 0) & (batches["gathered"] > 0) & (batches["executed"] > 0)
    is_far = (actual > policy.ratio * predicted) & (actual - predicted > policy.least_ns)
    return _bits((known & is_far, Why.MISPREDICTED))


def randomness(seed: int, models: NDArray[Any], numbers: NDArray[Any]) -> NDArray[np.uint64]:
    """56 random bits for each (model, number), always the same ones: one lot for all that is kept or dropped together."""
    return hashed(seed, models, numbers) & np.uint64((1 << _RANDOM_BITS) - 1)


def hashed(seed: int, models: NDArray[Any], numbers: NDArray[Any]) -> NDArray[np.uint64]:
    """64 bits for each (model, number)."""
    return _mix(_mix(np.uint64(seed) ^ _mix(models.astype(np.uint64))) ^ numbers.astype(np.uint64))


def tracestate_of(why: Why, threshold: int, random: int) -> str:
    """What a trace says of how likely it was to be kept: the value of `ot` in its tracestate.

    Args:
        why: it was kept.
        threshold: of the policy.
        random: its random number.
    """
    if why != Why.BASELINE or threshold == 0:
        return "th:0"
    return f"th:{threshold:014x}".rstrip("0") + f";rv:{random:014x}"


class Cap:
    """How many spans a second, over a second.

    Attributes:
        dropped: how many were not allowed.

    Args:
        per_second: of them.
    """

    def __init__(self, per_second: int) -> None:
        self.dropped = 0
        self._per_second = per_second
        self._left, self._at = float(per_second), 0

    def allows(self, spans: int, now: int) -> bool:
        """Whether so many more may be sent; `now` in ns. What is kept together may overdraw it, and others wait for that."""
        if self._at:
            self._left = min(self._per_second, self._left + (now - self._at) * self._per_second / SECOND)
        self._at = now
        if self._left <= 0:
            self.dropped += spans
            return False
        self._left -= spans
        return True


def _bits(*given: tuple[NDArray[np.bool_], Why]) -> NDArray[np.uint8]:
    found = np.zeros(len(given[0][0]), np.uint8)
    for where, why in given:
        found[where] |= int(why)
    return found


def _mix(numbers: Any) -> Any:
    """A step of splitmix64, of many at once; see `ledger.identity`."""
    with np.errstate(over="ignore"):
        numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
        numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return numbers ^ numbers >> np.uint64(31)
