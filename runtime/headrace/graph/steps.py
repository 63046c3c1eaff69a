"""The nodes of a segment as they run: a session of a model, or a class. Values go from step to step by the names of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from headrace.backends.base import Batch, Outputs, Piece, Session, stands_zeros
from headrace.backends.nodes import NodeRunner
from headrace.backends.zeros import Zeros
from headrace.clock import Clock
from headrace.errors import BackendFailed, HeadraceError, InvalidRequest, sentence
from headrace.graph.fan import Fan, fan_of, picked
from headrace.graph.rest import Rest, rows_at
from headrace.graph.segments import Signature, text_of, varies
from headrace.ledger.records import BatchRecord
from headrace.model import ModelSpec
from headrace.node import Rows
from headrace.protocol.validate import resolve_reshape
from headrace.request import Head, Request
from headrace.scheduling.answers import checked_outputs
from headrace.scheduling.plan import Reason
from headrace.tensor import Tensor, TensorSpec, concatenate, format_shape

if TYPE_CHECKING:
    from headrace.models.graphs import GraphNode

Values = dict[str, Tensor]
"""Tensors by the names of the graph."""


class Visits:
    """Writes what nodes did into the ledger, each under the number of its model."""

    def __init__(self, write: Callable[[BatchRecord], None], clock: Clock) -> None:
        self._write, self._clock = write, clock

    def now(self) -> int:
        """The instant, in ns."""
        return self._clock.now()

    def write(self, number: int, batch: Batch, rows: int, began: int, failed: int | None) -> None:
        """A node has run the requests of the batch since `began`, each all of the time; so many failed, and None is all."""
        if is_rehearsal(batch):
            return
        now, requests = self._clock.now(), len(batch.offsets) - 1
        failed = requests if failed is None else failed
        parent, of = _maker(batch)
        self._write(BatchRecord(0, began, began, now, now, number, rows, requests, 0, failed, 0, Reason.GRAPH, 0, parent, of))


class Ran(NamedTuple):
    """What became of a step, beside the values it wrote: what a border gave, and the requests that failed, by their places."""

    fan: Fan | None = None
    failed: Mapping[int, HeadraceError] = {}


class Step:
    """A node in its segment.

    Args:
        name: of the node, for messages.
        node: which tensors it reads and writes.
        signature: what it takes and gives.
        spec: of its model; of a class, what stands for it.
        runs: the session of the model, or the class.
        number: the ledger's.
        has_rows: whether the tensors of its segment have rows.
        given: the tensors it reads, as they are declared by who writes them.
    """

    def __init__(  # noqa: PLR0913
        self,
        name: str,
        node: GraphNode,
        signature: Signature,
        spec: ModelSpec,
        runs: Session | NodeRunner,
        number: int,
        given: Mapping[str, TensorSpec],
        *,
        has_rows: bool,
    ) -> None:
        self.name, self.spec, self.signature, self._number = name, spec, signature, number
        self._runs, self.replayable = runs, runs.replayable
        self._lacks_rows = signature.is_class and not has_rows
        self._adds_rows = bool(signature.max_batch_size) and not has_rows
        declared = {tensor.name: tensor for tensor in spec.inputs}
        self._reads = [
            (own, tensor, declared[own] if declared[own].reshape is not None else None) for own, tensor in node.inputs.items()
        ]
        # Where a declaration leaves a size open that this node does not, it has to be looked at.
        self._looks_at = [
            (tensor, declared[own])
            for own, tensor in node.inputs.items()
            if len(given[tensor].dims) == len(declared[own].dims) and varies(declared[own].dims, given[tensor].dims)
        ]
        self._writes = dict(node.outputs)
        self._wanted = tuple(output.name for output in spec.outputs if output.name in node.outputs)

    def run(self, values: Values, batch: Batch, visits: Visits) -> Ran:
        """Run it on `values`, and put there what it gives; what a border gives is returned instead.

        Where requests fail for themselves, all values are left with the rows of the others.

        Raises:
            HeadraceError: it could not; the message names the node where its own does not.
        """
        rows, began, failures = 1, visits.now(), None
        try:
            inputs = self._inputs(values)
            rows = batch.rows if not self._adds_rows else next(iter(inputs.values())).shape[0]
            result = self._call(inputs, batch, rows)
            if isinstance(result, Rows):
                fan = fan_of(result, self.spec, rows).renamed(self._writes)
                failures = 0
                return Ran(fan)
            failed: Mapping[int, HeadraceError] = {}
            if isinstance(result, Mapping):
                outputs = checked_outputs(self.spec, result, self._wanted, rows)
            else:
                outputs, failed = self._together(result, batch, rows)
                if failed:
                    left = [place for place in range(len(batch.offsets) - 1) if place not in failed]
                    values.update({name: picked(value, rows_at(batch.offsets, left)) for name, value in values.items()})
            for own, tensor in self._writes.items() if outputs else ():
                values[tensor] = outputs[own].reshape(outputs[own].shape[1:]) if self._lacks_rows else outputs[own]
            failures = len(failed)
            return Ran(None, failed)
        except HeadraceError:
            raise
        except Exception as error:
            raise BackendFailed(f"{self._who}: {sentence(error)}") from error
        finally:
            visits.write(self._number, batch, rows, began, failures)

    @property
    def stands_zeros(self) -> bool:
        """Whether it may run before anybody has asked for anything."""
        return self.signature.is_class or stands_zeros(self._runs)  # type: ignore[arg-type]  # what is no class is a session

    @property
    def _who(self) -> str:
        return f"node '{self.name}'"

    def _inputs(self, values: Values) -> Values:
        for tensor, spec in self._looks_at:
            shape = values[tensor].shape
            sizes = shape[len(shape) - len(spec.dims) :]
            if not all(dim in (-1, size) for dim, size in zip(spec.dims, sizes, strict=True)):
                found = f"tensor '{tensor}' has shape {format_shape(sizes)}"
                raise InvalidRequest(f"{self._who}: {found}, and its input '{spec.name}' is {text_of(spec)}")
        inputs: Values = {}
        for own, tensor, reshaped in self._reads:
            value = values[tensor]
            if self._lacks_rows:
                value = value.reshape((1, *value.shape))
            elif reshaped:
                lead = 1 if self.spec.max_batch_size > 0 else 0
                value = value.reshape(
                    (*value.shape[:lead], *resolve_reshape(value.shape[lead:], reshaped.dims, reshaped.reshape or ()))
                )
            inputs[own] = value
        if self._adds_rows:
            self._check_rows(inputs)
        return inputs

    def _check_rows(self, inputs: Values) -> None:
        """Where its segment has none, the rows of a model come with its tensors."""
        counts = {tensor.shape[0] for tensor in inputs.values()}
        if len(counts) > 1 or max(counts) > self.spec.max_batch_size:
            told = " and ".join(map(str, sorted(counts)))
            most = self.spec.max_batch_size
            raise InvalidRequest(f"{self._who}: its inputs have {told} rows; model '{self.spec.name}' takes up to {most}, alike")

    def _call(self, inputs: Values, batch: Batch, rows: int) -> Outputs | Iterator[Piece] | Rows:
        if self.signature.is_class:
            return self._runs.run(inputs, batch)  # type: ignore[arg-type, return-value]
        result = self._runs.run(_Call(inputs, batch, rows, self._wanted))  # type: ignore[arg-type]
        if result is None:
            raise self._in_pieces()
        return result  # type: ignore[return-value]  # only a class gives rows

    def _together(self, pieces: Iterator[Piece], batch: Batch, rows: int) -> tuple[Outputs, dict[int, HeadraceError]]:
        """One answer for each request, as outputs of those that did not fail, if there are any. One that is alone raises."""
        counts = [after - before for before, after in pairwise(batch.offsets)] if rows == batch.rows else [rows]
        answers: dict[int, Outputs] = {}
        failed: dict[int, HeadraceError] = {}
        for place, piece, is_final in pieces:
            if not is_final or place in answers or place in failed:
                raise self._in_pieces()
            try:
                if isinstance(piece, HeadraceError):
                    raise piece
                answers[place] = checked_outputs(self.spec, piece, self._wanted, counts[place])
            except HeadraceError as error:
                failed[place] = error
        if len(answers) + len(failed) < len(counts):
            raise self._in_pieces()
        if failed and len(counts) == 1:
            raise failed[0]
        together = [answers[place] for place in sorted(answers)]
        return {name: concatenate([each[name] for each in together]) for name in self._wanted if together}, failed

    def _in_pieces(self) -> BackendFailed:
        return BackendFailed(f"{self._who}: model '{self.spec.name}' answers in pieces, which a graph cannot be given")


def is_rehearsal(batch: Batch) -> bool:
    """Whether no client has sent it: it warms something up, or measures it."""
    return is_rehearsal(batch.whole) if isinstance(batch, (_Call, Rest)) else isinstance(batch, Zeros)


def _maker(batch: Batch) -> tuple[int, int]:
    """The batch of a queue that this one is, or is a part of: its number, and the ledger's number of its version."""
    while isinstance(batch, (_Call, Rest)):
        batch = batch.whole
    return getattr(batch, "number", 0), getattr(batch, "model_number", 0)


class _Call:
    """What the session of a model sees of a batch; `whole` is the graph's."""

    __slots__ = ("_tensors", "_wanted", "offsets", "rows", "whole")

    def __init__(self, tensors: Values, batch: Batch, rows: int, wanted: tuple[str, ...]) -> None:
        self._tensors, self.whole, self.rows, self._wanted = tensors, batch, rows, wanted
        self.offsets = batch.offsets if rows == batch.rows else [0, rows]

    @property
    def requests(self) -> list[Request]:
        """The requests of the graph."""
        return self.whole.requests

    @property
    def heads(self) -> list[Head]:
        """See `backends.base.Batch.heads`. What they get here is what the graph reads."""
        return [head._replace(outputs=self._wanted) for head in self.whole.heads]

    def tensors(self) -> Values:
        """The inputs, by the model's names."""
        return self._tensors

    def wanted(self) -> tuple[str, ...]:
        """The outputs that are read, or answered."""
        return self._wanted

    def away(self) -> None:
        """So is the graph's batch, if for a while."""
        self.whole.away()
