"""Who spent the budget: each bad request counts one, and that one is divided over the stages. Pure, many records at a time.

What a stage took above its own budget is its excess, and a request is charged to its stages in proportion to that. The time in
the queue is looked at more closely: where a batch ahead was in a stage for longer than is usual meanwhile, that stage is
charged, not the queue, so that a model that runs too long is charged for those who waited for it, too.

A request that was refused for what the queue was like is charged as if it had waited there as long as the objective allows, up
to the instant at which it was refused; what no stage of the batches was to blame for is charged to `refused`. One that failed
is charged to `failed`. So the charges of a request add up to one. Beside them stands how much of it others are the reason for:

    ahead     the request waited for the batches ahead
    window    it was held for company, while an instance was idle
    padding   its batch ran longer because another member was longer (`straggling`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.budgets.slo import Objective
from headrace.clock import MICROSECOND
from headrace.ledger.records import STAGES, Outcome, Records, Refusal, at
from headrace.scheduling.plan import Reason

REFUSED, FAILED = "refused", "failed"
CHARGES = (*STAGES, REFUSED, FAILED)
"""What a bad request is charged to."""
EXTERNALITIES = ("ahead", "window", "padding")
CAUSES = (*CHARGES, *EXTERNALITIES)

_STAMPS = ("received", *(end for _, end in STAGES.values()))
_QUEUE, _EXECUTE = list(STAGES).index("queue"), list(STAGES).index("execute")
_OF_BATCHES = [
    (place, *span) for place, span in enumerate(STAGES.values()) if set(span) <= {"taken", "gathered", "executed", "scattered"}
]
_HELD = np.array([Reason.DELAY, Reason.FULL, Reason.PREFERRED])
"""Reasons of batches that may have waited for company. One that took what there was has not."""
_STATE_OF_QUEUE = np.array([Refusal.QUEUE_FULL, Refusal.CANNOT_MEET_DEADLINE])

_EDGES = MICROSECOND * np.geomspace(1, 1e8, 194)
"""ns, a tenth apart, from 1 µs to 100 s."""
ENOUGH_TO_LEARN = 1000
_ENOUGH, _MOST = 100, 10_000


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an objective allows, in ns: all in all, and in each of `STAGES`; and what those usually take (the median)."""

    threshold: int
    stages: NDArray[np.float64]
    usual: NDArray[np.float64]


class StageBudgets:
    """What each stage may take of an objective: what was declared, and for the others their share of the rest.

    A stage's share is its 95th percentile among good requests, over the sum of those. Until 100 are known, all share alike.
    Together they are the objective's threshold, so that a late request has been too long in at least one of them.

    Args:
        objective: whose.
    """

    def __init__(self, objective: Objective) -> None:
        self._threshold = objective.threshold_ns
        self._declared = np.array([objective.stages.get(stage, 0) for stage in STAGES], np.float64)
        self._counts = np.zeros((len(STAGES), len(_EDGES) + 1))

    def learn(self, good: Records) -> None:
        """Look at good requests; `ENOUGH_TO_LEARN` at a time are enough."""
        spans = durations(good)
        for counts, column in zip(self._counts, np.searchsorted(_EDGES, spans.T), strict=True):
            counts += np.bincount(column, minlength=len(counts))
        if self._counts[0].sum() > _MOST:
            self._counts /= 2

    def dump(self) -> list[list[float]]:
        """What is known, as JSON can say it."""
        return self._counts.tolist()

    def include(self, kept: Sequence[Sequence[float]]) -> None:
        """Add what was known before.

        Raises:
            TypeError, ValueError: this is nothing that `dump` has made.
        """
        counts = np.array(kept, np.float64)
        if counts.shape != self._counts.shape or not (np.isfinite(counts) & (counts >= 0)).all():
            raise ValueError("these are no counts of stages")
        self._counts += counts

    @property
    def allowance(self) -> Allowance:
        """What each stage may take, as of now."""
        usual, long = self._quantile(0.5), self._quantile(0.95)
        weights = np.where(self._declared > 0, 0.0, long)
        rest = self._threshold - self._declared.sum()
        stages = self._declared + rest * weights / max(weights.sum(), 1.0)
        return Allowance(self._threshold, stages, usual if self.is_known else stages)

    @property
    def is_known(self) -> bool:
        """Whether enough good requests were looked at to say what is usual."""
        return self._counts[0].sum() >= _ENOUGH

    def _quantile(self, share: float) -> NDArray[np.float64]:
        """Of each stage among good requests, in ns; alike while too few are known."""
        if not self.is_known:
            return np.ones(len(STAGES))
        upto = np.cumsum(self._counts, axis=1)
        places = (upto < share * upto[:, -1:]).sum(axis=1)
        return _EDGES[np.minimum(places, len(_EDGES) - 1)]


