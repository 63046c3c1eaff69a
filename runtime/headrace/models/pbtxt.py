"""Configuration text to `ModelConfig`: `config.pbtxt`, and the JSON that a load request may bring instead."""

from __future__ import annotations

import difflib
import re

from google.protobuf import json_format, text_format

from headrace.errors import InvalidRepository
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.protocol.pool import POOL

_PLACEHOLDER = re.compile(r"\$\{[^}]*\}|\{\{.*?\}\}|\{%.*?%\}")
_BARE_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*\b")
_VALUE_WANTED = ("Couldn't parse integer", "Couldn't parse float", 'Expected "true" or "false"')
_NO_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "(\w+)"')
_NO_VALUE = re.compile(r'Enum type "([\w.]+)" has no value named (\w+)')


def parse(text: str, where: str) -> ModelConfig:
    """Read protobuf text format; `where` names the file in messages.

    Raises:
        InvalidRepository: it does not parse. The message has file:line:column, and says what to do; a template that nobody
            has filled is called one, with its placeholder.
    """
    try:
        return text_format.Parse(text, ModelConfig(), descriptor_pool=POOL)
    except text_format.ParseError as error:
        line, column = error.GetLine() or 1, error.GetColumn() or 1
        place = f"{where}:{line}:{column}"
        problem = str(error).removeprefix(f"{line}:{column} : ")
    placeholder = _placeholder(text, line, column, problem)
    if placeholder is not None:
        raise InvalidRepository(f"{place}: the file is a template that has not been filled: give '{placeholder}' a value")
    raise InvalidRepository(f"{place}: {problem.rstrip('.')}; {_advice(problem)}")


def parse_json(text: str) -> ModelConfig:
    """Read the JSON of a load request's `config` parameter.

    Raises:
        InvalidRepository: it does not parse; the message starts with `Invalid config override: `.
    """
    try:
        if not text.lstrip().startswith("{"):
            # The parser takes any empty collection for an empty configuration.
            raise InvalidRepository("Invalid config override: expected a JSON object that describes a model configuration")
        return json_format.Parse(text, ModelConfig(), descriptor_pool=POOL)
    except json_format.ParseError as error:
        # What follows the first line is a list of every field there is.
        problem = str(error).partition("\n")[0]
        raise InvalidRepository(f"Invalid config override: {problem}") from None


def _placeholder(text: str, line: int, column: int, problem: str) -> str | None:
    """What a template left open at the place where parsing stopped.

    Only there: `${HOME}` inside a string that parses may be meant.
    """
    lines = text.split("\n")
    broken = lines[line - 1] if line <= len(lines) else ""
    found = _PLACEHOLDER.search(broken.partition("#")[0])
    if found is None and any(words in problem for words in _VALUE_WANTED):
        found = _BARE_PLACEHOLDER.match(broken, column - 1)
    return found.group() if found else None


def _advice(problem: str) -> str:
    if unknown := _NO_FIELD.search(problem):
        names: list[str] = list(POOL.FindMessageTypeByName(unknown[1]).fields_by_name)
        return _did_you_mean(unknown[2], names) or f"the fields there are {', '.join(sorted(names))}"
    if unknown := _NO_VALUE.search(problem):
        names = list(POOL.FindEnumTypeByName(unknown[1]).values_by_name)
        return _did_you_mean(unknown[2], names) or f"the values are {', '.join(names)}"
    return "correct the file there"


def _did_you_mean(name: str, names: list[str]) -> str | None:
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else None
