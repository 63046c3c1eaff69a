"""The portable queue: what waits for one loaded version, in order.

Owner: the version. Threads: transports push, instance threads take turns, the expiry thread drops what is overdue, sinks
settle. One lock guards everything here; nobody is called with it held but the clock. Invariants: an entry is in `_order` iff
it is WAITING; `_unsettled` counts every pushed entry until its record is written; one turn is open at a time.
"""

from __future__ import annotations

import heapq
import itertools
import struct
import threading
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from headrace.clock import Clock
from headrace.errors import (
    Cancelled,
    CannotMeetDeadline,
    ClassShed,
    Code,
    DeadlineExpired,
    HeadraceError,
    QueueClosed,
    QueueFull,
    QueueTimeout,
)
from headrace.ledger.ledger import Ledger
from headrace.ledger.records import BatchRecord, Outcome
from headrace.model import ModelSpec
from headrace.protocol.validate import Validator
from headrace.request import Origin, Request
from headrace.scheduling.admission import BEHIND_EVERYONE, Ahead, Depth, Limits, due, in_share, policy_of, refusal
from headrace.scheduling.answers import deliver
from headrace.scheduling.batch import PortableBatch
from headrace.scheduling.entry import Answer, EntryState, PortableEntry, Sink
from headrace.scheduling.padding import settle_padding
from headrace.scheduling.plan import NEVER, VIEW, VIEW_FORMAT, Plan

_VIEW = struct.Struct(VIEW_FORMAT)


