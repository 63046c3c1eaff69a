"""A backend whose every move is scripted, for tests and for measuring everything but the model.

It echoes: each output is the input of the same position, where datatype and shape allow, else zeros. What else happens
is in a `Script`, given in code or as parameters of the configuration (`execute_us`, `answers`, `fail`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from headrace.backends.base import Batch, Device, Outputs, Piece
from headrace.clock import MICROSECOND, SECOND
from headrace.errors import InvalidRepository
from headrace.model import GraphIO, GraphTensor
from headrace.protocol.headrace_pb2 import DataType, ModelConfig
from headrace.tensor import DTYPES, BytesTensor, Tensor, rows_of


class Gate:
    """Holds batches until a test lets them through, and tells how many stand before it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._passes = 0
        self._arrived = 0
        self._is_open = False

    def enter(self) -> None:
        """Stand before the gate until it lets one through."""
        with self._condition:
            self._arrived += 1
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._is_open or self._passes > 0)
            self._passes -= not self._is_open

    def wait_for(self, arrived: int, seconds: float = 20.0) -> None:
        """Return when this many batches have come, in all.

        Raises:
            TimeoutError: they have not, in this time.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self._arrived >= arrived, seconds):
                raise TimeoutError(f"{self._arrived} of {arrived} batches came to the gate in {seconds} s")

    def let(self, count: int = 1) -> None:
        """Let this many batches through."""
        with self._condition:
            self._passes += count
            self._condition.notify_all()

    def open(self) -> None:
        """Let everything through from now on."""
        with self._condition:
            self._is_open = True
            self._condition.notify_all()


@dataclass(slots=True)
class Script:
    """What a fake session does.

    Attributes:
        execute_ns: how long a batch takes.
        row_ns: how much longer for each row.
        answers: of a decoupled model, how many answers each request gets.
        closes_empty: of a decoupled model, whether an answer without outputs follows, and is the last.
        before_answer: of a decoupled model, called with the number of the answer, from 0; what it raises is the failure.
        fail: called with the batch; what it raises is the failure.
        compute: inputs to outputs, instead of the echo.
        gate: what every batch passes first.
        replayable: see `Session.replayable`.
        runs_elsewhere: see `backends.base.runs_elsewhere`; `fail` may say that a batch is away.
    """

    execute_ns: int = 0
    row_ns: int = 0
    answers: int = 1
    closes_empty: bool = False
    before_answer: Callable[[int], None] | None = None
    fail: Callable[[Batch], None] | None = None
    compute: Callable[[Mapping[str, Tensor]], Outputs] | None = None
    gate: Gate | None = None
    replayable: bool = False
    runs_elsewhere: bool = False
    batches: list[int] = field(default_factory=list)
    """Rows of every batch that ran: what the test reads."""


class FakeBackend:
    """Loads models of `backend: "fake"`: a configuration with inputs and outputs, and no file.

    Args:
        scripts: by model name; a model without one follows the parameters of its configuration.
    """

    def __init__(self, scripts: Mapping[str, Script] | None = None) -> None:
        self._scripts = scripts or {}

    def load(self, path: Path, config: ModelConfig, device: Device) -> FakeSession:
        """See `Backend.load`."""
        return FakeSession(config, self._scripts.get(config.name) or _script_of(config))


class FakeSession:
    """Runs a script."""

    def __init__(self, config: ModelConfig, script: Script) -> None:
        batch = (-1,) if config.max_batch_size > 0 else ()
        self.io = GraphIO(
            tuple(
                _declared(i.name, i.data_type, (*batch, *(i.reshape.shape if i.HasField("reshape") else i.dims)))
                for i in config.input
            ),
            tuple(
                _declared(o.name, o.data_type, (*batch, *(o.reshape.shape if o.HasField("reshape") else o.dims)))
                for o in config.output
            ),
        )
        self.replayable, self.runs_elsewhere = script.replayable, script.runs_elsewhere
        self.is_closed = False
        self._batches = config.max_batch_size > 0
        self._decoupled = config.model_transaction_policy.decoupled
        self._script = script

    def run(self, batch: Batch) -> Outputs | Iterator[Piece]:
        """See `Session.run`."""
        script = self._script
        script.batches.append(batch.rows)
        if script.gate is not None:
            script.gate.enter()
        lasts = script.execute_ns + script.row_ns * batch.rows
        if lasts:
            time.sleep(lasts / SECOND)
        if script.fail is not None:
            script.fail(batch)
        outputs = script.compute(batch.tensors()) if script.compute is not None else self._echo(batch)
        return self._in_pieces(batch, outputs) if self._decoupled else outputs

    def close(self) -> None:
        """See `Session.close`."""
        self.is_closed = True

    def _echo(self, batch: Batch) -> Outputs:
        given = list(batch.tensors().values())
        return {
            output.name: _echoed(output, given[index] if index < len(given) else None, batch.rows)
            for index, output in enumerate(self.io.outputs)
        }

    def _in_pieces(self, batch: Batch, outputs: Outputs) -> Iterator[Piece]:
        script = self._script
        for index, (at, end) in enumerate(pairwise(batch.offsets)):
            mine = {name: rows_of(tensor, at, end) if self._batches else tensor for name, tensor in outputs.items()}
            for count in range(script.answers):
                if script.before_answer is not None:
                    script.before_answer(count)
                yield index, mine, count == script.answers - 1 and not script.closes_empty
            if script.closes_empty or not script.answers:
                yield index, {}, True


def _declared(name: str, datatype: DataType, shape: tuple[int, ...]) -> GraphTensor:
    v2 = DataType.Name(datatype).removeprefix("TYPE_")
    return GraphTensor(name, "BYTES" if v2 == "STRING" else v2, shape)


def _echoed(output: GraphTensor, given: Tensor | None, rows: int) -> Tensor:
    if given is not None and len(given.shape) == len(output.shape):
        fits = all(d in (-1, s) for d, s in zip(output.shape, given.shape, strict=True))
        if fits and (
            isinstance(given, BytesTensor)
            if output.datatype == "BYTES"
            else getattr(given, "dtype", None) == DTYPES[output.datatype]
        ):
            return given
    shape = tuple(max(size, 1) for size in output.shape)
    if output.shape[:1] == (-1,):
        shape = (rows, *shape[1:])
    if output.datatype == "BYTES":
        return BytesTensor.of([b""] * int(np.prod(shape)), shape)
    return np.zeros(shape, DTYPES[output.datatype])


def _script_of(config: ModelConfig) -> Script:
    def number(key: str, default: int) -> int:
        if key not in config.parameters:
            return default
        text = config.parameters[key].string_value
        if not text.isdecimal():
            raise InvalidRepository(f"parameter '{key}' of fake model '{config.name}' is '{text}'; it must be a whole number")
        return int(text)

    failure = config.parameters["fail"].string_value if "fail" in config.parameters else ""

    def fail(batch: Batch) -> None:
        raise RuntimeError(failure)

    return Script(
        execute_ns=number("execute_us", 0) * MICROSECOND,
        row_ns=number("row_us", 0) * MICROSECOND,
        answers=number("answers", 1),
        fail=fail if failure else None,
    )
