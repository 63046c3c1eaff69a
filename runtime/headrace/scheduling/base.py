"""The seam between policy and mechanism: what the engine asks of a queue, wherever it is implemented."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.clock import Clock
from headrace.errors import HeadraceError
from headrace.ledger.ledger import Ledger
from headrace.model import ModelSpec
from headrace.request import Head, Request
from headrace.scheduling.admission import Depth, Limits
from headrace.scheduling.entry import Entry, Sink
from headrace.scheduling.plan import Plan
from headrace.tensor import Tensor


class Batch(Protocol):
    """Entries that run together. A context manager: leaving it fails what was not answered."""

    @property
    def number(self) -> int:
        """Tells the batches of its queue apart; the records of its requests name it."""
        ...

    @property
    def model_number(self) -> int:
        """The ledger's number of the version."""
        ...

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
        """Of each request, what goes along with what is sent on for it; `outputs` are all that it gets.

        Their origin is that of what is sent on: it says that they are the parents.
        """
        ...

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits: a request that is open, was not cancelled, and is not past its deadline."""
        ...

    def __len__(self) -> int: ...

    def tensors(self) -> Mapping[str, Tensor]:
        """The inputs by name, gathered."""
        ...

    def wanted(self) -> tuple[str, ...]:
        """The outputs somebody asked for."""
        ...

    def away(self) -> None:
        """Somebody else runs it, and this thread only waits now: what was left of the batch before is done meanwhile."""
        ...

    def only(self, index: int) -> Batch:
        """One request as a batch of its own, still answered by this one."""
        ...

    def part(self, gone: Callable[[int], None]) -> list[Batch]:
        """Each request as a batch of its own, to be answered later, from any thread; this batch is over with that.

        What was answered before comes as a part that takes no more answers. Whoever drops a part unanswered fails its request.

        Args:
            gone: called with the place of a request whose client has cancelled, before this call or after it; at most once each,
                and not for those that were answered. It is called from any thread, perhaps before this call returns, and must
                not block or raise. If it refers to the parts, only the garbage collector finds out that they were dropped.
        """
        ...

    def reply(self, outputs: Mapping[str, Tensor]) -> None:
        """Answer every request with its rows, for good."""
        ...

    def send(self, index: int, outputs: Mapping[str, Tensor], final: bool) -> None:
        """One answer to one request."""
        ...

    def fail(self, error: HeadraceError, index: int | None = None) -> None:
        """An error to one request, or to all that are open."""
        ...

    def __enter__(self) -> Batch: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool: ...


class Turn(Protocol):
    """The right to take from the queue. One is open at a time; `take` gives it back, and so does leaving the context."""

    @property
    def view(self) -> NDArray[np.void]:
        """The most urgent entries, an array of `plan.VIEW`: at most 4 x `max_batch_size`."""
        ...

    @property
    def is_last_call(self) -> bool:
        """Whether the queue is closed: nobody else will come."""
        ...

    @property
    def busy_until(self) -> int:
        """When the first of the instances that run is predicted to be idle, in ns; 0 if none runs, or it is not known."""
        ...

    @property
    def sent(self) -> int:
        """When the answers of this thread's last batch had been handed over, in ns, if that was left to this turn; else 0."""
        ...

    @property
    def sent_late(self) -> int:
        """When those had been that were kept at this thread's turn before this one, in ns; 0 if none were."""
        ...

    def take(self, plan: Plan, instance: int) -> Batch | None:
        """Carry out a plan; None when nothing of it was left to take."""
        ...

    def __enter__(self) -> Turn: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Queue(Protocol):
    """What waits for one loaded version. `model_number` is the ledger's; `niceness` how far its instances step back."""

    spec: ModelSpec
    model_number: int
    niceness: int

    def push(self, request: Request, sink: Sink) -> Entry:
        """Admit a request. Nobody is woken by it: the sink calls `Entry.wake`, once for all that came together.

        Raises:
            InvalidRequest: it does not fit the version.
            QueueFull, CannotMeetDeadline: refused.
            QueueClosed: the version takes no more.
        """
        ...

    def turn(self, until: int | None, *, keeps: bool = False) -> Turn | None:
        """Wait until there is something to plan; None when the queue is closed and empty.

        Answers of this thread's last batch that have not left do so first.

        Args:
            until: come back at this instant (ns) although nothing new has arrived; None waits for an entry.
            keeps: where there is something to plan already, and no `until`, those answers are kept until the batch that is taken
                is `away`, or answered: so whoever runs it elsewhere has it sooner.
        """
        ...

    def set_limits(self, limits: Limits) -> None:
        """Change the bounds, from the next push on."""
        ...

    def depth(self) -> Depth:
        """What waits."""
        ...

    def wait_settled(self, until: int) -> bool:
        """Wait until every pushed entry is settled, or `until` (ns); says whether it is so."""
        ...

    def close(self) -> None:
        """Take no more. What is queued is still served."""
        ...

    def abandon(self) -> None:
        """Take no more, and refuse what waits."""
        ...


class OpenQueue(Protocol):
    """Opens queues."""

    def __call__(self, spec: ModelSpec, limits: Limits) -> Queue:
        """A queue for one loaded version."""
        ...


class Queues(OpenQueue, Protocol):
    """The queues of one engine."""

    def close(self) -> None:
        """End what belongs to them, when all of them are closed and empty."""
        ...


class MakeQueues(Protocol):
    """The factory of queues that a transport brings."""

    def __call__(self, ledger: Ledger, clock: Clock) -> Queues:
        """The queues of an engine with this ledger and clock."""
        ...
