"""Objectives: which share of a model's requests is to be answered how soon, over which window; and which requests miss it.

They are read from OpenSLO files (`budgets.openslo`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.budgets.openslo import SLI, SLO, Document, Target, documents_of
from headrace.clock import MICROSECOND, MILLISECOND, SECOND
from headrace.errors import Code, InvalidObjective
from headrace.ledger.records import STAGES, Outcome, Records

SHORTEST_WINDOW, LONGEST_WINDOW = 3600 * SECOND, 366 * 24 * 3600 * SECOND

_BUDGET = "headrace/budget."
_WINDOW_UNITS = {"m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_UNITS = {"us": MICROSECOND, "ms": MILLISECOND, "s": SECOND}
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


def read_objectives(directory: Path) -> list[Objective]:
    """The objectives in the files `*.yaml` of a directory, by name.

    Raises:
        InvalidObjective: something in them cannot be; it has all problems, each with file and line.
    """
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix in (".yaml", ".yml"))
        texts = {str(path): path.read_text(encoding="utf-8") for path in files}
    except OSError as error:
        raise InvalidObjective([f"cannot read objectives in {error.filename or directory}: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise InvalidObjective([f"a file in {directory} is no UTF-8: {error}"]) from None
    if not texts:
        raise InvalidObjective([f"there are no objectives in {directory}: it holds no file that ends in .yaml"])
    return parse_objectives(texts)


def parse_objectives(texts: Mapping[str, str]) -> list[Objective]:
    """The objectives in the texts of files, by the names of which problems are told.

    Raises:
        InvalidObjective: something in them cannot be; it has all problems, each with file and line.
    """
    documents: list[Document] = []
    problems: list[str] = []
    for file, text in texts.items():
        found, wrong = documents_of(text, file)
        documents += found
        problems += wrong
    indicators = {each.content.metadata.name: each.content for each in documents if isinstance(each.content, SLI)}
    objectives: dict[str, Objective] = {}
    for document in documents:
        if isinstance(document.content, SLO):
            made, wrong = _objectives_of(document, document.content, indicators)
            problems += wrong
            for each in made:
                if each.name in objectives:
                    problems.append(
                        f"{each.where}: objective '{each.name}' is there twice, also at {objectives[each.name].where}"
                    )
                objectives[each.name] = each
    if problems:
        raise InvalidObjective(problems)
    return [objectives[name] for name in sorted(objectives)]


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


def _objectives_of(document: Document, slo: SLO, indicators: Mapping[str, SLI]) -> tuple[list[Objective], list[str]]:
    spec, problems = slo.spec, list[str]()
    known = spec.indicator or indicators.get(spec.indicator_ref or "")
    if known is None:
        return [], [f"{document.where('spec', 'indicatorRef')}: there is no SLI '{spec.indicator_ref}' in these files"]
    indicator = known.spec
    requests = indicator.threshold_metric.metric_source.spec
    duration = spec.time_window[0].duration
    window = int(duration[:-1]) * _WINDOW_UNITS[duration[-1]] * SECOND
    if not SHORTEST_WINDOW <= window <= LONGEST_WINDOW:
        where = document.where("spec", "timeWindow", 0, "duration")
        problems.append(f"{where}: the window is {duration}: give one between 1h and 366d")
    stages, wrong = _stages_of(document, slo)
    problems += wrong
    made: list[Objective] = []
    for place, target in enumerate(spec.objectives):
        where = document.where("spec", "objectives", place)
        threshold = round(target.value * _UNITS[requests.unit])
        if sum(stages.values()) > threshold:
            problems.append(
                f"{where}: the stages may take {sum(stages.values()) / MILLISECOND:g} ms together, more than the "
                f"{threshold / MILLISECOND:g} ms of the objective: lower {_BUDGET}* or raise the value"
            )
        made.append(
            Objective(
                _name_of(slo, target, place),
                requests.model,
                threshold,
                target.share,
                window,
                requests.version or 0,
                tuple(sorted(set(requests.classes or ()))),
                stages,
                spec.service,
                spec.description or indicator.description,
                where,
            )
        )
    return made, problems


def _name_of(slo: SLO, target: Target, place: int) -> str:
    """An SLO with one objective is called after the SLO; of several, each after its display name, or its place."""
    if len(slo.spec.objectives) == 1:
        return slo.metadata.name
    return f"{slo.metadata.name}-{target.display_name or place + 1}"


def _stages_of(document: Document, slo: SLO) -> tuple[dict[str, int], list[str]]:
    """What annotations say that stages may take, in ns, and what is wrong with them."""
    stages: dict[str, int] = {}
    problems: list[str] = []
    for key, text in slo.metadata.annotations.items():
        if not key.startswith("headrace/"):
            continue
        where, stage = document.where("metadata", "annotations", key), key.removeprefix(_BUDGET)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", text)
        if stage not in STAGES:
            told = ", ".join(f"{_BUDGET}{known}" for known in STAGES)
            problems.append(f"{where}: annotation '{key}' is unknown: expected one of {told}")
        elif found is None or not float(found[1]):
            problems.append(f"{where}: annotation '{key}' is {text!r}: expected a duration above 0, as in 5ms")
        else:
            stages[stage] = round(float(found[1]) * _UNITS[found[2]])
    return stages, problems
