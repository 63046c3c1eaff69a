"""What a graph writes behind `with`: read by a pydantic model of each node, and said no to in one place."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from headrace.errors import InvalidRepository
from headrace.models.check import is_outside
from headrace.node import Context


class Parameters(BaseModel):
    """No parameters; nodes that have some add them.

    Strict: YAML has numbers and booleans, so text that looks like one is a mistake.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


P = TypeVar("P", bound=Parameters)


def parameters(kind: type[P], context: Context) -> P:
    """The parameters of a node.

    Raises:
        InvalidRepository: one is unknown, missing or of a wrong type or value; the message names the node, the parameter and
            what is allowed.
    """
    try:
        return kind.model_validate(dict(context.parameters))
    except ValidationError as error:
        problems = (_problem(dict(detail), kind) for detail in error.errors())
        raise InvalidRepository(f"node '{context.name}': {'; '.join(problems)}") from None


def file_of(context: Context, parameter: str, name: str) -> Path:
    """The file beside the graph that a parameter names.

    Raises:
        InvalidRepository: it leads out of the graph's directory, or there is no such file.
    """
    path = context.directory / name
    if is_outside(name):
        raise InvalidRepository(f"node '{context.name}': {parameter} is '{name}'; name a file inside {context.directory}")
    if not path.is_file():
        raise InvalidRepository(f"node '{context.name}': {parameter} is '{name}', and there is no file {path}")
    return path


def missing(context: Context, package: str) -> InvalidRepository:
    """The error for a node that needs a package which is not installed."""
    return InvalidRepository(f"node '{context.name}' needs the package {package}: pip install 'headrace[nodes]'")


def _problem(detail: Mapping[str, Any], kind: type[Parameters]) -> str:
    name, fields = ".".join(map(str, detail["loc"])), kind.model_fields
    message = f"{detail['msg'][:1].lower()}{detail['msg'][1:]}"
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, fields, n=1)
        known = f"it has {', '.join(fields)}" if fields else "it has none"
        return f"parameter '{name}' is unknown; " + (f"did you mean '{close[0]}'?" if close else known)
    if detail["type"] == "missing":
        return f"parameter '{name}' is missing: {fields[name].description}"
    # A rule about several parameters has no place of its own.
    return f"parameter '{name}' is {detail['input']!r}: {message}" if name else message