def durations(requests: Records) -> NDArray[np.float64]:
    """How long each request was in each stage, in ns: a row a request, as wide as `STAGES`. The last ends with it."""
    stamps = np.stack([requests[name] for name in _STAMPS], axis=1)
    ended = stamps[:, -1:]
    stamps = np.where(stamps == 0, ended, np.minimum(stamps, ended))
    return np.maximum(np.diff(stamps, axis=1), 0).astype(np.float64)


def charges(bad: Records, batches: Records, allowed: Allowance, padded: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each bad request is charged to.

    Args:
        bad: records of bad requests of one version.
        batches: records of batches of that version, those before these requests as far as they are known.
        allowed: what the objective allows.
        padded: of each request, the share of its batch's time that went into padding for another member.

    Returns:
        A row a request, a column for each of `CAUSES`. Those of `CHARGES` add up to 1 in each row.
    """
    ahead = Ahead(batches, allowed.usual)
    found = _by_excess(bad, batches, ahead, allowed, padded)
    refused, failed = bad["outcome"] == Outcome.REFUSED, bad["outcome"] == Outcome.FAILED
    found[refused] = _as_if_waited(bad[refused], ahead, allowed.threshold)
    found[failed] = np.eye(1, len(CAUSES), CHARGES.index(FAILED))
    return found


def _by_excess(
    bad: Records, batches: Records, ahead: Ahead, allowed: Allowance, padded: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of requests that took too long."""
    spans = durations(bad)
    weights = np.maximum(spans - allowed.stages, 0)
    # Whom no stage was too long for, and who ended all the same, is charged for where the time went.
    weights = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, spans)
    weights[weights.sum(axis=1) == 0, 0] = 1
    shares = weights / weights.sum(axis=1, keepdims=True)
    outside = np.zeros((len(bad), len(EXTERNALITIES)))
    outside[:, 2] = shares[:, _EXECUTE] * padded

    waited, ended = spans[:, _QUEUE], np.where(bad["taken"] > 0, bad["taken"], bad["sent"])
    per_ns = np.divide(shares[:, _QUEUE], waited, out=np.zeros(len(bad)), where=waited > 0)
    busy, slow = ahead.between(bad["queued"], ended)
    slow *= per_ns[:, None]
    shares[:, _QUEUE] -= slow.sum(axis=1)
    outside[:, 0] = busy * per_ns
    outside[:, 1] = np.where(_was_held(bad, batches), (waited - busy) * per_ns, 0)
    return np.concatenate([shares + slow, np.zeros((len(bad), len(CHARGES) - len(STAGES))), outside], axis=1)


def _as_if_waited(refused: Records, ahead: Ahead, threshold: int) -> NDArray[np.float64]:
    """Of requests that were refused: what made the queue what it was, as far as that was the reason."""
    _, slow = ahead.between(refused["sent"] - threshold, refused["sent"])
    slow = np.where(np.isin(refused["refusal"], _STATE_OF_QUEUE)[:, None], slow / threshold, 0)
    found = np.zeros((len(refused), len(CAUSES)))
    found[:, : len(STAGES)] = slow
    found[:, CAUSES.index("ahead")] = slow.sum(axis=1)
    found[:, CHARGES.index(REFUSED)] = 1 - slow.sum(axis=1)
    return found


