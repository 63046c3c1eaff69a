"""The slow loop in the simulator: the controller, told of what became of requests as a server's ledger would tell it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from headrace.budgets.controller import Decision, Seen, State, decide
from headrace.clock import MILLISECOND, SECOND
from headrace.ledger.records import Outcome
from headrace.model import Batching
from headrace.scheduling.forecast import Forecast
from headrace.scheduling.simulate import Arrival, Fate, Report, Service, model, simulate
from headrace.scheduling.steering import Steering

BASE_NS, ROW_NS, ROWS = 8_500_000, 1_300_000, 32
"""Ten times as slow as a real MLP on one core, so that a simulated minute is a tenth of the requests."""
THRESHOLD_NS = 200 * MILLISECOND
ALLOWED = 0.01
CAPACITY = ROWS * SECOND / (BASE_NS + ROW_NS * ROWS)
"""Rows a second of full batches."""
EACH = 4
"""Rows of a request: fewer requests to simulate."""
VARIANT = 0.25
"""What the cheaper variant costs of the model."""


def is_good(fate: Fate) -> bool:
    return fate.outcome is Outcome.ANSWERED and fate.answered - fate.arrival.at <= THRESHOLD_NS


@dataclass
class Loop:
    """Steers a simulation, or only looks on where `fixed` says how it is steered.

    `classes` is how many the model has; the objective is of the first `covered` of them, 0 is all. `predicts`: whether execution
    times are foretold. `delay_ns` is how long the configuration allows to wait for company.
    """

    has_variant: bool = True
    classes: int = 0
    covered: int = 0
    predicts: bool = True
    delay_ns: int = 0
    fixed: Steering | None = None
    made: list[Decision] = field(default_factory=list)
    _state: State = field(default_factory=State)
    _seconds: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=30))

    def __call__(self, forecast: Forecast, fates: Sequence[Fate], now: int) -> None:
        mine = [fate for fate in fates if not self.covered or fate.arrival.priority <= self.covered]
        bad = [fate for fate in mine if not is_good(fate)]
        refused = sum(fate.outcome is Outcome.REFUSED for fate in bad)
        self._seconds.append((len(mine), len(bad)))
        fast, slow = self._rate(5), self._rate(30)
        sheddable = self.classes - self.covered if self.covered else 0
        seen = Seen(
            fast, slow, 1.0, len(mine), len(bad), refused, ALLOWED, THRESHOLD_NS, self.has_variant, self.classes, sheddable
        )
        decision = decide(self._state, seen, now)
        self._state = decision.state
        self.made.append(decision)
        forecast.steer(decision.steering if self.fixed is None else self.fixed)

    def _rate(self, seconds: int) -> float:
        latest = list(self._seconds)[-seconds:]
        total = sum(count for count, _ in latest)
        return sum(bad for _, bad in latest) / total / ALLOWED if total else 0.0

    def lever(self, name: str) -> list[float]:
        """Second by second."""
        return [getattr(decision.levers, name) for decision in self.made]


def service(factor: Callable[[int], float] = lambda now: 1.0, share: float = 1.0) -> Service:
    return lambda length, rows, now: int((BASE_NS + ROW_NS * rows) * factor(now) * share)


def arrivals(seed: int, *parts: tuple[float, int], priority: int = 0, deadline_ns: int = THRESHOLD_NS) -> list[Arrival]:
    """Poisson arrivals: one part after the other, each so much of the capacity for so many seconds."""
    random, begin, found = np.random.default_rng(seed), 0, list[Arrival]()
    for load, seconds in parts:
        at = np.sort(random.uniform(begin, begin + seconds, random.poisson(load * CAPACITY * seconds / EACH)))
        found += [Arrival(int(t * SECOND), EACH, deadline_ns=deadline_ns, priority=priority) for t in at]
        begin += seconds
    return found


def run(loop: Loop, asked: list[Arrival], factor: Callable[[int], float] = lambda now: 1.0) -> Report:
    batching = Batching(
        enabled=True,
        delay_ns=loop.delay_ns,
        objective_ns=THRESHOLD_NS,
        predicts=loop.predicts,
        priority_levels=loop.classes,
        default_priority=max(1, loop.classes),
    )
    profile = [(1, rows, BASE_NS + ROW_NS * rows) for rows in (1, 2, 4, 8, 16, 32) for _ in range(3)]
    variant = service(factor, VARIANT) if loop.has_variant else None
    return simulate(asked, model(ROWS, batching), service(factor), learned=profile, variant=variant, steer=loop)


def reversals(values: Sequence[float]) -> int:
    """How often they turn round."""
    moves = [after > before for before, after in pairwise(values) if after != before]
    return sum(one != other for one, other in pairwise(moves))
