"""A segment as a session: its nodes run one after the other, on the batch of one instance thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from headrace.backends.base import Batch as Readable
from headrace.backends.base import Piece as BackendPiece
from headrace.clock import Clock
from headrace.errors import BackendFailed, HeadraceError, InvalidRequest, sentence
from headrace.graph.fan import Fan
from headrace.graph.join import Join, Way, pieces_of
from headrace.graph.rest import Rest
from headrace.graph.segments import Segment
from headrace.graph.steps import Step, Values, Visits
from headrace.model import GraphIO
from headrace.scheduling.base import Batch
from headrace.tensor import Tensor, rows_of

log = logging.getLogger(__name__)


_Done: TypeAlias = tuple[int, Values, dict[str, Fan], int, int]
"""Of one request: its place, the values and what borders gave, and where its rows begin and end in them."""


class _Computed(NamedTuple):
    """What the nodes made of a batch: values of the requests that are left, at `places` of it, and those that `failed`."""

    values: Values
    fans: dict[str, Fan]
    places: list[int]
    offsets: list[int]
    failed: dict[int, HeadraceError]

    def each(self) -> list[_Done]:
        """By request."""
        ends = zip(self.places, pairwise(self.offsets), strict=True)
        return [(place, self.values, self.fans, first, last) for place, (first, last) in ends]


class SegmentSession:
    """See `backends.base.Session`.

    Where a border follows, `run` returns nothing: it has taken the requests over, and answers them when their rows are back.

    Args:
        segment: what runs.
        steps: its nodes, in order.
        visits: where they are accounted.
        clock: the clock.
        most_rows: that a border may make of one request.
    """

    io = GraphIO((), ())

    def __init__(self, segment: Segment, steps: Sequence[Step], visits: Visits, clock: Clock, most_rows: int) -> None:
        self.segment, self.steps, self._visits, self._clock, self._most_rows = segment, steps, visits, clock, most_rows
        self._close: Callable[[], None] = lambda: None
        self._can_run_again = all(step.replayable for step in steps)
        self.replayable = not segment.borders and self._can_run_again
        self.stands_zeros = all(step.stands_zeros for step in steps)
        self._has_rows = segment.max_batch_size > 0
        self._ways: dict[str, Way] = {}
        behind = {spec.name for border in segment.borders for spec in border.outputs} | {
            spec.name for border in segment.borders if border.segment for spec in border.segment.outputs
        }
        self._own = tuple(spec.name for spec in segment.outputs if spec.name not in behind)

    def connect(self, ways: Mapping[str, Way]) -> None:
        """Lead the rows of border nodes, by their names, to the next segments. Once, before anything runs."""
        self._ways = dict(ways)

    def close_with(self, close: Callable[[], None]) -> None:
        """What gives back all that the graph runs, when this is closed."""
        self._close = close

    def wait_for_room(self) -> None:
        """Wait until the segments behind have little enough to do that more may be taken."""
        for way in self._ways.values():
            way.wait_for_room()

    def run(self, batch: Readable) -> Mapping[str, Tensor] | Iterator[BackendPiece] | None:
        """Run the nodes. See `Session.run`."""
        if self.segment.borders:
            self._send_on(batch)  # type: ignore[arg-type]  # whoever runs a segment with borders brings a batch of a queue
            return None
        done = self._compute(batch)
        if done.failed:
            return self._pieces(done, [head.outputs for head in batch.heads])
        return {name: done.values[name] for name in batch.wanted()}

    def close(self) -> None:
        """Give back what the steps run."""
        self._close()

    def _compute(self, batch: Readable) -> _Computed:
        values: Values = dict(batch.tensors())
        fans: dict[str, Fan] = {}
        failed: dict[int, HeadraceError] = {}
        places = [*range(len(batch.offsets) - 1)]
        for step in self.steps:
            fan, own = step.run(values, batch, self._visits)
            if fan is not None:
                fans[step.name] = fan
            if own and fans:
                raise next(iter(own.values()))  # what a border gave before is of all of them
            if own:
                left = [place for place in range(len(places)) if place not in own]
                failed |= {places[place]: error for place, error in own.items()}
                places = [places[place] for place in left]
                batch = Rest(batch, left)
            if not places:
                break
        return _Computed(values, fans, places, batch.offsets, failed)

    def _pieces(self, done: _Computed, asked: Sequence[Sequence[str]]) -> Iterator[BackendPiece]:
        """Each request's answer, where some have failed."""
        for place, error in done.failed.items():
            yield place, error, True
        for place, (first, last) in zip(done.places, pairwise(done.offsets), strict=True):
            yield place, {name: rows_of(done.values[name], first, last) for name in asked[place]}, True

    # Over the borders.

    def _send_on(self, batch: Batch) -> None:
        """Run the nodes; then each request goes its way. One that the nodes cannot stand must not fail its neighbours."""
        try:
            computed = self._compute(batch)
            for place, error in computed.failed.items():
                batch.fail(error, place)
            done = computed.each()
        except Exception as error:
            if len(batch) == 1 or not self._can_run_again:
                raise
            log.info("a batch of %d requests failed, each runs alone now: %s", len(batch), sentence(error))
            done = [alone for place in range(len(batch)) for alone in self._alone(batch, place)]
        owners = batch.heads
        joins = {
            place: Join(
                last - first,
                {name: [start - fan.starts[first] for start in fan.starts[first : last + 1]] for name, fan in fans.items()},
                self._clock,
                has_rows=self._has_rows,
            )
            for place, _, fans, first, last in done
        }

        def gone(place: int) -> None:
            if place in joins:
                joins[place].cancel()

        parts = batch.part(gone)
        for place, values, fans, first, last in done:
            part, join = parts[place], joins[place]
            try:
                self._check_rows(fans, first, last)
                wanted = part.wanted()
                outputs = [spec for spec in self.segment.outputs if spec.name in wanted]
                own = self._answers(join, values, fans, first, last, wanted)
                pieces = [
                    piece
                    for name, way in self._ways.items()
                    if any(spec.name in wanted for spec in way.segment.outputs)
                    for piece in pieces_of(way, fans[name], values, first, last, has_rows=self._has_rows)
                ]
            except Exception as error:
                part.fail(BackendFailed.of(error))
                continue
            join.begin(part, owners[place], outputs, own, pieces)

    def _check_rows(self, fans: Mapping[str, Fan], first: int, last: int) -> None:
        for name, fan in fans.items():
            rows = fan.starts[last] - fan.starts[first]
            if rows > self._most_rows:
                raise InvalidRequest(
                    f"node '{name}' made {rows} rows of this request, and at most {self._most_rows} are allowed: send less at a "
                    "time, or raise max_rows_per_request of the graph"
                )

    def _alone(self, batch: Batch, place: int) -> list[_Done]:
        try:
            computed = self._compute(batch.only(place))
        except Exception as error:
            batch.fail(BackendFailed.of(error), place)
            return []
        return [(place, *rest) for _, *rest in computed.each()]  # type: ignore[misc]  # mypy and pyright lose the types of a rest

    def _answers(
        self, join: Join, values: Values, fans: Mapping[str, Fan], first: int, last: int, wanted: Sequence[str]
    ) -> Values:
        """What the rows of one request can be answered already, of what it asks for."""
        own = [name for name in self._own if name in wanted]
        found: Values = {name: rows_of(values[name], first, last) if self._has_rows else values[name] for name in own}
        for border in self.segment.borders:
            fan = fans[border.node]
            begin, end = fan.starts[first], fan.starts[last]
            if begin < end:
                for spec in border.outputs:
                    if spec.name not in wanted:
                        continue
                    found[spec.name] = join.direct(spec, fan, begin, end, border)
        return found
