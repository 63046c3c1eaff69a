"""Objectives out of files: what the documents of OpenSLO (`budgets.openslo`) promise, or all that is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from headrace.budgets.openslo import SLI, SLO, Document, Target, documents_of
from headrace.budgets.slo import Objective
from headrace.clock import MICROSECOND, MILLISECOND, SECOND
from headrace.errors import InvalidObjective
from headrace.ledger.records import STAGES

SHORTEST_WINDOW, LONGEST_WINDOW = 3600 * SECOND, 366 * 24 * 3600 * SECOND

_BUDGET = "headrace/budget."
_WINDOW_UNITS = {"m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_UNITS = {"us": MICROSECOND, "ms": MILLISECOND, "s": SECOND}


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
