"""Running a node: in this process, or in one of its own, by one interface.

A runner takes and gives tensors; the arrays that the node sees and what it returns are the business of `LocalRunner`, which
works here and in a worker process alike.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from headrace.backends.joining import UNTRACED, Traced, joins, trace_of, within
from headrace.backends.loading import forget, load_class, place_of, words
from headrace.errors import BackendFailed, HeadraceError, InvalidRepository, InvalidRequest, sentence
from headrace.node import MANY, RAGGED, SAME, Array, Context, Node, Rows, tensor_of
from headrace.tensor import BytesTensor, Tensor, TensorSpec, as_tensor, datatype_of

log = logging.getLogger("headrace.node")

Result: TypeAlias = Mapping[str, Tensor] | Rows
"""Tensors by output name. The tensors of `Rows` are lists of one tensor a row, or stacked arrays."""


class NodeRunner(Protocol):
    """A node that is loaded."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What it takes, by name; dimensions without the rows."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """What it gives."""
        ...

    @property
    def rows(self) -> str:
        """What becomes of the rows: `same`, `ragged` or `many`; the last two return `Rows`."""
        ...

    @property
    def replayable(self) -> bool:
        """Whether running the same rows a second time does no harm."""
        ...

    def run(self, tensors: Mapping[str, Tensor], batch: Traced = UNTRACED) -> Result:
        """The declared ones of the outputs, for the inputs; whether they are what was declared is for the caller to check.

        What the node traces is in the trace of `batch`.

        Raises:
            InvalidRequest: the node says that it is a client's fault.
            BackendFailed: it raised anything else, or returned what are no tensors.
        """
        ...

    def close(self) -> None:
        """Give everything back. Nothing is running, and nothing will."""
        ...


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a node may take, in seconds, before its process is ended; one that runs in this process cannot be."""

    load: float = 60.0
    run: float = 300.0


@dataclass(frozen=True, slots=True)
class Declared:
    """What a node says of itself once it is loaded."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    rows: str
    replayable: bool

    @staticmethod
    def of(name: str, written: Mapping[str, Any]) -> Declared:
        """From the attributes of node `name` by their names: see `attributes`.

        Raises:
            InvalidRepository: one is not what `headrace.node` says.
        """
        rows = written["rows"]
        if rows not in (SAME, RAGGED, MANY):
            raise InvalidRepository(f"node '{name}': rows is {rows!r}; it can be '{SAME}', '{RAGGED}' or '{MANY}'")
        inputs, outputs = (_specs(name, what, written[what]) for what in ("inputs", "outputs"))
        return Declared(inputs, outputs, rows, bool(written["replayable"]))


def attributes(node: Node) -> dict[str, Any]:
    """What a node says of itself, as it is written down."""
    return {
        "inputs": getattr(node, "inputs", None),
        "outputs": getattr(node, "outputs", None),
        "rows": getattr(node, "rows", SAME),
        "replayable": bool(getattr(node, "replayable", True)),
    }


def _specs(name: str, what: str, written: object) -> dict[str, TensorSpec]:
    if not isinstance(written, Mapping) or not written or not all(isinstance(key, str) for key in written):
        raise InvalidRepository(
            f'node \'{name}\': {what} is {written!r}; it must name at least one tensor and its type, as in {{"text": "BYTES[1]"}}'
        )
    return {key: tensor_of(key, text) for key, text in written.items()}


def open_node(where: str, context: Context, isolation: str = "thread", timeouts: Timeouts = Timeouts()) -> NodeRunner:
    """Load the node of class `where` (see `load_class`).

    Args:
        where: the class.
        context: what the node is told; for a process of its own, the parameters must be such as JSON has.
        isolation: `thread`, in the threads of those who call, or `process`, in a process of its own, one call at a time.
        timeouts: for a process.

    Raises:
        InvalidRepository: it cannot be used, and the message says why.
    """
    if isolation == "thread":
        return LocalRunner(where, context)
    if isolation != "process":
        raise InvalidRepository(f"node '{context.name}': isolation is '{isolation}'; it can be 'thread' or 'process'")
    from headrace.backends.node_process import ProcessRunner  # which is Linux's

    return ProcessRunner(where, context, timeouts)


