"""An entry: one request on its way through a version, with all it needs until it is settled.

An entry is answered exactly once and settled exactly once. Its queue owns `state`; whoever delivers the answer – a sink –
settles it, which writes the ledger record and frees its place.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from headrace.errors import (
    BackendFailed,
    Cancelled,
    CannotMeetDeadline,
    ClassShed,
    Code,
    DeadlineExpired,
    Draining,
    HeadraceError,
    InvalidRequest,
    Overloaded,
    QueueClosed,
    QueueFull,
    QueueTimeout,
)
from headrace.ledger.records import Outcome, Refusal, RequestRecord
from headrace.protocol.validate import Admitted
from headrace.request import Request, Response
from headrace.scheduling.admission import Depth, Due
from headrace.scheduling.plan import NEVER


class EntryState(Enum):
    """Where an entry is."""

    PARKED = "parked"
    """In its lane, behind another."""
    WAITING = "waiting"
    """In the order, visible to plans."""
    TAKEN = "taken"
    """In a batch."""
    ANSWERED = "answered"
    """Its last answer is with the sink."""
    SETTLED = "settled"


@dataclass(slots=True)
class Stamps:
    """When a request passed each border, in ns; 0 where it did not get. Received and decoded are in the request."""

    queued: int = 0
    taken: int = 0
    gathered: int = 0
    executed: int = 0
    first: int = 0
    scattered: int = 0


class Entry(Protocol):
    """One admitted request, as its sink sees it, whatever queue it is in."""

    cancelled: bool
    bytes_out: int

    @property
    def request(self) -> Request:
        """What was asked."""
        ...

    @property
    def sink(self) -> Sink:
        """Where its answers go."""
        ...

    def settle(self, outcome: Outcome, code: Code, sent: int) -> bool:
        """Write the record and free the place. The first call counts; False says it was settled before."""
        ...

    def cancel(self) -> None:
        """Nobody wants the answer any more. What waits leaves its queue at once; what runs is not answered."""
        ...

    def wake(self) -> None:
        """Let an idle instance look at its queue."""
        ...


class EntryOwner(Protocol):
    """The queue of an entry, as the entry sees it."""

    def settle(self, entry: PortableEntry, outcome: Outcome, code: Code, sent: int) -> bool:
        """Write the record and free the place, the first time it is called for an entry; says whether it was."""
        ...

    def cancel(self, entry: PortableEntry) -> None:
        """Nobody wants the answer any more."""
        ...

    def wake(self) -> None:
        """Let an idle instance look at it."""
        ...


class PortableEntry:
    """One admitted request of a portable queue."""

    __slots__ = (
        "admitted", "batch", "bucket", "bytes_out", "cancelled", "due", "gone", "index", "key", "lane", "number", "owner",
        "predicted", "request", "sink", "size", "stamps", "state",
    )  # fmt: skip

    def __init__(
        self, owner: EntryOwner, request: Request, admitted: Admitted, due: Due, sink: Sink, lane: Hashable | None
    ) -> None:
        self.owner, self.request, self.admitted, self.due, self.sink, self.lane = owner, request, admitted, due, sink, lane
        self.number = 0
        self.key, self.bucket = due.key, admitted.bucket
        self.state = EntryState.PARKED
        self.stamps = Stamps()
        self.cancelled = False
        # Who is told, once, that it was cancelled: whoever has it as a part of its batch.
        self.gone: Callable[[], None] | None = None
        self.batch = self.index = self.bytes_out = self.predicted = 0
        # What it adds to the depth of its queue. Zero rows still count as one: they take a turn.
        self.size = Depth(1, max(1, admitted.rows), admitted.nbytes)

    def settle(self, outcome: Outcome, code: Code, sent: int) -> bool:
        """Write the record and free the place. The first call counts; False says it was settled before."""
        return self.owner.settle(self, outcome, code, sent)

    def cancel(self) -> None:
        """Nobody wants the answer any more. What waits leaves its queue at once; what runs is not answered."""
        self.owner.cancel(self)

    def wake(self) -> None:
        """Let an idle instance look at its queue."""
        self.owner.wake()

    def record(self, model: int, outcome: Outcome, code: Code, sent: int) -> RequestRecord:
        """What the ledger keeps of it."""
        request, stamps, origin = self.request, self.stamps, self.request.origin
        # By position: with so many fields, their names would cost more than the record.
        return RequestRecord(
            self.number,
            self.batch,
            request.received,
            request.decoded,
            stamps.queued,
            stamps.taken,
            stamps.gathered,
            stamps.executed,
            stamps.first,
            stamps.scattered,
            sent,
            0 if self.due.deadline == NEVER else self.due.deadline,
            self.predicted,
            self.admitted.nbytes,
            self.bytes_out,
            origin.client,
            origin.trace_high,
            origin.trace_low,
            origin.span,
            origin.parent,
            origin.parent_model,
            model,
            self.admitted.rows,
            self.index,
            self.due.level,
            outcome,
            code.value,
            _refusal_of_admitted(outcome, code),
            origin.trace_flags,
            origin.context,
        )

    def __repr__(self) -> str:
        return f"<PortableEntry {self.number} {self.state.value}, {self.admitted.rows} rows>"


@dataclass(slots=True)
class Answer:
    """One answer to one entry: a response, or the error instead of it."""

    entry: Entry
    result: Response | HeadraceError

    @property
    def is_final(self) -> bool:
        """Whether the entry gets no further answer."""
        return isinstance(self.result, HeadraceError) or self.result.final

    def settle(self, sent: int, bytes_out: int = 0) -> None:
        """Say that this, a final answer, has been handed over at instant `sent` (ns)."""
        self.entry.bytes_out += bytes_out
        if isinstance(self.result, HeadraceError):
            self.entry.settle(outcome_of(self.result), self.result.code, sent)
        else:
            self.entry.settle(Outcome.ANSWERED, Code.OK, sent)


def _refusal_of_admitted(outcome: Outcome, code: Code) -> Refusal:
    """Whoever was admitted is refused because the plan dropped it, or because the queue was abandoned."""
    if outcome is not Outcome.REFUSED:
        return Refusal.NONE
    return Refusal.CANNOT_MEET_DEADLINE if code is Code.RESOURCE_EXHAUSTED else Refusal.QUEUE_CLOSED


class Sink(Protocol):
    """Where answers go: the network, or a caller in this process."""

    def deliver(self, answers: Sequence[Answer]) -> None:
        """Take these answers; called once per batch, from the thread that ran it. Must not block.

        The sink settles each final answer when it has handed it over.
        """
        ...


def outcome_of(error: HeadraceError) -> Outcome:
    """How a request ended that got this error."""
    if isinstance(error, (DeadlineExpired, QueueTimeout)):
        return Outcome.EXPIRED
    if isinstance(error, Cancelled):
        return Outcome.CANCELLED
    if isinstance(error, Overloaded):
        return Outcome.REFUSED
    if isinstance(error, BackendFailed):
        return Outcome.FAILED
    if isinstance(error, InvalidRequest) or error.code in (Code.NOT_FOUND, Code.UNIMPLEMENTED):
        return Outcome.INVALID
    return Outcome.FAILED


_REFUSALS = {
    QueueFull: Refusal.QUEUE_FULL,
    QueueClosed: Refusal.QUEUE_CLOSED,
    Draining: Refusal.DRAINING,
    CannotMeetDeadline: Refusal.CANNOT_MEET_DEADLINE,
    ClassShed: Refusal.CLASS_SHED,
}


def refusal_of(error: HeadraceError) -> Refusal:
    """Why a request was refused that got this error; NONE if it ended otherwise."""
    if outcome_of(error) is not Outcome.REFUSED:
        return Refusal.NONE
    return _REFUSALS.get(type(error), Refusal.OTHER)