class PortableQueue:
    """See `scheduling.base.Queue`."""

    niceness = 10
    """The loop that reads requests holds the interpreter while it does. Whoever runs them lets it go first, and finds more."""

    def __init__(
        self, spec: ModelSpec, limits: Limits, ledger: Ledger, clock: Clock, expires: Callable[[PortableQueue, int], None]
    ) -> None:
        self.spec, self.clock = spec, clock
        self.model_number, above = ledger.open_account(spec)
        self._limits, self._ledger, self._expires = limits, ledger, expires
        self._validator = Validator(spec)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._all_settled = threading.Condition(self._lock)
        self._numbers, self._batches = itertools.count(above + 1), itertools.count(above + 1)
        self._order: list[tuple[int, int, PortableEntry, bytes]] = []
        self._waiting: dict[int, PortableEntry] = {}
        self._overdue: list[tuple[int, int]] = []
        self._lanes: dict[Hashable, deque[PortableEntry]] = {}
        self._depth = Depth()
        self._in_level: Counter[int] = Counter()
        self._came: Counter[int] = Counter()
        """Requests of each class that came while it was shed."""
        self._in_bucket: Counter[int] = Counter()
        """Rows that wait, by bucket."""
        self._unsettled = self._running = 0
        self._free_at: dict[int, int] = {}
        """By instance, when it is predicted to be idle again."""
        self._turn_open = self._has_news = self._closed = False

    def push(self, request: Request, sink: Sink) -> PortableEntry:
        """Admit a request. See `scheduling.base.Queue.push`."""
        admitted = self._validator.admit(request)
        now = self.clock.now()
        times = due(request, self.spec.batching, now)
        entry = PortableEntry(self, request, admitted, times, sink, self._lane(request))
        with self._lock:
            if self._closed:
                raise QueueClosed(request.id)
            own_limit = policy_of(self.spec.batching, times.level).max_requests
            if own_limit and self._in_level[times.level] >= own_limit:
                raise QueueFull(request.id)
            self._check_shed(times.level)
            ahead = Ahead(self._in_bucket.items(), self._first(times.key), self._idle_at())
            error = refusal(request.id, entry, self._depth, ahead, self._limits, now)
            if error is not None:
                raise error
            entry.number = next(self._numbers)
            entry.stamps.queued = now
            self._unsettled += 1
            self._waiting[entry.number] = entry
            self._count(entry, +1)
            self._line_up(entry)
            is_first = self._note_overdue(entry, min(times.deadline, times.queue_until))
        if is_first:
            self._expires(self, min(times.deadline, times.queue_until))
        return entry

    def wake(self) -> None:
        """Let an idle instance look at what was pushed."""
        with self._lock:
            self._changed.notify()

    def cancel(self, entry: PortableEntry) -> None:
        """Nobody wants the answer any more. What waits leaves at once; what runs is not answered."""
        with self._lock:
            entry.cancelled = True
            gone, entry.gone = entry.gone, None
            waits = entry.number in self._waiting
            if waits:
                self._leave(entry, EntryState.ANSWERED)
            done = waits or entry.state is EntryState.ANSWERED
        if done:
            entry.settle(Outcome.CANCELLED, Code.CANCELLED, self.clock.now())
        if gone is not None:
            gone()

    def settle(self, entry: PortableEntry, outcome: Outcome, code: Code, sent: int) -> bool:
        """Write the record and free the place, the first time it is called for an entry; says whether it was."""
        with self._lock:
            if entry.state is EntryState.SETTLED:
                return False
            entry.state = EntryState.SETTLED
            if entry.cancelled:
                outcome, code = Outcome.CANCELLED, Code.CANCELLED
        try:
            # The record first: whoever waits for the last entry to be settled finds it in the ledger.
            self._ledger.write(entry.record(self.model_number, outcome, code, sent))
        finally:
            with self._lock:
                self._unsettled -= 1
                if entry.lane is not None:
                    self._free_lane(entry.lane)
                if not self._unsettled:
                    self._all_settled.notify_all()
        return True

    def turn(self, until: int | None, *, keeps: bool = False) -> PortableTurn | None:
        """Wait for something to plan. See `scheduling.base.Queue.turn`; answers have left when they were given."""
        with self._lock:
            while True:
                if self._closed and not self._order and not self._lanes:
                    return None
                fresh = until is None or self._has_news or self._closed or until <= self.clock.now()
                if self._order and fresh and not self._turn_open and not self._is_held():
                    self._turn_open, self._has_news = True, False
                    return PortableTurn(self, self._view(), self._closed, self._busy_until())
                self.clock.wait(self._changed, None if not self._order else until)

    def set_limits(self, limits: Limits) -> None:
        """Change the bounds, from the next push on."""
        with self._lock:
            self._limits = limits

    def depth(self) -> Depth:
        """What waits."""
        with self._lock:
            return self._depth

    def wait_settled(self, until: int) -> bool:
        """Wait until every pushed entry is settled, or `until` (ns); says whether it is so."""
        with self._all_settled:
            while self._unsettled and self.clock.now() < until:
                self.clock.wait(self._all_settled, until)
            return not self._unsettled

    def close(self) -> None:
        """Take no more. What is queued is still served."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Take no more, and refuse what waits."""
        self.close()
        with self._lock:
            left = list(self._waiting.values())
            for entry in left:
                self._leave(entry, EntryState.ANSWERED)
            self._changed.notify_all()
        deliver([Answer(entry, QueueClosed(entry.request.id)) for entry in left], self.clock.now())

    def expire(self, now: int) -> int | None:
        """Answer what is overdue at `now` and still waits. Returns the instant to come back at, if any."""
        gone: list[PortableEntry] = []
        with self._lock:
            while self._overdue and self._overdue[0][0] <= now:
                entry = self._waiting.get(heapq.heappop(self._overdue)[1])
                if entry is None:
                    continue
                if entry.due.deadline > now and policy_of(self.spec.batching, entry.due.level).delay:
                    self._postpone(entry)
                    self._changed.notify()
                else:
                    self._leave(entry, EntryState.ANSWERED)
                    gone.append(entry)
            again = self._overdue[0][0] if self._overdue else None
        self._answer_dropped(gone, QueueTimeout(), now)
        return again

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        counts = f"{self._depth.requests} waiting, {self._unsettled} unsettled, {self._running} running"
        return f"<PortableQueue {self.spec.name}/{self.spec.version} {state}, {counts}>"

    # What turns and batches ask of their queue.

    def close_turn(self, plan: Plan, instance: int) -> PortableBatch | None:
        """Carry out a plan and end the turn."""
        now = self.clock.now()
        with self._lock:
            expired = [self._waiting[n] for n in plan.drop if n in self._waiting]
            for entry in expired:
                self._leave(entry, EntryState.ANSWERED)
            entries = [self._waiting[n] for n in plan.take if n in self._waiting]
            # A bucket in the view is a hash; entries share a batch only if the shapes themselves are equal.
            entries = [e for e in entries if e.admitted.shapes == entries[0].admitted.shapes]
            number = next(self._batches) if entries else 0
            for index, entry in enumerate(entries):
                self._leave(entry, EntryState.TAKEN)
                entry.batch, entry.index, entry.stamps.taken = number, index, now
                entry.predicted = plan.predicted
            self._running += bool(entries)
            if entries and self._limits.estimate is not None:
                rows = sum(entry.size.rows for entry in entries)
                self._free_at[instance] = now + self._limits.estimate.lasts(entries[0].bucket, rows)
            self._turn_open = False
            self._changed.notify_all()
        self._answer_dropped(expired, CannotMeetDeadline(), now)
        if self.spec.padding is not None:
            settle_padding(entries)
        return PortableBatch(self, number, entries, instance, plan.reason, now) if entries else None

    def abandon_turn(self) -> None:
        """End a turn that no plan came out of."""
        with self._lock:
            self._turn_open = False
            self._changed.notify_all()

    def answering(self, entry: PortableEntry) -> bool:
        """Mark an entry answered; False when it was cancelled or its sink is lost, and nobody wants the answer."""
        with self._lock:
            entry.gone = None
            if entry.state is EntryState.SETTLED:
                return False
            entry.state = EntryState.ANSWERED
            wanted = not entry.cancelled
        if not wanted:
            entry.settle(Outcome.CANCELLED, Code.CANCELLED, self.clock.now())
        return wanted

    def parted(self, entry: PortableEntry, gone: Callable[[], None]) -> None:
        """Tell whoever has this entry as a part of its batch when it is cancelled, or that it was."""
        with self._lock:
            is_gone = entry.cancelled
            entry.gone = None if is_gone else gone
        if is_gone:
            gone()

    def origin_within(self, entry: PortableEntry) -> Origin:
        """Where what is sent on for an entry comes from."""
        return self._ledger.origin_within(entry.request.origin, self.model_number, entry.number)

    def finished(self, record: BatchRecord) -> None:
        """The batch is answered in full."""
        self._ledger.write_batch(record)
        with self._lock:
            self._running -= 1
            self._free_at[record.instance] = 0
            self._changed.notify_all()

    # With the lock held.

    def _check_shed(self, level: int) -> None:
        share = self._limits.shed.get(level)
        if share is not None:
            self._came[level] += 1
            if in_share(self._came[level], share):
                raise ClassShed(level)

    def _lane(self, request: Request) -> Hashable | None:
        return request.sequence.id if self.spec.sequences and request.sequence is not None else None

    def _is_held(self) -> bool:
        """With `preserve_ordering`, one batch at a time: the next could overtake it."""
        return self.spec.batching.preserve_ordering and self._running > 0

    def _first(self, key: int) -> Iterator[tuple[int, int, int]]:
        """Bucket, rows and deadline of everybody who goes before a newcomer with this key."""
        return ((entry.bucket, entry.size.rows, entry.due.deadline) for at, _, entry, _ in self._order if at <= key)

    def _idle_at(self) -> int:
        """When the first of the instances is predicted to be idle; one that has not taken anything yet is."""
        estimate = self._limits.estimate
        if estimate is None or len(self._free_at) < estimate.instances:
            return 0
        return min(self._free_at.values())

    def _busy_until(self) -> int:
        return min((at for at in self._free_at.values() if at), default=0)

    def _count(self, entry: PortableEntry, sign: int) -> None:
        size, depth = entry.size, self._depth
        self._in_level[entry.due.level] += sign
        self._in_bucket[entry.bucket] += sign * size.rows
        if not self._in_bucket[entry.bucket]:
            del self._in_bucket[entry.bucket]
        self._depth = Depth(depth.requests + sign, depth.rows + sign * size.rows, depth.nbytes + sign * size.nbytes)

    def _line_up(self, entry: PortableEntry) -> None:
        """Into the order, or behind the others of its lane."""
        if entry.lane is not None:
            lane = self._lanes.get(entry.lane)
            if lane is not None:
                lane.append(entry)
                return
            self._lanes[entry.lane] = deque()
        self._show(entry)

    def _note_overdue(self, entry: PortableEntry, at: int) -> bool:
        """Remember when to expire an entry; True when that is earlier than all others."""
        if at == NEVER:
            return False
        if len(self._overdue) > 2 * len(self._waiting) + 1024:
            # Those that were answered in time are still in here: far deadlines at a high rate would pile up.
            self._overdue = [(when, number) for when, number in self._overdue if number in self._waiting]
            heapq.heapify(self._overdue)
        is_first = not self._overdue or at < self._overdue[0][0]
        heapq.heappush(self._overdue, (at, entry.number))
        return is_first

    def _show(self, entry: PortableEntry) -> None:
        entry.state = EntryState.WAITING
        times, size = entry.due, entry.size
        seen = _VIEW.pack(
            entry.number,
            entry.key,
            entry.stamps.queued,
            times.target,
            times.deadline,
            entry.bucket,
            size.nbytes,
            size.rows,
            times.level,
            entry.admitted.padded,
        )
        insort(self._order, (entry.key, entry.number, entry, seen))
        self._has_news = True

    def _hide(self, entry: PortableEntry) -> None:
        del self._order[bisect_left(self._order, (entry.key, entry.number))]

    def _postpone(self, entry: PortableEntry) -> None:
        """Behind everyone whose time is not over, until its deadline if it has one."""
        shown = entry.state is EntryState.WAITING
        if shown:
            self._hide(entry)
        entry.key += BEHIND_EVERYONE
        if shown:
            self._show(entry)
        self._note_overdue(entry, entry.due.deadline)

    def _leave(self, entry: PortableEntry, state: EntryState) -> None:
        """Out of the queue, into a batch or to be answered. Its lane stays busy until it is settled."""
        if entry.state is EntryState.WAITING:
            self._hide(entry)
        elif entry.lane is not None:
            self._lanes[entry.lane].remove(entry)
            entry.lane = None
        entry.state = state
        del self._waiting[entry.number]
        self._count(entry, -1)

    def _view(self) -> NDArray[np.void]:
        most = 4 * max(1, self.spec.max_batch_size)
        return np.frombuffer(b"".join(seen for _, _, _, seen in self._order[:most]), VIEW)

    def _free_lane(self, lane: Hashable) -> None:
        behind = self._lanes[lane]
        if behind:
            self._show(behind.popleft())
            self._changed.notify()
        else:
            del self._lanes[lane]
            self._changed.notify_all()

    def _answer_dropped(self, entries: list[PortableEntry], early: HeadraceError, now: int) -> None:
        """Entries that left before their turn; `early` is for those whose deadline has not come yet."""
        answers: list[Answer] = []
        for entry in entries:
            error = early if entry.due.deadline > now else DeadlineExpired(self.spec.name)
            answers.append(Answer(entry, Cancelled() if entry.cancelled else error))
        deliver(answers, now)


class PortableTurn:
    """See `scheduling.base.Turn`. As a context manager, it gives itself back if no plan was carried out."""

    def __init__(self, queue: PortableQueue, view: NDArray[np.void], is_last_call: bool, busy_until: int) -> None:
        self._queue, self.view, self.is_last_call, self.busy_until = queue, view, is_last_call, busy_until
        self.sent, self.sent_late, self._open = 0, 0, True

    def take(self, plan: Plan, instance: int) -> PortableBatch | None:
        """Carry out a plan; None when nothing of it was left to take."""
        self._open = False
        return self._queue.close_turn(plan, instance)

    def __enter__(self) -> PortableTurn:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._open:
            self._queue.abandon_turn()
