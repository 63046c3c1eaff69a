"""What a backend is: it loads a version into a session, and a session runs batches.

A session knows nobody above it. It gets a `Batch` to read from and returns outputs; an answer that comes in pieces is an
iterator of them. Sessions are called from several instance threads at once, one batch a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from headrace.errors import HeadraceError
from headrace.model import GraphIO
from headrace.protocol.headrace_pb2 import ModelConfig, ModelStatistics
from headrace.request import Head, Request, Response
from headrace.series import Series
from headrace.tensor import Tensor

Outputs: TypeAlias = Mapping[str, Tensor]
"""Tensors by output name; with batching, the first dimension is the rows of the batch."""

Piece: TypeAlias = tuple[int, Outputs | HeadraceError, bool]
"""Of an answer in pieces: the index of the request in the batch, outputs of that request alone, whether it is its last.

An error instead of outputs is its last, and fails that request alone."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where a session runs: kind `CPU` or `GPU`, and which one."""

    kind: str = "CPU"
    index: int = 0

    def __str__(self) -> str:
        return self.kind.lower() if self.kind == "CPU" else f"{self.kind.lower()}:{self.index}"


class Batch(Protocol):
    """The part of a batch that a session sees."""

    @property
    def rows(self) -> int:
        """Rows in all; 1 when the model does not batch."""
        ...

    @property
    def offsets(self) -> list[int]:
        """Where the rows of each request begin; one more than there are requests."""
        ...

    @property
    def requests(self) -> list[Request]:
        """The requests, in the order of their rows."""
        ...

    @property
    def heads(self) -> list[Head]:
        """Of each request, what goes along with what is sent on for it. See `headrace.scheduling.base.Batch`."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """The inputs, gathered: one tensor a name, rows of all requests stacked."""
        ...

    def wanted(self) -> tuple[str, ...]:
        """The outputs somebody asked for, in the order the model declares them."""
        ...

    def away(self) -> None:
        """Say that somebody else runs it now, and this thread only waits. See `runs_elsewhere`."""
        ...


@runtime_checkable
class Partable(Protocol):
    """A batch of a queue, which can be taken apart. See `headrace.scheduling.base.Batch`."""

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits."""
        ...

    def part(self, gone: Callable[[int], None]) -> Sequence[Part]:
        """Each request by itself, to be answered later, from any thread; `gone` hears the places of those that are cancelled."""
        ...


class Part(Protocol):
    """A request of a batch that was taken apart."""

    def send(self, index: int, outputs: Outputs, final: bool) -> None:
        """Answer it; `index` is 0."""
        ...

    def fail(self, error: HeadraceError) -> None:
        """Answer it with an error."""
        ...


class Inner(Protocol):
    """The way into the engine, for models that ask others."""

    def call(self, request: Request, receive: Callable[[Response | HeadraceError], None]) -> Callable[[], None]:
        """Send a request on its way; `receive` gets its answers, from any thread, and must not block or raise.

        Returns:
            What cancels it.

        Raises:
            HeadraceError: it was not admitted.
        """
        ...

    def is_ready(self, model: str, version: int) -> bool:
        """Whether a version can be asked; 0 is the highest."""
        ...

    def is_decoupled(self, model: str, version: int) -> bool:
        """Whether it answers a request several times. False where there is none."""
        ...

    def load(self, model: str, config: str | None, files: Mapping[str, bytes]) -> None:
        """Load or reload a model; `config` is JSON, and `files` by their paths are instead of those in the repository.

        Raises:
            HeadraceError: it did not come up, or models are not loaded on request here.
        """
        ...

    def unload(self, model: str, *, dependents: bool) -> None:
        """Stop serving a model, and with `dependents` what it runs.

        Raises:
            HeadraceError: models are not loaded on request here.
        """
        ...


class Session(Protocol):
    """One loaded version on one device."""

    io: GraphIO

    @property
    def replayable(self) -> bool:
        """Whether running the same rows a second time does no harm; then a failed batch is tried request by request."""
        ...

    def run(self, batch: Batch) -> Outputs | Iterator[Piece] | None:
        """Run the batch. None: it has parted the requests of the batch, and answers them itself.

        Raises:
            Exception: whatever goes wrong; its text reaches the clients of this batch.
        """
        ...

    def close(self) -> None:
        """Give everything back. No batch is running, and none will."""
        ...


def stands_zeros(session: Session) -> bool:
    """Whether a session may be run before anybody has asked it for anything: one that says nothing of it may."""
    return getattr(session, "stands_zeros", True)


def runs_elsewhere(session: Session) -> bool:
    """Whether a session has another process run its batches, and says so of each with `Batch.away`.

    Then the answers of the batch before are sent while that one works. A session that says nothing of it runs them itself.
    """
    return getattr(session, "runs_elsewhere", False)


@runtime_checkable
class Calling(Protocol):
    """A backend whose models may ask others."""

    def connect(self, inner: Inner) -> None:
        """Give it the way into the engine. Once, before it loads anything."""
        ...


@runtime_checkable
class Outside(Protocol):
    """A session of something that is not in the repository, and can change without it."""

    def has_changed(self) -> bool:
        """Whether loading it now would give something else than what was loaded. May ask whoever has it."""
        ...

    @property
    def is_healthy(self) -> bool:
        """Whether it is thought to answer, as far as that is known without asking."""
        ...

    def statistics(self) -> list[ModelStatistics]:
        """What whoever has it counts of it, stage by stage, of all who ask; none where that cannot be had. Asks."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A session whose model counts things by itself."""

    def own_series(self) -> Sequence[Series]:
        """How they stand: one a process that counts. Never waits for any of them."""
        ...


class Backend(Protocol):
    """Loads versions."""

    def load(self, path: Path, config: ModelConfig, device: Device) -> Session:
        """Load the version in directory `path`; `config` is filled and checked.

        Raises:
            InvalidRepository: it cannot be loaded, and the message says why and what to do.
        """
        ...
