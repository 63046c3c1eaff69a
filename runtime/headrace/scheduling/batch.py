"""A batch: entries that run together, their tensors gathered, their answers scattered.

Belongs to one instance thread from `take` to the end of its `with` block; leaving the block fails whatever was not answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Protocol

from headrace.clock import Clock
from headrace.errors import BackendFailed, Broken, HeadraceError
from headrace.ledger.ledger import BatchRecord
from headrace.model import ModelSpec
from headrace.request import Request, Response
from headrace.scheduling.answers import checked_outputs, deliver, log_failure, response_of
from headrace.scheduling.entry import Answer, EntryState, PortableEntry
from headrace.scheduling.padding import cut, padded_inputs, padding_of
from headrace.scheduling.plan import Reason
from headrace.tensor import Tensor, concatenate, rows_of


class Owner(Protocol):
    """What a batch needs of its queue."""

    spec: ModelSpec
    clock: Clock
    model_number: int

    def answering(self, entry: PortableEntry) -> bool:
        """Mark an entry answered; False when it was cancelled, and nobody wants the answer."""
        ...

    def finished(self, record: BatchRecord) -> None:
        """The batch is answered in full."""
        ...


class PortableBatch:
    """The batch of the portable queue."""

    def __init__(
        self, owner: Owner, number: int, entries: Sequence[PortableEntry], instance: int, reason: Reason, taken: int
    ) -> None:
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
        self._padded = entries[0].admitted.padded

    @property
    def rows(self) -> int:
        """Rows in all; 1 when the model does not batch."""
        return self.offsets[-1]

    @property
    def requests(self) -> list[Request]:
        """The requests, in the order of their rows."""
        return [entry.request for entry in self._entries]

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits: a request that is open, was not cancelled, and is not past its deadline."""
        now = self._owner.clock.now()
        return any(not entry.cancelled and entry.due.deadline > now for entry in self._open.values())

    def __len__(self) -> int:
        return len(self._entries)

    def wanted(self) -> tuple[str, ...]:
        """The outputs somebody asked for, in the order the model declares them."""
        asked = {name for entry in self._entries for name in entry.admitted.outputs}
        return tuple(o.name for o in self._owner.spec.outputs if o.name in asked)

    def tensors(self) -> Mapping[str, Tensor]:
        """The inputs by name, rows of all requests stacked; gathered by the first call."""
        if self._tensors is None:
            members = [entry.admitted for entry in self._entries]
            if self._padded:
                self._tensors = padded_inputs(self._owner.spec, members)
            else:
                self._tensors = {name: concatenate([m.inputs[name] for m in members]) for name in members[0].inputs}
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
        checked = checked_outputs(self._owner.spec, outputs, self.wanted(), self.rows, self._padded)
        self._stamp_executed(self._open.values())
        responses: dict[int, Response | HeadraceError] = {}
        for index, entry in self._open.items():
            mine = {name: self._slice(checked[name], index) for name in entry.admitted.outputs}
            responses[index] = response_of(entry.request, self._owner.spec, self._cut(mine, entry), final=True)
        self._deliver(responses)

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
        wanted, checked = entry.admitted.outputs, dict[str, Tensor]()
        if outputs or not final:
            checked = checked_outputs(self._owner.spec, outputs, wanted, rows, self._padded)
        self._stamp_executed([entry])
        response = response_of(entry.request, self._owner.spec, self._cut(checked, entry), final=final)
        if isinstance(response, HeadraceError) and not final:
            self._given_up.add(index)
        self._deliver({index: response})

    def fail(self, error: HeadraceError, index: int | None = None) -> None:
        """Answer with an error: the request at `index`, or all that are still open."""
        indices = list(self._open) if index is None else [index]
        self._failed += len(indices)
        self._stamp_executed(self._open[i] for i in indices)
        self._deliver(dict.fromkeys(indices, error))

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
                log_failure(self._owner.spec, error)
        finally:
            self._owner.finished(
                BatchRecord(
                    self.number,
                    self._taken,
                    self._gathered,
                    self._executed,
                    self._scattered,
                    self._owner.model_number,
                    max(1, self.rows),
                    len(self),
                    padding=padding_of([entry.admitted for entry in self._entries]) if self._padded else 0,
                    failed=self._failed,
                    instance=self._instance,
                    reason=self._reason,
                )
            )
        return True

    def _stamp_executed(self, entries: Iterable[PortableEntry]) -> None:
        """The model is done with these now; what never got that far keeps its zeros."""
        now = self._owner.clock.now()
        self._executed = now
        for entry in entries:
            entry.stamps.executed = now if entry.stamps.gathered else 0

    def _slice(self, tensor: Tensor, index: int) -> Tensor:
        if len(self._entries) == 1:
            return tensor
        return rows_of(tensor, self.offsets[index], self.offsets[index + 1])

    def _cut(self, outputs: dict[str, Tensor], entry: PortableEntry) -> dict[str, Tensor]:
        length = entry.admitted.length
        return outputs if length == self._padded else cut(self._owner.spec, outputs, length)

    def _deliver(self, results: Mapping[int, Response | HeadraceError]) -> None:
        """Hand one answer to each of these requests, unless nobody wants it any more."""
        scattered = self._scattered = self._owner.clock.now()
        answers: list[Answer] = []
        for index, result in results.items():
            entry = self._entries[index]
            answer = Answer(entry, result)
            if entry.stamps.executed:
                entry.stamps.first = entry.stamps.first or scattered
                entry.stamps.scattered = scattered
            if answer.is_final:
                del self._open[index]
            if self._owner.answering(entry) if answer.is_final else entry.state is EntryState.TAKEN:
                answers.append(answer)
        deliver(answers, scattered)
