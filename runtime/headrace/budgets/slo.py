"""Objectives: which share of a model's requests is to be answered how soon, over which window; and which requests miss it.

They are read from OpenSLO files: `budgets.reading`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headrace.clock import MILLISECOND, SECOND
from headrace.errors import Code
from headrace.ledger.records import Outcome, Records

_CLIENTS_FAULT = np.array(
    [code.value for code in (Code.CANCELLED, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.UNIMPLEMENTED)]
)
"""Errors that the client can mend, or asked for."""


@dataclass(frozen=True, slots=True)
class Objective:
    """The share `target` of the requests is to be answered within `threshold_ns`, over any `window_ns`.

    `version` 0 is every version, no `classes` all of them. `stages` has what a stage may take (ns), where that was declared.
    `where` is the line that says so, as `file:line`.
    """

    name: str
    model: str
    threshold_ns: int
    target: float
    window_ns: int = 30 * 24 * 3600 * SECOND
    version: int = 0
    classes: tuple[int, ...] = ()
    stages: Mapping[str, int] = field(default_factory=dict[str, int])
    service: str = ""
    description: str = ""
    where: str = ""

    @property
    def budget(self) -> float:
        """The share of requests that may miss it."""
        return 1 - self.target

    @property
    def sentence(self) -> str:
        """What it promises, in words."""
        version = f" {self.version}" if self.version else ""
        classes = f" of class {', '.join(map(str, self.classes))}" if self.classes else ""
        share, within = f"{self.target * 100:.10g}%", f"{self.threshold_ns / MILLISECOND:g} ms"
        return f"{share} of the requests{classes} for {self.model}{version} within {within}"

    def covers(self, model: str, version: int) -> bool:
        """Whether requests of this version count, as far as their class does."""
        return model == self.model and self.version in (0, version)

    def judge(self, requests: Records) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which records of requests of the model count, and which of them are bad: two masks.

        Bad is late, refused, expired or failed for a reason that is not the client's. What was invalid or cancelled, and errors
        that the client can mend, do not count.
        """
        outcome, answered = requests["outcome"], requests["outcome"] == Outcome.ANSWERED
        counts = (outcome != Outcome.INVALID) & (outcome != Outcome.CANCELLED)
        counts &= (outcome != Outcome.FAILED) | ~np.isin(requests["code"], _CLIENTS_FAULT)
        if self.classes:
            counts &= np.isin(requests["level"], np.array(self.classes))
        return counts, counts & ~(answered & (requests["sent"] - requests["received"] <= self.threshold_ns))


def unserved(objectives: Iterable[Objective], models: Mapping[str, Mapping[int, int]]) -> list[str]:
    """Sentences about objectives that no request will ever count for: their model, version or class is not there.

    Args:
        objectives: the objectives.
        models: of each model there is, how many priority levels each of its versions has; no versions where they are not known.
    """
    problems: list[str] = []
    for each in objectives:
        beginning = f"{each.where}: objective '{each.name}' is for"
        if each.model not in models:
            close = difflib.get_close_matches(each.model, models, n=1)
            meant = f"; did you mean '{close[0]}'?" if close else ""
            problems.append(f"{beginning} model '{each.model}', which is not there{meant}")
            continue
        versions = models[each.model]
        if each.version and versions and each.version not in versions:
            told = ", ".join(map(str, sorted(versions)))
            problems.append(f"{beginning} version {each.version} of model '{each.model}', which is not there; versions: {told}")
            continue
        levels = max((count for version, count in versions.items() if each.version in (0, version)), default=None)
        if each.classes and levels is not None and each.classes[-1] > levels:
            problems.append(f"{beginning} class {each.classes[-1]} of model '{each.model}', which has {levels} priority levels")
    return problems
