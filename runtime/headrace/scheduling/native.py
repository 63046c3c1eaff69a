"""The native queue: what waits is in kernels/, and so is everything that is done once a request.

Here is what is done once a batch – the view for the plan, the arrays for the model, the outputs for the clients – and what
requests of this process need, whose answers go to Python sinks. Importing this refuses kernels that are not ours.

Owner: an engine. One thread waits for what native code has to tell: answers to local entries that no batch gave, parts of batches
that nobody wants any more, lines for the log, and that the ledger fills.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from headrace import errors, kernels
from headrace.clock import Clock
from headrace.errors import BackendFailed, Broken, HeadraceError
from headrace.ledger.ledger import Ledger
from headrace.ledger.records import Outcome
from headrace.model import ModelSpec
from headrace.protocol.validate import on_the_wire
from headrace.request import Head, Origin, Request
from headrace.request import Sequence as SequencePlace
from headrace.scheduling.admission import Depth, Limits
from headrace.scheduling.answers import checked_outputs, deliver, log_failure, response_of
from headrace.scheduling.base import Batch
from headrace.scheduling.entry import Answer, Sink, outcome_of
from headrace.scheduling.padding import cut
from headrace.scheduling.plan import VIEW, Plan
from headrace.tensor import DTYPES, BytesTensor, RawTensor, Tensor, bytes_of, rows_of

if TYPE_CHECKING:
    import headrace_kernels as native
else:
    native = kernels.load()

log = logging.getLogger(__name__)
_log_of_kernels = logging.getLogger("headrace.kernels")

_LEVELS = {"debug": logging.DEBUG, "warning": logging.WARNING, "error": logging.ERROR}


class NativeQueues:
    """The queues of one engine, in one kernel. See `scheduling.base.Queues`.

    Args:
        kernel: shared with the server that pushes into the queues.
        ledger: drained from the kernel, too, from now on.
        clock: for what is stamped in Python; the kernel goes by CLOCK_MONOTONIC.
    """

    def __init__(self, kernel: native.Kernel, ledger: Ledger, clock: Clock) -> None:
        self._kernel, self._ledger, self._clock = kernel, ledger, clock
        self._queues: WeakValueDictionary[int, NativeQueue] = WeakValueDictionary()
        ledger.add_source(kernel.take_records, kernel.share_records)
        self._thread = threading.Thread(target=self._listen, name="headrace-news", daemon=True)

    def start(self) -> NativeQueues:
        """Begin to listen to the kernel. Once."""
        self._thread.start()
        return self

    def __call__(self, spec: ModelSpec, limits: Limits) -> NativeQueue:
        """A queue for one loaded version."""
        number, above = self._ledger.open_account(spec)
        queue = NativeQueue(self._kernel.open_queue(spec, number, above, limits), spec, number, self._clock, self._ledger)
        self._queues[queue.core.id] = queue
        return queue

    def close(self) -> None:
        """End the threads of the kernel, and ours."""
        self._kernel.close()
        if self._thread.is_alive():
            self._thread.join()

    def _listen(self) -> None:
        while (news := self._kernel.next_news()) is not None:
            try:
                self.hear(*news)
            except Exception:
                log.exception("news from the kernel were not heard; this is a bug in Headrace")
            del news

    def hear(
        self,
        answers: list[tuple[int, int, str, str]],
        gone: list[tuple[int, int]],
        lines: list[tuple[str, str]],
        unsaid: int,
        fills: bool,
    ) -> None:
        """Do what the kernel has for Python: see `headrace_kernels.Kernel.next_news`."""
        if fills:
            self._ledger.drain()
        for level, line in lines:
            _log_of_kernels.log(_LEVELS[level], "%s", line)
        if unsaid:
            _log_of_kernels.warning("%d further lines were not kept", unsaid)
        told: list[Answer] = []
        for queue, number, kind, message in answers:
            found = self._queues.get(queue)
            entry = found.entry(number) if found is not None else None
            if entry is not None:
                told.append(Answer(entry, _error(kind, message)))
        deliver(told, self._clock.now())
        for queue, number in gone:
            found = self._queues.get(queue)
            if found is not None:
                found.gone(number)


class NativeEntry:
    """A request of this process in a native queue. See `scheduling.entry.Entry`."""

    __slots__ = ("bytes_out", "cancelled", "number", "queue", "request", "scattered", "sink")

    def __init__(self, queue: NativeQueue, request: Request, sink: Sink) -> None:
        self.queue, self.request, self.sink = queue, request, sink
        self.number = self.bytes_out = self.scattered = 0
        self.cancelled = False

    def settle(self, outcome: Outcome, code: errors.Code, sent: int) -> bool:
        """Write the record and free the place. The first call counts; False says it was settled before."""
        self.queue.forget(self)
        return self.queue.core.settle(self.number, outcome, code.value, self.scattered, sent, self.bytes_out)

    def cancel(self) -> None:
        """Nobody wants the answer any more. What waits leaves its queue at once; what runs is not answered."""
        self.cancelled = True
        self.queue.forget(self)
        self.queue.core.cancel(self.number)

    def wake(self) -> None:
        """Let an idle instance look at its queue."""
        self.queue.core.wake()

    def __repr__(self) -> str:
        return f"<NativeEntry {self.number}>"


@dataclass(frozen=True, slots=True)
class _Layout:
    """What batches look up in a spec: names and dtypes in its order; None is BYTES."""

    inputs: tuple[tuple[str, np.dtype[Any] | None], ...]
    outputs: tuple[str, ...]
    places: Mapping[str, int]

    @staticmethod
    def of(spec: ModelSpec) -> _Layout:
        outputs = tuple(output.name for output in spec.outputs)
        inputs = tuple((tensor.name, DTYPES.get(tensor.datatype)) for tensor in spec.inputs)
        return _Layout(inputs, outputs, {name: place for place, name in enumerate(outputs)})


class NativeQueue:
    """See `scheduling.base.Queue`."""

    niceness = 0

    def __init__(self, core: native.Queue, spec: ModelSpec, model_number: int, clock: Clock, ledger: Ledger) -> None:
        self.core, self.spec, self.model_number, self.clock, self.ledger = core, spec, model_number, clock, ledger
        self.layout = _Layout.of(spec)
        self._entries: dict[int, NativeEntry] = {}
        self._parts: WeakValueDictionary[int, NativePart] = WeakValueDictionary()
        self._parting = threading.Lock()

    def push(self, request: Request, sink: Sink) -> NativeEntry:
        """Admit a request of this process; its tensors are copied. See `scheduling.base.Queue.push`."""
        entry = NativeEntry(self, request, sink)
        inputs = [(name, *_on_the_wire(tensor)) for name, tensor in request.inputs.items()]
        try:
            entry.number = self.core.push(request, inputs, self._entries, entry)
        except native.KernelError as error:
            raise _error(*error.args) from None
        return entry

    def turn(self, until: int | None, *, keeps: bool = False) -> NativeTurn | None:
        """Wait for something to plan. See `scheduling.base.Queue.turn`."""
        opened = self.core.turn(until, keeps)
        return None if opened is None else NativeTurn(self, *opened)

    def set_limits(self, limits: Limits) -> None:
        """Change the bounds, from the next push on."""
        self.core.set_limits(limits)

    def depth(self) -> Depth:
        """What waits."""
        return Depth(*self.core.depth())

    def wait_settled(self, until: int) -> bool:
        """Wait until every pushed entry is settled, or `until` (ns); says whether it is so."""
        return self.core.wait_settled(until)

    def close(self) -> None:
        """Take no more. What is queued is still served."""
        self.core.close()

    def abandon(self) -> None:
        """Take no more, and refuse what waits."""
        self.core.abandon()

    def expire(self, now: int) -> int | None:
        """Answer what is overdue at `now` and still waits. Returns the instant to come back at, if any."""
        return self.core.expire(now)

    def entry(self, number: int) -> NativeEntry | None:
        """The entry of this number, if it is one of this process that somebody still waits for."""
        entry = self._entries.get(number)
        if entry is not None:
            entry.number = number
        return entry

    def part(self, core: native.Batch, gone: Callable[[int], None]) -> list[Batch]:
        """Take a batch apart. See `scheduling.base.Batch.part`."""
        parts: list[Batch] = []
        with self._parting:  # the kernel may tell of them at once, and is heard when they are known here
            for place, (number, part) in enumerate(core.part()):
                made = self._parts[number] = NativePart(self, part, partial(gone, place))
                parts.append(made)
        return parts

    def gone(self, number: int) -> None:
        """The client of the entry of this number, which is in a part of its batch, has gone."""
        with self._parting:
            part = self._parts.pop(number, None)
        if part is not None:
            part.cancelled()

    def forget(self, entry: NativeEntry) -> None:
        """Nobody waits for it any more."""
        self._entries.pop(entry.number, None)

    def __repr__(self) -> str:
        waiting, unsettled, running, closed = self.core.counts()
        state = "closed" if closed else "open"
        counts = f"{waiting} waiting, {unsettled} unsettled, {running} running"
        return f"<NativeQueue {self.spec.name}/{self.spec.version} {state}, {counts}>"


class NativeTurn:
    """See `scheduling.base.Turn`. As a context manager, it gives itself back if no plan was carried out."""

    __slots__ = ("_open", "_queue", "busy_until", "is_last_call", "sent", "sent_late", "view")

    def __init__(self, queue: NativeQueue, view: bytes, is_last_call: bool, busy_until: int, sent: int, sent_late: int) -> None:
        self._queue, self.is_last_call, self.busy_until, self._open = queue, is_last_call, busy_until, True
        self.sent, self.sent_late = sent, sent_late
        self.view = np.frombuffer(view, VIEW)

    def take(self, plan: Plan, instance: int) -> NativeBatch | None:
        """Carry out a plan; None when nothing of it was left to take."""
        self._open = False
        core = self._queue.core.take(plan.take, plan.drop, instance, plan.reason, plan.predicted)
        return None if core is None else NativeBatch(self._queue, core)

    def __enter__(self) -> NativeTurn:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._open:
            self._queue.core.abandon_turn()


class NativeBatch:
    """See `scheduling.base.Batch`. `only` is the one request it consists of, when it is a part of another batch."""

    def __init__(self, queue: NativeQueue, core: native.Batch, only: int | None = None) -> None:
        self._queue, self._core, self._only = queue, core, only
        self._tensors: Mapping[str, Tensor] | None = None
        self._requests: list[Request] | None = None
        self._wanted: tuple[str, ...] | None = None
        self._padded, self._lengths = core.lengths if queue.spec.padding is not None else (0, ())
        offsets = core.offsets
        self.offsets = offsets if only is None else [0, offsets[only + 1] - offsets[only]]

    @property
    def number(self) -> int:
        """Tells the batches of its queue apart."""
        return self._core.number

    @property
    def model_number(self) -> int:
        """The ledger's number of the version."""
        return self._queue.model_number

    @property
    def rows(self) -> int:
        """Rows in all; 1 when the model does not batch."""
        return self.offsets[-1]

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits: a request that is open, was not cancelled, and is not past its deadline."""
        return self._core.is_wanted

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def requests(self) -> list[Request]:
        """The requests, in the order of their rows; made when somebody looks."""
        if self._requests is None:
            mine = dict(self._core.locals)
            places = range(len(self)) if self._only is None else (self._only,)
            self._requests = [self._request(place, mine.get(place)) for place in places]
        return self._requests

    @property
    def heads(self) -> list[Head]:
        """Of each request, what goes along with what is sent on for it."""
        heads = self._core.heads()
        return [self._head(*head) for head in (heads if self._only is None else [heads[self._only]])]

    def wanted(self) -> tuple[str, ...]:
        """The outputs somebody asked for, in the order the model declares them."""
        if self._wanted is None:
            outputs = self._queue.layout.outputs
            self._wanted = tuple([outputs[place] for place in self._core.wanted(self._only)])
        return self._wanted

    def tensors(self) -> Mapping[str, Tensor]:
        """The inputs by name, rows of all requests stacked; gathered by the first call."""
        if self._tensors is None:
            try:
                gathered = self._core.gather(self._only)
            except native.KernelError as error:
                raise _error(*error.args) from None
            self._tensors = {}
            for place, shape, data, offsets in gathered:
                name, dtype = self._queue.layout.inputs[place]
                if dtype is not None:
                    self._tensors[name] = np.ndarray(shape, dtype, memoryview(data))
                elif offsets is not None:
                    begins = np.frombuffer(memoryview(offsets), np.int64)
                    self._tensors[name] = BytesTensor(shape, begins, np.frombuffer(memoryview(data), np.uint8))
        return self._tensors

    def away(self) -> None:
        """Write the answers of the batch before, if they were kept."""
        self._core.away()

    def only(self, index: int) -> NativeBatch:
        """The request at `index` as a batch of its own, to be run again alone. It is still answered by this one."""
        return NativeBatch(self._queue, self._core, index)

    def part(self, gone: Callable[[int], None]) -> list[Batch]:
        """Each request as a batch of its own, to be answered later, from any thread. See `scheduling.base.Batch.part`."""
        return self._queue.part(self._core, gone)

    def reply(self, outputs: Mapping[str, Tensor]) -> None:
        """Answer every request with its rows of `outputs`, for good.

        Raises:
            BackendFailed: an output is missing, or its datatype or shape is not the declared one. Nobody is answered then.
        """
        checked = checked_outputs(self._queue.spec, outputs, self.wanted(), self.rows, self._padded)
        self._tell(self._core.reply(self._parts(checked)), checked, shared=True, final=True)

    def send(self, index: int, outputs: Mapping[str, Tensor], final: bool) -> None:
        """Answer the request at `index` with `outputs` of its own; it may get several answers, the last of which is `final`.

        Raises:
            BackendFailed: as `reply`; an empty `outputs` is allowed with `final`.
        """
        spec = self._queue.spec
        rows = None if spec.decoupled else self.offsets[index + 1] - self.offsets[index]
        wanted = [self._queue.layout.outputs[place] for place in self._core.wanted(index)]
        checked = checked_outputs(spec, outputs, wanted, rows, self._padded) if outputs or not final else {}
        try:
            is_local = self._core.send(index, self._parts(checked), final)
        except native.KernelError as error:
            raise _error(*error.args) from None
        if is_local:
            self._tell([index], checked, shared=False, final=final)

    def fail(self, error: HeadraceError, index: int | None = None) -> None:
        """Answer with an error: the request at `index`, or all that are still open."""
        places = self._core.fail(error.code.value, error.message, outcome_of(error), index)
        self._deliver(places, lambda place, request: error)

    def __enter__(self) -> NativeBatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        """Fail what was not answered. Whatever was raised ends here: it is for the clients to know, and for the log."""
        try:
            if self._core.is_open:
                left = Broken(f"batch {self._core.number} was left without an answer")
                self.fail(BackendFailed.of(error) if error is not None else left)
            if error is not None:
                log_failure(self._queue.spec, error)
        finally:
            self._core.finish()
        return True

    def _parts(self, outputs: Mapping[str, Tensor]) -> list[tuple[int, Sequence[int], Any, Any]]:
        return [(self._queue.layout.places[name], *_as_buffers(tensor)) for name, tensor in outputs.items()]

    def _tell(self, places: Sequence[int], outputs: Mapping[str, Tensor], *, shared: bool, final: bool) -> None:
        """Make responses for local requests and hand them to their sinks."""
        if not places:
            return
        slices = shared and len(self) > 1

        def result(place: int, request: Request) -> Any:
            mine = {
                name: rows_of(outputs[name], self.offsets[place], self.offsets[place + 1]) if slices else outputs[name]
                for name in (request.outputs or self._queue.layout.outputs)
                if name in outputs
            }
            if self._padded and self._lengths[place] < self._padded:
                mine = cut(self._queue.spec, mine, self._lengths[place])
            return response_of(request, self._queue.spec, mine, final=final)

        self._deliver(places, result)

    def _deliver(self, places: Sequence[int], result: Callable[[int, Request], Any]) -> None:
        if not places:
            return
        numbers = dict(self._core.locals)
        entries = [(place, self._queue.entry(numbers[place])) for place in places]
        # Who is not there any more has cancelled.
        answers = [Answer(entry, result(place, entry.request)) for place, entry in entries if entry is not None]
        now = self._queue.clock.now()
        for _, entry in entries:
            if entry is not None:
                entry.scattered = now
        deliver(answers, now)

    def _head(  # noqa: PLR0913  # as it comes
        self,
        number: int,
        id: str,
        parameters: dict[str, Any],
        deadline: int | None,
        timeout_ns: int,
        priority: int,
        received: int,
        origin: tuple[int, ...],
        sequence: tuple[int | str, bool, bool] | None,
        outputs: Sequence[int],
    ) -> Head:
        queue = self._queue
        return Head(
            queue.spec.name,
            id,
            parameters,
            deadline,
            timeout_ns,
            priority,
            None if sequence is None else SequencePlace(*sequence),
            received,
            queue.ledger.origin_within(Origin._make(origin), queue.model_number, number),
            tuple([queue.layout.outputs[place] for place in outputs]),
        )

    def _request(self, place: int, number: int | None) -> Request:
        entry = self._queue.entry(number) if number is not None else None
        if entry is not None:
            return entry.request
        told = self._core.request(place)
        inputs = {name: RawTensor(datatype, tuple(shape), data) for name, datatype, shape, data in told.pop("inputs")}
        sequence = told.pop("sequence")
        return Request(
            inputs=inputs,
            outputs=tuple(told.pop("outputs")),
            classes=dict(told.pop("classes")),
            sequence=sequence and SequencePlace(*sequence),
            **told,
        )


class NativePart(NativeBatch):
    """One request of a batch that was taken apart. Who drops it unanswered drops its core, which then fails the request."""

    def __init__(self, queue: NativeQueue, core: native.Batch, gone: Callable[[], None]) -> None:
        super().__init__(queue, core)
        self._gone = gone

    def cancelled(self) -> None:
        """Say that nobody wants it any more, unless it is answered."""
        if self._core.is_open:
            self._gone()


def _on_the_wire(tensor: Tensor | RawTensor) -> tuple[str, Sequence[int], Any]:
    """Datatype, shape and bytes of an input."""
    if isinstance(tensor, RawTensor):
        return tensor.datatype, tensor.shape, tensor.data
    return on_the_wire(tensor)


def _as_buffers(tensor: Tensor) -> tuple[Sequence[int], Any, Any]:
    """Shape, bytes and, of BYTES, offsets of an output."""
    if isinstance(tensor, BytesTensor):
        return tensor.shape, np.ascontiguousarray(tensor.data), np.ascontiguousarray(tensor.offsets)
    return tensor.shape, bytes_of(tensor), None


def _error(kind: str, message: str, retry_after_ns: int | None = None) -> HeadraceError:
    """The error of this class with these words, which were found elsewhere."""
    cls: type[HeadraceError] = getattr(errors, kind)
    error = cls.__new__(cls, message)
    error.retry_after_ns = retry_after_ns
    return error
