"""A request and its response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeAlias

from headrace.tensor import RawTensor, Tensor

Parameter: TypeAlias = "bool | int | float | str"


@dataclass(frozen=True, slots=True)
class Sequence:
    """The place of a request in a sequence of them."""

    id: int | str
    start: bool = False
    end: bool = False


class Window(Protocol):
    """Where the bytes of one tensor are, when they are not in the message. Whoever holds it keeps the memory behind it."""

    @property
    def byte_size(self) -> int:
        """How many bytes there are."""
        ...

    def read(self) -> memoryview:
        """A copy of all of them.

        Raises:
            InvalidRequest: they are not there any more.
        """
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Put `data`, at most `byte_size` bytes, at the beginning.

        Raises:
            InvalidRequest: there is no longer room for it.
        """
        ...

    def overlaps(self, other: Window) -> bool:
        """Whether a byte of this one is a byte of the other."""
        ...


class Windows(Protocol):
    """What there is to read from and to write to. See `headrace.engine.regions`."""

    def window(self, region: str, offset: int, byte_size: int) -> Window:
        """`byte_size` bytes from `offset` of a region.

        Raises:
            RegionNotFound: there is no such region.
            InvalidRequest: it has no such bytes.
        """
        ...


class Origin(NamedTuple):
    """Where a request comes from: who asks, and within which trace. Zeros where nobody said so.

    `client` is a pseudonym; `span` the caller's span. `context` is 1 if a trace was given, 2 if what was given could not be
    understood. Of rows that a graph sent on, `parent` is the number of their request, `parent_model` the ledger's number of its
    version.
    """

    client: int = 0
    trace_high: int = 0
    trace_low: int = 0
    span: int = 0
    parent: int = 0
    parent_model: int = 0
    trace_flags: int = 0
    context: int = 0


NOWHERE = Origin()
"""Of requests of this process."""


@dataclass(slots=True)
class Request:
    """One V2 inference call. Nothing in it is validated until a queue takes it.

    `version` 0 means the model's default. `deadline` is the hard one, an absolute instant in ns; `timeout_ns` is the V2
    `timeout` parameter, counted from `received`. `priority` 0 means the model's default, 1 is the highest. By output name,
    `classes` says of how many of the likeliest classes to tell instead of its values, `placed` where to write them.
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
    classes: Mapping[str, int] = field(default_factory=dict[str, int])
    placed: Mapping[str, Window] = field(default_factory=dict[str, Window])
    origin: Origin = NOWHERE


class Head(NamedTuple):
    """What of a request goes along with what is sent on for it: all but its inputs. Cheap to make."""

    model: str
    id: str = ""
    parameters: Mapping[str, Parameter] = MappingProxyType({})
    deadline: int | None = None
    timeout_ns: int = 0
    priority: int = 0
    sequence: Sequence | None = None
    received: int = 0
    origin: Origin = NOWHERE
    outputs: tuple[str, ...] = ()


@dataclass(slots=True)
class Response:
    """One answer. `outputs` come in the order they were asked for; all of the model's when none were named.

    Whoever encodes it writes the outputs that are `placed` to their windows instead of into the message.
    """

    model: str
    version: int
    id: str
    outputs: dict[str, Tensor]
    final: bool = True
    placed: Mapping[str, Window] = field(default_factory=dict[str, Window])
