"""A batch: entries that run together, their tensors gathered, their answers scattered.

Belongs to one instance thread from `take` to the end of its `with` block; leaving the block fails whatever was not answered.
Taken apart, each of its parts belongs to whoever holds it, and dropping that fails what was not answered.
"""

from __future__ import annotations

import _thread
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol

from headrace.clock import Clock
from headrace.errors import BackendFailed, Broken, HeadraceError
from headrace.ledger.records import BatchRecord
from headrace.model import ModelSpec
from headrace.request import Head, Origin, Request, Response
from headrace.scheduling.answers import checked_outputs, deliver, log_failure, response_of
from headrace.scheduling.base import Batch
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

    def parted(self, entry: PortableEntry, gone: Callable[[], None]) -> None:
        """Call `gone` when an entry is cancelled before it is answered, or now if it was."""
        ...

    def origin_within(self, entry: PortableEntry) -> Origin:
        """Where what is sent on for an entry comes from."""
        ...

    def finished(self, record: BatchRecord) -> None:
        """The batch is answered in full, or taken apart."""
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
    def heads(self) -> list[Head]:
        """Of each request, what goes along with what is sent on for it."""
        return [
            Head(
                request.model,
                request.id,
                request.parameters,
                request.deadline,
                request.timeout_ns,
                request.priority,
                request.sequence,
                request.received,
                self._owner.origin_within(entry),
                tuple(entry.admitted.outputs),
            )
            for entry, request in ((entry, entry.request) for entry in self._entries)
        ]

    @property
    def model_number(self) -> int:
        """The ledger's number of the version."""
        return self._owner.model_number

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

    def away(self) -> None:
        """Nothing is left of the batch before: see `scheduling.base.Batch.away`."""

    def only(self, index: int) -> PortableBatch:
        """The request at `index` as a batch of its own, to be run again alone. It is still answered by this one."""
        return self.between(index, index + 1)

    def between(self, first: int, last: int) -> PortableBatch:
        """The requests from `first` to `last` as `only` gives one."""
        return PortableBatch(self._owner, self.number, self._entries[first:last], self._instance, self._reason, self._taken)

    def part(self, gone: Callable[[int], None]) -> list[Batch]:
        """Each request as a batch of its own, to be answered later, from any thread. See `scheduling.base.Batch.part`."""
        self._executed = self._scattered = self._owner.clock.now()
        parts: list[Batch] = [PortablePart(self, index) for index in range(len(self))]
        left = list(self._open)
        self._open.clear()
        for index in left:
            self._owner.parted(self._entries[index], partial(gone, index))
        return parts

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
        indices = [i for i in list(self._open) if index in (None, i)]
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
            self._finish()
        return True

    def _finish(self) -> None:
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
                predicted=self._entries[0].predicted,
            )
        )

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
            if answer.is_final and self._open.pop(index, None) is None:
                continue
            if self._owner.answering(entry) if answer.is_final else entry.state is EntryState.TAKEN:
                answers.append(answer)
        deliver(answers, scattered)


class PortablePart(PortableBatch):
    """The request at `index` of a batch that was taken apart. What it went through before, and the record, are the batch's."""

    def __init__(self, whole: PortableBatch, index: int) -> None:
        super().__init__(whole._owner, whole.number, [whole._entries[index]], whole._instance, whole._reason, whole._taken)
        if index not in whole._open:
            self._open.clear()

    def tensors(self) -> Mapping[str, Tensor]:
        """The inputs of this request by name."""
        stamps = self._entries[0].stamps
        gathered = stamps.gathered
        tensors = super().tensors()
        stamps.gathered = gathered or stamps.gathered
        return tensors

    def _finish(self) -> None:
        """Nothing is left to tell: the batch is in the ledger."""

    def __del__(self) -> None:
        if self._open:
            # In a thread of its own: the garbage collector drops things anywhere, even where the lock of the queue is held. At
            # the end of the interpreter there are no new threads, and nobody who waits.
            with contextlib.suppress(RuntimeError):
                _thread.start_new_thread(self.__exit__, (None, None, None))
