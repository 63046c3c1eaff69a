"""A request and its response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from headrace.tensor import RawTensor, Tensor

Parameter: TypeAlias = "bool | int | float | str"


@dataclass(frozen=True, slots=True)
class Sequence:
    """The place of a request in a sequence of them."""

    id: int | str
    start: bool = False
    end: bool = False


@dataclass(slots=True)
class Request:
    """One V2 inference call. Nothing in it is validated until a queue takes it.

    `version` 0 means the model's default. `deadline` is the hard one, an absolute instant in ns; `timeout_ns` is the V2
    `timeout` parameter, counted from `received`. `priority` 0 means the model's default, 1 is the highest.
    `wants_empty_final`: of a stream, the last answer of a decoupled model is sent even if it has no outputs.
    """

    model: str
    inputs: Mapping[str, Tensor | RawTensor]
    version: int = 0
    outputs: tuple[str, ...] = ()
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict[str, Parameter])
    deadline: int | None = None
    timeout_ns: int = 0
    priority: int = 0
    sequence: Sequence | None = None
    received: int = 0
    decoded: int = 0
    wants_empty_final: bool = False


@dataclass(slots=True)
class Response:
    """One answer. `outputs` come in the order they were asked for; all of the model's when none were named."""

    model: str
    version: int
    id: str
    outputs: dict[str, Tensor]
    final: bool = True
