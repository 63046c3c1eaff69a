"""What is read of OpenSLO v1: the documents that a file holds, each value with the line where it stands.

The specification is https://github.com/OpenSLO/OpenSLO (v1). An SLO is one of requests that Headrace answers when its indicator
is a threshold metric with a source of type `headrace`:

    apiVersion: openslo/v1
    kind: SLO
    metadata:
      name: magika-interactive
      annotations: {headrace/budget.queue: 5ms}      # what a stage may take; the others' is learned
    spec:
      service: files
      indicator:
        metadata: {name: magika-duration}
        spec:
          thresholdMetric:
            metricSource:
              type: headrace
              spec: {model: magika, unit: ms}        # and version, and classes, a list of priority levels
      timeWindow: [{duration: 30d, isRolling: true}]
      budgetingMethod: Occurrences
      objectives: [{op: lte, value: 20, target: 0.99}]

An indicator may stand in a document of its own (kind SLI), which `indicatorRef` names. Documents of the other kinds are left
alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

OTHER_KINDS = ("AlertCondition", "AlertNotificationTarget", "AlertPolicy", "DataSource", "Service")

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel)


class Metadata(_Part):
    """How a document is called; `annotations` are for programs that know them."""

    name: Name
    display_name: str = ""
    labels: Mapping[str, str | list[str]] = {}
    annotations: Mapping[str, str] = {}


class Requests(_Part):
    """Which requests are counted, and the unit of the threshold."""

    model: Annotated[str, Field(min_length=1)]
    version: Annotated[int, Field(ge=1)] | None = None
    classes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None = None
    unit: Literal["ms", "s"]


class MetricSource(_Part):
    """Where the numbers come from."""

    type: Literal["headrace"]
    spec: Requests


class ThresholdMetric(_Part):
    """How long a request took."""

    metric_source: MetricSource


class IndicatorSpec(_Part):
    """What is measured."""

    description: str = ""
    threshold_metric: ThresholdMetric


class Indicator(_Part):
    """An indicator within an SLO."""

    metadata: Metadata | None = None
    spec: IndicatorSpec


class TimeWindow(_Part):
    """For how long the budget is."""

    duration: Annotated[str, Field(pattern="^[1-9][0-9]*[mhdw]$")]
    is_rolling: Literal[True]


class Target(_Part):
    """Which share of requests is to take at most `value`."""

    display_name: Name | None = None
    op: Literal["lte"]
    value: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    target: Annotated[float, Field(gt=0, lt=1)] | None = None
    target_percent: Annotated[float, Field(gt=0, lt=100)] | None = None

    @model_validator(mode="after")
    def _says_once(self) -> Target:
        if (self.target is None) == (self.target_percent is None):
            raise PydanticCustomError("target", "expected either `target`, as 0.99, or `targetPercent`, as 99")
        return self

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return (self.target_percent or 0.0) / 100 if self.target is None else self.target


class SLOSpec(_Part):
    """What is promised. `alertPolicies` are left alone: `headrace slo render` writes alerts."""

    description: str = ""
    service: str = ""
    indicator: Indicator | None = None
    indicator_ref: str | None = None
    time_window: Annotated[tuple[TimeWindow, ...], Field(min_length=1, max_length=1)]
    budgeting_method: Literal["Occurrences"]
    objectives: Annotated[tuple[Target, ...], Field(min_length=1)]
    alert_policies: Any = None

    @model_validator(mode="after")
    def _has_one_indicator(self) -> SLOSpec:
        if (self.indicator is None) == (self.indicator_ref is None):
            raise PydanticCustomError("indicator", "expected either `indicator` or `indicatorRef`")
        return self


class SLO(_Part):
    """A document of kind SLO."""

    api_version: Literal["openslo/v1"]
    kind: Literal["SLO"]
    metadata: Metadata
    spec: SLOSpec


class SLI(_Part):
    """A document of kind SLI."""

    api_version: Literal["openslo/v1"]
    kind: Literal["SLI"]
    metadata: Metadata
    spec: IndicatorSpec


class Document:
    """One document of a file, and where its values stand.

    Args:
        file: how the file is called.
        node: the document.
    """

    def __init__(self, file: str, node: yaml.Node) -> None:
        self._file, self._node = file, node
        self.content: SLO | SLI | None = None
        """None: of another kind."""

    def where(self, *keys: str | int) -> str:
        """`file:line` of what these keys lead to, as far as they lead."""
        node = self._node
        line = node.start_mark.line
        for key in keys:
            children = dict(_children(node))
            if key not in children:
                break
            line, node = children[key]
        return f"{self._file}:{line + 1}"

    def read(self) -> list[str]:
        """Take it in; what is wrong with it, each with its line."""
        problems = [f"{self._file}:{line + 1}: key '{key}' is there twice" for line, key in _repeated(self._node, set())]
        if problems:
            return problems
        told: Any = _Loader("").construct_document(self._node)
        kind = told.get("kind") if isinstance(told, dict) else None
        if kind in OTHER_KINDS:
            return []
        kinds = {"SLO": SLO, "SLI": SLI}
        if kind not in kinds:
            where = self.where("kind")
            return [f"{where}: kind is {kind!r}: expected {', '.join((*kinds, *OTHER_KINDS))}, of apiVersion openslo/v1"]
        try:
            self.content = kinds[kind].model_validate(told)
        except ValidationError as error:
            places = [detail["loc"] for detail in error.errors()]
            # What is wrong with an item is not told again as the lack of it.
            repeats = [any(len(place) > len(mine) and place[: len(mine)] == mine for place in places) for mine in places]
            return [self._problem(dict(detail)) for detail, repeat in zip(error.errors(), repeats, strict=True) if not repeat]
        return []

    def _problem(self, detail: Mapping[str, Any]) -> str:
        keys = detail["loc"]
        path = ".".join(map(str, keys))
        said = str(detail["msg"])
        if detail["type"] == "extra_forbidden":
            return f"{self.where(*keys)}: key '{path}' is unknown{_meant(str(keys[-1]))}"
        if detail["type"] == "missing":
            return f"{self.where(*keys[:-1])}: key '{path}' is missing"
        is_plain = isinstance(detail["input"], (str, int, float))
        told = f" is {detail['input']!r}" if is_plain else ""
        return f"{self.where(*keys)}: {path}{told}: {said[:1].lower()}{said[1:]}"


def documents_of(text: str, file: str) -> tuple[list[Document], list[str]]:
    """The documents in the text of a file, and what is wrong with them."""
    documents: list[Document] = []
    problems: list[str] = []
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=_Loader) if node is not None]
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        return [], [f"{where}: this is no YAML: {getattr(error, 'problem', None) or ' '.join(str(error).split())}"]
    for node in nodes:
        document = Document(file, node)
        problems += document.read()
        documents.append(document)
    return documents, problems


class _Loader(yaml.SafeLoader):
    """A safe loader that knows no dates: whoever reads the values wants text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _children(node: yaml.Node) -> Iterator[tuple[str | int, tuple[int, yaml.Node]]]:
    """What is in a mapping or a sequence: by key or place, the line where it begins, and the node."""
    if isinstance(node, yaml.MappingNode):
        yield from ((key.value, (key.start_mark.line, value)) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from ((place, (item.start_mark.line, item)) for place, item in enumerate(node.value))


def _repeated(node: yaml.Node, seen: set[yaml.Node]) -> Iterator[tuple[int, str | int]]:
    """Keys that a mapping has twice, which YAML would take the last of. What aliases share is looked at once."""
    if node in seen:
        return
    seen.add(node)
    keys: set[str | int] = set()
    for key, (line, child) in _children(node):
        if key in keys:
            yield line, key
        keys.add(key)
        yield from _repeated(child, seen)


def _meant(key: str) -> str:
    known = {
        field.alias or name
        for part in (Metadata, Requests, MetricSource, IndicatorSpec, Indicator, TimeWindow, Target, SLOSpec, SLO)
        for name, field in part.model_fields.items()
    }
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
