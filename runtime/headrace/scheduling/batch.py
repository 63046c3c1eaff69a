"""A batch: entries that run together, their tensors gathered, their answers scattered.

Belongs to one instance thread from `take` to the end of its `with` block; leaving the block fails whatever was not answered.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Protocol

from headrace.clock import Clock
from headrace.errors import BackendFailed, Broken, Code, HeadraceError, InvalidRequest, sentence
from headrace.ledger.ledger import BatchRecord, Outcome
from headrace.model import ModelSpec
from headrace.protocol.classification import classified
from headrace.protocol.validate import resolve_reshape
from headrace.request import Request, Response
from headrace.scheduling.entry import Answer, Entry, EntryState, Sink
from headrace.scheduling.plan import Reason
from headrace.tensor import Tensor, TensorSpec, concatenate, datatype_of, format_shape, rows_of

log = logging.getLogger(__name__)


class Owner(Protocol):
    """What a batch needs of its queue."""

    spec: ModelSpec
    clock: Clock
    model_number: int

    def answering(self, entry: Entry) -> bool:
        """Mark an entry answered; False when it was cancelled, and nobody wants the answer."""
        ...

    def finished(self, record: BatchRecord) -> None:
        """The batch is answered in full."""
        ...


class PortableBatch:
    """The batch of the portable queue."""

    def __init__(self, owner: Owner, number: int, entries: Sequence[Entry], instance: int, reason: Reason, taken: int) -> None:
        self._owner, self._entries, self._instance, self._reason = owner, entries, instance, reason
        self.number = number
        self._open = dict(enumerate(entries))
        self._given_up: set[int] = set()
        self._tensors: Mapping[str, Tensor] | None = None
        self._taken, self._failed = taken, 0
        self._gathered = self._executed = self._scattered = 0
        self.offsets = [0]
        for entry in entries:
            self.offsets.append(self.offsets[-1] + entry.admitted.rows)

    @property
    def rows(self) -> int:
        """Rows in all; 1 when the model does not batch."""
        return self.offsets[-1]

    @property
    def requests(self) -> list[Request]:
        """The requests, in the order of their rows."""
        return [entry.request for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def wanted(self) -> tuple[str, ...]:
        """The outputs somebody asked for, in the order the model declares them."""
        asked = {name for entry in self._entries for name in entry.admitted.outputs}
        return tuple(o.name for o in self._owner.spec.outputs if o.name in asked)

    def tensors(self) -> Mapping[str, Tensor]:
        """The inputs by name, rows of all requests stacked; gathered by the first call."""
        if self._tensors is None:
            first = self._entries[0].admitted.inputs
            self._tensors = {name: concatenate([e.admitted.inputs[name] for e in self._entries]) for name in first}
            self._gathered = self._owner.clock.now()
            for entry in self._entries:
                entry.stamps.gathered = self._gathered
        return self._tensors

    def only(self, index: int) -> PortableBatch:
        """The request at `index` as a batch of its own, to be run again alone. It is still answered by this one."""
        return PortableBatch(self._owner, self.number, [self._entries[index]], self._instance, self._reason, self._taken)

    def reply(self, outputs: Mapping[str, Tensor]) -> None:
        """Answer every request with its rows of `outputs`, for good.

        Args:
            outputs: tensors by name; with batching, the first dimension is the rows of the batch.

        Raises:
            BackendFailed: an output is missing, or its datatype or shape is not the declared one. Nobody is answered then.
        """
        checked = self._checked(outputs, self.wanted(), self.rows)
        self._stamp_executed(self._open.values())
        responses = {
            index: self._response(entry, {name: self._slice(checked[name], index) for name in entry.admitted.outputs}, final=True)
            for index, entry in self._open.items()
        }
        self._deliver([self._answer(index, response) for index, response in responses.items()])

    def send(self, index: int, outputs: Mapping[str, Tensor], final: bool) -> None:
        """Answer the request at `index` with `outputs` of its own; it may get several answers, the last of which is `final`.

        Each answer of a decoupled model has as many rows as it likes; any other has those of the request.

        Raises:
            BackendFailed: as `reply`; an empty `outputs` is allowed with `final`.
        """
        if index in self._given_up:
            return
        entry = self._open.get(index)
        if entry is None:
            raise Broken(f"request {index} of batch {self.number} was answered after its final answer")
        rows = None if self._owner.spec.decoupled else entry.admitted.rows
        checked = self._checked(outputs, entry.admitted.outputs, rows) if outputs or not final else {}
        self._stamp_executed([entry])
        response = self._response(entry, checked, final=final)
        if isinstance(response, HeadraceError) and not final:
            self._given_up.add(index)
        self._deliver([self._answer(index, response)])

    def fail(self, error: HeadraceError, index: int | None = None) -> None:
        """Answer with an error: the request at `index`, or all that are still open."""
        indices = list(self._open) if index is None else [index]
        self._failed += len(indices)
        self._stamp_executed(self._open[i] for i in indices)
        self._deliver([self._answer(i, error) for i in indices])

    def __enter__(self) -> PortableBatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        """Fail what was not answered. Whatever was raised ends here: it is for the clients to know, and for the log."""
        try:
            if self._open:
                self.fail(
                    BackendFailed.of(error) if error is not None else Broken(f"batch {self.number} was left without an answer")
                )
            if error is not None:
                # What clients did is for them to know; a trace is for what the model or the server did.
                level, shown = (logging.INFO, None) if isinstance(error, InvalidRequest) else (logging.ERROR, error)
                where = {"model": self._owner.spec.name, "version": self._owner.spec.version}
                log.log(level, "batch failed: %s", sentence(error), extra=where, exc_info=shown)
        finally:
            self._owner.finished(
                BatchRecord(
                    number=self.number,
                    taken=self._taken,
                    gathered=self._gathered,
                    executed=self._executed,
                    scattered=self._scattered,
                    model=self._owner.model_number,
                    rows=max(1, self.rows),
                    requests=len(self),
                    failed=self._failed,
                    instance=self._instance,
                    reason=self._reason,
                )
            )
        return True

    def _stamp_executed(self, entries: Iterable[Entry]) -> None:
        """The model is done with these now; what never got that far keeps its zeros."""
        now = self._owner.clock.now()
        self._executed = now
        for entry in entries:
            entry.stamps.executed = now if entry.stamps.gathered else 0

    def _checked(self, outputs: Mapping[str, Tensor], wanted: Sequence[str], rows: int | None) -> dict[str, Tensor]:
        declared = {o.name: o for o in self._owner.spec.outputs}
        return {name: self._checked_output(declared[name], outputs.get(name), rows) for name in wanted}

    def _checked_output(self, spec: TensorSpec, tensor: Tensor | None, rows: int | None) -> Tensor:
        model = self._owner.spec
        what = f"model '{model.name}' version {model.version}, output '{spec.name}'"
        if tensor is None:
            raise BackendFailed(f"{what}: the model did not return it")
        if datatype_of(tensor) != spec.datatype:
            raise BackendFailed(f"{what}: the model returned datatype {datatype_of(tensor)}, declared is {spec.datatype}")
        batch = 1 if model.max_batch_size > 0 else 0
        seen = spec.dims if spec.reshape is None else spec.reshape
        shape = tensor.shape
        fits = len(shape) == len(seen) + batch and all(d in (-1, s) for d, s in zip(seen, shape[batch:], strict=True))
        if not fits or (batch and rows is not None and shape[0] != rows):
            expected = (-1 if rows is None else rows, *seen) if batch else seen
            raise BackendFailed(f"{what}: the model returned shape {format_shape(shape)}, expected is {format_shape(expected)}")
        if spec.reshape is not None:
            return tensor.reshape((*shape[:batch], *resolve_reshape(shape[batch:], seen, spec.dims)))
        return tensor

    def _slice(self, tensor: Tensor, index: int) -> Tensor:
        if len(self._entries) == 1:
            return tensor
        return rows_of(tensor, self.offsets[index], self.offsets[index + 1])

    def _response(self, entry: Entry, outputs: dict[str, Tensor], *, final: bool) -> Response | HeadraceError:
        request, spec = entry.request, self._owner.spec
        if request.classes:
            try:
                outputs = classified(request, spec, outputs)
            except HeadraceError as error:
                return error
        return Response(spec.name, spec.version, request.id, outputs, final, request.placed)

    def _answer(self, index: int, result: Response | HeadraceError) -> Answer:
        answer = Answer(self._entries[index], result)
        if answer.is_final:
            del self._open[index]
        return answer

    def _deliver(self, answers: Sequence[Answer]) -> None:
        scattered = self._scattered = self._owner.clock.now()
        for answer in answers:
            stamps = answer.entry.stamps
            if stamps.executed:
                stamps.first = stamps.first or scattered
                stamps.scattered = scattered
        deliver(
            [a for a in answers if (self._owner.answering(a.entry) if a.is_final else a.entry.state is EntryState.TAKEN)],
            scattered,
        )


def deliver(answers: Sequence[Answer], now: int) -> None:
    """Hand answers to their sinks, one call a sink. A sink that raises has lost its client: its entries are settled so."""
    by_sink: dict[int, tuple[Sink, list[Answer]]] = {}
    for answer in answers:
        by_sink.setdefault(id(answer.entry.sink), (answer.entry.sink, []))[1].append(answer)
    for sink, mine in by_sink.values():
        try:
            sink.deliver(mine)
        except Exception:
            log.exception("a sink did not take its answers")
            for answer in mine:
                answer.entry.cancelled = True
                answer.entry.settle(Outcome.CANCELLED, Code.CANCELLED, now)
