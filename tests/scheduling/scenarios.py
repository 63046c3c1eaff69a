"""Loads for the simulator, one a seed: what comes, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np

from headrace.clock import SECOND
from headrace.model import Batching, ModelSpec
from headrace.scheduling.simulate import Arrival, Resampled, Service, model

Runs = dict[int, dict[int, list[int]]]
REQUESTS = 2000


@cache
def recorded(name: str) -> Runs:
    """Runs of a real model, in ns."""
    found = json.loads((Path(__file__).parent / "service_times.json").read_text())[name]
    return {int(length): {int(rows): [1000 * us for us in of] for rows, of in by.items()} for length, by in found.items()}


def capacity(runs: Runs, max_rows: int) -> float:
    """Rows a second of full batches, all lengths as often."""
    slowest = [median(by[max_rows]) / max_rows for by in runs.values()]
    return SECOND / float(np.mean(slowest))


@dataclass(frozen=True)
class Load:
    """One seed of a scenario. `learned` is what a profile would say: the recorded runs, without what makes them worse."""

    arrivals: list[Arrival]
    runs: Runs
    max_rows: int
    levels: int
    seed: int
    instances: int = 1

    def spec(self, *, predicts: bool) -> ModelSpec:
        batching = Batching(enabled=True, predicts=predicts, priority_levels=self.levels, default_priority=self.levels)
        return model(self.max_rows, batching)

    def service(self) -> Service:
        usual = median(median(by[self.max_rows]) for by in self.runs.values())
        return Resampled(self.runs, np.random.default_rng(self.seed), usual_ns=int(usual))

    def learned(self) -> Iterator[tuple[int, int, int]]:
        for length, by_rows in self.runs.items():
            for rows, times in by_rows.items():
                if rows <= self.max_rows:
                    yield from ((length, rows, ns) for ns in times[:5])


def _load(seed: int, name: str, gaps: Callable[[np.random.Generator, float], np.ndarray], levels: int = 0) -> Load:
    random = np.random.default_rng([seed, 1])
    runs, max_rows = recorded(name), 16
    rate = capacity(runs, max_rows) * random.uniform(0.3, 2.0)
    at = np.cumsum(gaps(random, SECOND / rate)).astype(np.int64)
    lengths = list(runs)
    longest = max(median(by[max_rows]) for by in runs.values())
    # From just enough for a full batch to plenty.
    patience = longest * random.uniform(2, 8)
    chosen = random.choice(lengths, REQUESTS)
    spread = random.uniform(0.7, 1.3, REQUESTS) if levels or len(lengths) > 1 else np.ones(REQUESTS)
    priorities = random.integers(1, levels + 1, REQUESTS) if levels else np.zeros(REQUESTS, int)
    has_deadline = random.random(REQUESTS) < (0.8 if levels else 1.0)
    arrivals = [
        Arrival(int(at[n]), 1, int(chosen[n]), int(patience * spread[n]) if has_deadline[n] else None, int(priorities[n]))
        for n in range(REQUESTS)
    ]
    return Load(arrivals, runs, max_rows, levels, seed, 1 + seed % 2)


def poisson(random: np.random.Generator, gap: float) -> np.ndarray:
    return random.exponential(gap, REQUESTS)


def bursts(random: np.random.Generator, gap: float) -> np.ndarray:
    """Many at once, then nobody for as long as it takes to have the same rate in all."""
    gaps = random.exponential(gap / 10, REQUESTS)
    begins = random.random(REQUESTS) < 1 / 40
    gaps[begins] += random.exponential(0.9 * gap * 40, begins.sum())
    return gaps


SCENARIOS: dict[str, Callable[[int], Load]] = {
    "poisson": lambda seed: _load(seed, ("mid", "magika")[seed // 2 % 2], poisson),
    "bursts": lambda seed: _load(seed, ("mid", "magika")[seed // 2 % 2], bursts),
    "classes": lambda seed: _load(seed, "mid", poisson, levels=3),
    "lengths": lambda seed: _load(seed, "minilm", poisson),
}