class LocalRunner:
    """A node in this process."""

    def __init__(self, where: str, context: Context) -> None:
        self.name = context.name
        self._class = load_class(where, context.directory)
        try:
            self._node: Node = self._class()
            self._node.load(context)
            self.written = attributes(self._node)
            self._declared = Declared.of(self.name, self.written)
        except HeadraceError:
            forget(self._class)
            raise
        except (Exception, SystemExit) as error:
            forget(self._class)
            raise InvalidRepository(
                f"node '{self.name}' ({where}) could not be loaded: {words(error)}{place_of(error)}"
            ) from error
        self.inputs, self.outputs = self._declared.inputs, self._declared.outputs
        self.rows, self.replayable = self._declared.rows, self._declared.replayable

    def run(self, tensors: Mapping[str, Tensor], batch: Traced = UNTRACED) -> Result:
        """See `NodeRunner.run`."""
        try:
            return self.call(tensors, trace_of(batch.heads) if joins() else "")
        except (Exception, SystemExit) as error:
            told = failure_of(error)
            if not isinstance(told, InvalidRequest):
                log.error("node '%s' failed: %s", self.name, told.message, exc_info=error)
            raise told from None

    def call(self, tensors: Mapping[str, Tensor], trace: str) -> Result:
        """As `run`, with whatever the node raises; `trace` is as `joining.trace_of` gives it."""
        with within(trace):
            result = self._node.run({name: _array(tensor) for name, tensor in tensors.items()})
        if self.rows == SAME:
            if isinstance(result, Mapping):
                return {name: _tensor(name, result[name]) for name in self.outputs if name in result}
            raise BackendFailed(f"node '{self.name}' returned {_a(result)}; it must return arrays by output name")
        if not isinstance(result, Rows):
            raise BackendFailed(f"node '{self.name}' returned {_a(result)}; its rows are '{self.rows}', so it must return Rows")
        count = next((tensor.shape[0] for tensor in tensors.values()), 0)
        return self._rows(result, count)

    def close(self) -> None:
        """See `NodeRunner.close`."""
        try:
            if callable(close := getattr(self._node, "close", None)):
                close()
        finally:
            forget(self._class)

    def _rows(self, result: Rows, count: int) -> Rows:
        """What a node returned for `count` rows, checked as far as its rows must belong to those."""
        tensors = {name: _each(name, result.tensors[name]) for name in self.outputs if name in result.tensors}
        counts = None if result.counts is None else tuple(map(int, result.counts))
        if counts is not None and (self.rows == RAGGED or len(counts) != count or min(counts, default=0) < 0):
            raise BackendFailed(
                f"node '{self.name}' returned counts {list(counts)} for {count} rows; with rows '{MANY}' there is one for each, "
                f"and with '{RAGGED}' there are none"
            )
        wanted = count if counts is None else sum(counts)
        for name, rows in tensors.items():
            if len(rows) != wanted:
                raise BackendFailed(
                    f"node '{self.name}' returned {len(rows)} rows of '{name}', where {wanted} belong to its inputs"
                )
        return Rows(tensors, counts)


def failure_of(error: BaseException) -> HeadraceError:
    """What clients are told when a node raises."""
    if isinstance(error, InvalidRequest):
        return error
    if isinstance(error, SystemExit):
        return BackendFailed(f"the node called sys.exit({error.code!r}), which fails a batch and ends nothing")
    return BackendFailed(sentence(error) if isinstance(error, HeadraceError) else words(error))


def _array(tensor: Tensor) -> Array:
    if isinstance(tensor, BytesTensor):
        return tensor.objects()
    # A batch that fails runs again, request by request: a node must not change what it was given.
    array = tensor.view()
    array.flags.writeable = False
    return array


def _tensor(name: str, value: object) -> Tensor:
    if value is None or isinstance(value, Mapping):
        raise BackendFailed(f"output '{name}' is {_a(value)}, not an array")
    try:
        tensor = as_tensor(value)
        datatype_of(tensor)
    except Exception as error:
        raise BackendFailed(f"output '{name}' is {_a(value)}, of which no tensor can be made: {sentence(error)}") from error
    return tensor


def _each(name: str, rows: Sequence[Any] | Array) -> list[Tensor] | Array:
    """Rows as tensors: one array stays one, unless it holds text."""
    if isinstance(rows, np.ndarray):
        stacked = _tensor(name, rows)
        if not isinstance(stacked, BytesTensor):
            return stacked
        return [stacked.rows(at, at + 1).reshape(stacked.shape[1:]) for at in range(stacked.shape[0])]
    if not isinstance(rows, Sequence) or isinstance(rows, (str, bytes)):
        raise BackendFailed(f"output '{name}' is {_a(rows)}; it must be a sequence of rows")
    return [_tensor(name, row) for row in rows]


def _a(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
