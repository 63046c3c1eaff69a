"""The way between segments: rows go on into the next queue, and what comes of them goes back to the requests they belong to.

A join holds one request whose rows are under way. It is over once: when the last of them has come back, when one has failed –
the others are cancelled then –, or when its client has gone. Rows that were sent on may expire, and are never refused: their
queue has no bounds. Instead, who sends waits before it takes more, while too many are under way.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from headrace.clock import Clock
from headrace.errors import BackendFailed, Cancelled, DeadlineExpired, HeadraceError, sentence
from headrace.graph.fan import Fan, in_order, nothing, picked
from headrace.graph.segments import Border
from headrace.node import MANY
from headrace.request import Head, Request, Response
from headrace.scheduling.base import Batch, Queue
from headrace.scheduling.entry import Answer, Entry
from headrace.tensor import Tensor, TensorSpec, format_shape

log = logging.getLogger(__name__)

_MARK = 4
"""Full batches of the next segment that may be under way before the one in front waits: what its plans look at."""
_COPIED = 64 << 20
"""Bytes of tensors from above that are copied for the rows of one request before some of them must come back."""


@dataclass(slots=True)
class Piece:
    """Rows of one shape on their way to the next segment: their places among those of their request.

    They bring what the border gave, `tensors`, and of each tensor `above` it, the row that they came of, whose place is in
    `origin`. That is a copy for each, and so it is made when they are sent.
    """

    way: Way
    rows: Sequence[int]
    tensors: Mapping[str, Tensor]
    above: Mapping[str, Tensor]
    origin: Sequence[int]

    @property
    def copied(self) -> int:
        """How many bytes are copied when they are sent."""
        return sum(tensor.nbytes // max(1, tensor.shape[0]) for tensor in self.above.values()) * len(self.rows)

    def all_tensors(self) -> Mapping[str, Tensor]:
        """What the next segment gets."""
        return {**self.tensors, **{name: picked(tensor, self.origin) for name, tensor in self.above.items()}}


@dataclass(slots=True)
class Forwarded(Request):
    """A piece as a request to the next segment. Answers find their way by it."""

    join: Join | None = None
    piece: Piece | None = None


class Way:
    """From one segment to the next, over one border. It is the sink of what it sends on."""

    def __init__(self, border: Border, queue: Queue, clock: Clock, behind: Callable[[int], None]) -> None:
        assert border.segment is not None
        self.border, self.segment, self._queue, self._clock = border, border.segment, queue, clock
        self._behind = behind
        self._mark = _MARK * max(1, self.segment.max_batch_size)
        self._changed = threading.Condition()
        self._under_way = 0

    def wait_for_room(self) -> None:
        """Wait until fewer rows are under way than the next segment looks at."""
        with self._changed:
            while self._under_way >= self._mark:
                self._changed.wait()

    def begin(self, rows: int) -> None:
        """So many more rows are under way."""
        with self._changed:
            self._under_way += rows

    def end(self, rows: int, lasted: int) -> None:
        """Of one request, all rows have come back, or nobody waits for them any more; that took `lasted` ns."""
        with self._changed:
            self._under_way -= rows
            if self._under_way < self._mark:
                self._changed.notify_all()
        self._behind(lasted)

    def push(self, owner: Head, join: Join, piece: Piece, wanted: Collection[str]) -> Entry:
        """Send rows on, with the deadline and the priority of their request; of their outputs, some are `wanted`.

        Raises:
            HeadraceError: they do not fit, or the queue is closed.
        """
        request = Forwarded(
            self.segment.name,
            piece.all_tensors(),
            outputs=tuple(spec.name for spec in self.segment.outputs if spec.name in wanted),
            id=owner.id,
            parameters=owner.parameters,
            deadline=owner.deadline,
            timeout_ns=owner.timeout_ns,
            priority=owner.priority,
            received=owner.received,
            decoded=self._clock.now(),
            origin=owner.origin,
            join=join,
            piece=piece,
        )
        return self._queue.push(request, self)

    def deliver(self, answers: Sequence[Answer]) -> None:
        """See `Sink.deliver`."""
        now = self._clock.now()
        for answer in answers:
            answer.settle(now)
            request = answer.entry.request
            if isinstance(request, Forwarded) and request.join is not None and request.piece is not None:
                request.join.take(request.piece, answer.result)


class Join:
    """One request whose rows are under way.

    Args:
        rows: of the request, 1 where tensors have none.
        starts: by border, where the further rows of each of its rows begin, from 0 on.
        has_rows: whether its tensors have rows.
        clock: the clock.
    """

    def __init__(self, rows: int, starts: Mapping[str, Sequence[int]], clock: Clock, *, has_rows: bool) -> None:
        self._rows, self._starts, self._has_rows, self._clock = rows, starts, has_rows, clock
        self._lock = threading.Lock()
        self._part: Batch | None = None
        self._is_over = False
        self._left = 0
        self._began = 0
        self._owner = Head("")
        self._outputs: Sequence[TensorSpec] = ()
        self._waiting: deque[Piece] = deque()
        self._copied = 0
        self._entries: list[Entry] = []
        self._come: dict[str, list[tuple[Piece, Tensor]]] = {}
        self._own: dict[str, Tensor] = {}
        self._under_way: dict[Way, int] = {}

    def begin(
        self, part: Batch, owner: Head, outputs: Sequence[TensorSpec], own: Mapping[str, Tensor], pieces: Sequence[Piece]
    ) -> None:
        """Send the pieces on.

        Args:
            part: the request, as a batch of its own: it is answered by this from now on.
            owner: what goes along with what is sent on for it.
            outputs: what it asks the segment for.
            own: outputs that are there already.
            pieces: all that is to come back.
        """
        self._began = self._clock.now()
        with self._lock:
            self._part, self._owner, self._outputs, self._left = part, owner, outputs, len(pieces)
            self._own.update(own)
            self._waiting.extend(pieces)
            for piece in pieces:
                self._under_way[piece.way] = self._under_way.get(piece.way, 0) + len(piece.rows)
            gone = self._is_over
        for way, rows in self._under_way.items():
            way.begin(rows)
        if gone:
            self._close()
            part.fail(Cancelled())
            return
        if pieces:
            self._send()
        else:
            self._finish()

    def _send(self) -> None:
        """Send on what may be under way now, and let those behind the borders look at it."""
        sent: dict[str, Entry] = {}
        names = {spec.name for spec in self._outputs}
        try:
            while (piece := self._next()) is not None:
                entry = sent[piece.way.segment.name] = piece.way.push(self._owner, self, piece, names)
                with self._lock:
                    gone = self._is_over
                    self._entries.append(entry)
                if gone:
                    entry.cancel()
        except Exception as error:
            self.fail(BackendFailed.of(error))
        for entry in sent.values():  # one of each queue, for who looks sees all
            entry.wake()

    def _next(self) -> Piece | None:
        """What is to be sent now, if there is something."""
        with self._lock:
            if self._is_over or not self._waiting:
                return None
            copied = self._waiting[0].copied
            if self._copied and self._copied + copied > _COPIED:
                return None
            self._copied += copied
            return self._waiting.popleft()

    def take(self, piece: Piece, result: Response | HeadraceError) -> None:
        """A piece has come back."""
        if isinstance(result, HeadraceError):
            # Its words are of the segment, of which clients know nothing.
            self.fail(DeadlineExpired(self._owner.model) if isinstance(result, DeadlineExpired) else result)
            return
        with self._lock:
            if self._is_over:
                return
            for name, tensor in result.outputs.items():
                self._come.setdefault(name, []).append((piece, tensor))
            self._copied -= piece.copied
            self._left -= 1
            is_last, is_more = not self._left, bool(self._waiting)
        if is_last:
            self._finish()
        elif is_more:
            self._send()

    def fail(self, error: HeadraceError) -> None:
        """Answer with an error, and let go of what is under way."""
        if self._end():
            self._close()
            part, self._part = self._part, None
            if part is not None:
                part.fail(error)
            self._come.clear()

    def cancel(self) -> None:
        """The client has gone."""
        if self._end() and self._part is not None:
            self._close()
            part, self._part = self._part, None
            part.fail(Cancelled())
            self._come.clear()

    def _end(self) -> bool:
        with self._lock:
            is_first, self._is_over = not self._is_over, True
        return is_first

    def _close(self) -> None:
        lasted = self._clock.now() - self._began
        for way, rows in self._under_way.items():
            way.end(rows, lasted)
        with self._lock:
            entries, self._entries = self._entries, []
            self._waiting.clear()
        if self._left:
            for entry in entries:
                entry.cancel()

    def _finish(self) -> None:
        if not self._end():
            return
        self._close()
        # Who is over lets go of its part, which knows it: else only the garbage collector would find both.
        part, self._part = self._part, None
        assert part is not None
        try:
            outputs = {spec.name: self._output(spec) for spec in self._outputs}
            part.send(0, outputs, final=True)
        except HeadraceError as error:
            part.fail(error)
        except Exception as error:
            log.exception("the rows of a request could not be put together; this is a bug in Headrace")
            part.fail(BackendFailed(sentence(error)))
        self._come.clear()
        self._own.clear()

    def _output(self, spec: TensorSpec) -> Tensor:
        if spec.name in self._own:
            return self._own[spec.name]
        pieces = self._come.get(spec.name)
        if pieces is None:  # no row went on
            tensor = nothing(spec, *((self._rows,) if self._has_rows else ()))
            if math.prod(tensor.shape):
                raise BackendFailed(f"output '{spec.name}' has {format_shape(spec.dims)}, and nothing became of this request")
            return tensor
        border = pieces[0][0].way.border
        try:
            tensor = in_order([(piece.rows, tensor) for piece, tensor in pieces])
        except ValueError:
            raise _uneven(spec) from None
        return self._shaped(spec, tensor, border)

    def direct(self, spec: TensorSpec, fan: Fan, begin: int, end: int, border: Border) -> Tensor:
        """What a border node itself gave the request: its rows from `begin` to `end`, of which there is one at least.

        Raises:
            BackendFailed: they differ in shape.
        """
        if len(fan.alike([spec.name], begin, end)) > 1:
            raise _uneven(spec)
        return self._shaped(spec, fan.take(spec.name, range(begin, end)), border)

    def _shaped(self, spec: TensorSpec, tensor: Tensor, border: Border) -> Tensor:
        """All rows behind a border, as the request gets them: one for each of its own, or many for each.

        Raises:
            BackendFailed: the request has several rows, of which not all became as many.
        """
        if border.rows == MANY:
            starts = self._starts[border.node]
            counts = {b - a for a, b in pairwise(starts)}
            if len(counts) > 1:
                raise _uneven(spec)
            tensor = tensor.reshape((self._rows, counts.pop() if counts else 0, *tensor.shape[1:]))
        return tensor if self._has_rows else tensor.reshape(tensor.shape[1:])


def _uneven(spec: TensorSpec) -> BackendFailed:
    return BackendFailed(
        f"output '{spec.name}', {spec.datatype}{format_shape(spec.dims)}, differs in shape between the rows of this request, "
        "which cannot be one tensor; send one row a request"
    )


def pieces_of(way: Way, fan: Fan, above: Mapping[str, Tensor], first: int, last: int, *, has_rows: bool) -> list[Piece]:
    """What the rows `first` to `last` of a batch send over a border, in pieces of one shape that fit into a batch.

    Args:
        way: over the border.
        fan: what its node gave.
        above: tensors of the segment itself, which go with each row that came of theirs.
        first: row of the batch.
        last: and the one behind the last.
        has_rows: whether tensors of the segment have rows.
    """
    segment = way.segment
    brought = [spec.name for spec in segment.inputs]
    own, passed = [name for name in brought if name not in above], [name for name in brought if name in above]
    begin, end = fan.starts[first], fan.starts[last]
    # What comes many for one is told apart by the request it came for: such rows go alone.
    most = 1 if any(border.rows == MANY for border in segment.borders) else max(1, segment.max_batch_size)
    origin = [row for row in range(first, last) for _ in range(fan.starts[row + 1] - fan.starts[row])] if passed else []
    whole = {name: above[name] if has_rows else above[name].reshape((1, *above[name].shape)) for name in passed}
    pieces: list[Piece] = []
    for group in fan.alike(own, begin, end):
        for at in range(0, len(group), most):
            rows = group[at : at + most]
            tensors = {name: fan.take(name, rows) for name in own}
            came_of = [origin[row - begin] for row in rows] if passed else []
            pieces.append(Piece(way, [row - begin for row in rows], tensors, whole, came_of))
    return pieces
