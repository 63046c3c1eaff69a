"""A segment as a session: its nodes run one after the other, on the batch of one instance thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from headrace.backends.base import Batch as Readable
from headrace.clock import Clock
from headrace.errors import BackendFailed, InvalidRequest, sentence
from headrace.graph.fan import Fan
from headrace.graph.join import Join, Way, pieces_of
from headrace.graph.segments import Segment
from headrace.graph.steps import Step, Values, Visits
from headrace.model import GraphIO
from headrace.scheduling.base import Batch
from headrace.tensor import Tensor, rows_of

log = logging.getLogger(__name__)


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

    def run(self, batch: Readable) -> Mapping[str, Tensor] | None:
        """Run the nodes. See `Session.run`."""
        if not self.segment.borders:
            values, _ = self._compute(batch)
            return {name: values[name] for name in batch.wanted()}
        self._send_on(batch)  # type: ignore[arg-type]  # whoever runs a segment with borders brings a batch of a queue
        return None

    def close(self) -> None:
        """Give back what the steps run."""
        self._close()

    def _compute(self, batch: Readable) -> tuple[Values, dict[str, Fan]]:
        values: Values = dict(batch.tensors())
        fans: dict[str, Fan] = {}
        for step in self.steps:
            fan = step.run(values, batch, self._visits)
            if fan is not None:
                fans[step.name] = fan
        return values, fans

    # Over the borders.

    def _send_on(self, batch: Batch) -> None:
        """Run the nodes; then each request goes its way. One that the nodes cannot stand must not fail its neighbours."""
        try:
            values, fans = self._compute(batch)
            offsets = batch.offsets
            done = [(place, values, fans, offsets[place], offsets[place + 1]) for place in range(len(batch))]
        except Exception as error:
            if len(batch) == 1 or not self._can_run_again:
                raise
            log.info("a batch of %d requests failed, each runs alone now: %s", len(batch), sentence(error))
            done = [alone for place in range(len(batch)) if (alone := self._alone(batch, place)) is not None]
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

    def _alone(self, batch: Batch, place: int) -> tuple[int, Values, dict[str, Fan], int, int] | None:
        try:
            one = batch.only(place)
            values, fans = self._compute(one)
        except Exception as error:
            batch.fail(BackendFailed.of(error), place)
            return None
        return place, values, fans, 0, one.rows

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