def lengths(requests: Records) -> NDArray[np.float64]:
    """How long each request is, as far as the ledger tells: its bytes a row."""
    return requests["bytes_in"] / np.maximum(requests["rows"], 1)


def straggling(requests: Records, batches: Records) -> NDArray[np.float64]:
    """The share of its batch's time that went into padding for another, longer member: of each request.

    The ledger has how much a batch was padded in all, not how long each member was; that is told by their bytes a row.

    Args:
        requests: records of one version, whole batches as far as possible.
        batches: records of its batches.
    """
    found = np.zeros(len(requests))
    of = np.flatnonzero(np.isin(requests["batch"], batches["number"][batches["padding"] > 0]) & (requests["batch"] > 0))
    if not len(of):
        return found
    rows, length = np.maximum(requests["rows"][of], 1).astype(np.float64), lengths(at(requests, of))
    numbers, group = np.unique(requests["batch"][of], return_inverse=True)
    longest = np.zeros(len(numbers))
    np.maximum.at(longest, group, length)
    used, room = np.bincount(group, rows * length), np.bincount(group, rows) * longest
    share = 1 - np.divide(used, room, out=np.ones(len(room)), where=room > 0)
    found[of] = np.where(length < longest[group], share[group], 0)
    return found


class Ahead:
    """When the instances of a version were busy, and when they were at a stage for longer than is usual.

    Args:
        batches: records of its batches.
        usual: what each of `STAGES` usually takes, ns.
    """

    def __init__(self, batches: Records, usual: NDArray[np.float64]) -> None:
        batches = at(batches, batches["number"] > 0)
        batches = at(batches, np.lexsort((batches["taken"], batches["instance"])))
        self._instances = max(1, len(np.unique(batches["instance"])))
        # Answers may leave when the instance has taken its next batch already: with that it is busy then.
        until = np.full(len(batches), np.iinfo(np.int64).max)
        is_same = batches["instance"][1:] == batches["instance"][:-1]
        until[:-1][is_same] = batches["taken"][1:][is_same]
        self._busy = _Covered(batches["taken"], np.minimum(batches["scattered"], until))
        self._slow: list[tuple[int, _Covered]] = []
        for stage, begin, end in _OF_BATCHES:
            begins, ends = batches[begin] + int(usual[stage]), np.minimum(batches[end], until)
            too_long = ends > begins
            self._slow.append((stage, _Covered(begins[too_long], ends[too_long])))

    def between(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each of these intervals, how many ns an instance was busy, and was too long at each of `STAGES`.

        Of several instances, it is the mean: whoever waits, waits for all of them.
        """
        length = np.maximum(ends - begins, 0)
        busy = np.minimum(self._busy.between(begins, ends) / self._instances, length)
        slow = np.zeros((len(begins), len(STAGES)))
        for stage, covered in self._slow:
            slow[:, stage] = covered.between(begins, ends) / self._instances
        # A batch is in one stage at a time, so this is no more than `busy`, but for rounding.
        over = slow.sum(axis=1)
        return busy, slow * np.divide(busy, over, out=np.ones(len(over)), where=over > busy)[:, None]


class _Covered:
    """How much of the time before an instant some intervals cover, each for itself."""

    def __init__(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        ends = np.maximum(begins, ends)
        self._zero = int(begins.min()) if len(begins) else 0
        self._begins, self._ends = (np.sort(edges - self._zero) for edges in (begins, ends))
        self._sums = [np.concatenate([[0], np.cumsum(edges)]) for edges in (self._begins, self._ends)]

    def between(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.maximum(self._before(ends) - self._before(begins), 0)

    def _before(self, instants: NDArray[np.int64]) -> NDArray[np.int64]:
        at = np.maximum(instants - self._zero, 0)
        begun, over = (np.searchsorted(edges, at) for edges in (self._begins, self._ends))
        return (begun - over) * at - self._sums[0][begun] + self._sums[1][over]


def _was_held(requests: Records, batches: Records) -> NDArray[Any]:
    return np.isin(requests["batch"], batches["number"][np.isin(batches["reason"], _HELD)]) & (requests["batch"] > 0)
