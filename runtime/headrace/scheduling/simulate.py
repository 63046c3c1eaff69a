"""What would happen: the scheduler on a clock of its own, with a load and a model that need not exist.

Everything that decides is the real thing – queue, admission, plan, forecast – and so is everything that is counted: the portable
queue with its ledger. Only time is not: a batch lasts what `service` says, and the clock goes from one event to the next. The
predictor sees a batch when it is done, never before.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.clock import MICROSECOND, SECOND, VirtualClock
from headrace.errors import HeadraceError
from headrace.ledger.ledger import Ledger
from headrace.ledger.records import Outcome, Records
from headrace.model import Batching, ModelSpec
from headrace.protocol.validate import bucket_of
from headrace.request import Request, Response
from headrace.scheduling.admission import Limits
from headrace.scheduling.batch import PortableBatch
from headrace.scheduling.entry import Answer, outcome_of
from headrace.scheduling.forecast import Forecast
from headrace.scheduling.plan import Plan, SetPoints, plan
from headrace.scheduling.predictor import Learned
from headrace.scheduling.queue import PortableQueue
from headrace.tensor import TensorSpec

WAY_BACK_NS = 200 * MICROSECOND
"""From the instance to the client."""

_SLOTS = 1 << 12

Service = Callable[[int, int, int], int]
"""How long a batch runs, in ns: of its length, its rows, and the instant at which it begins."""
Watch = Callable[[NDArray[np.void], Plan, int], None]
"""Is shown each decision: the view, the plan, the instant."""
Steer = Callable[[Forecast, Sequence["Fate"], int], None]
"""Is called every second, with the fates that were decided since: it may steer."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: at which instant it comes, and what it is. Requests of one `length` may share a batch."""

    at: int
    rows: int = 1
    length: int = 1
    deadline_ns: int | None = None
    """From its arrival; None is no deadline."""
    priority: int = 0


@dataclass(slots=True)
class Fate:
    """What became of a request. Instants in ns, 0 where it did not get."""

    arrival: Arrival
    outcome: Outcome | None = None
    taken: int = 0
    answered: int = 0
    """At the client."""
    on_variant: bool = False
    admitted: bool = False
    """Whether the queue took it; who is refused at the door has no record of the queue's."""

    @property
    def is_good(self) -> bool:
        """Whether it was answered in time."""
        due = self.arrival.deadline_ns
        return self.outcome is Outcome.ANSWERED and (due is None or self.answered <= self.arrival.at + due)


@dataclass(slots=True)
class Report:
    """All fates in the order of arrival, and what the queue went through."""

    fates: list[Fate]
    most_waiting: int = 0
    batches: list[tuple[int, int]] = field(default_factory=list)
    """Of each batch: when it was taken, and its rows."""
    recorded: int = 0
    """Requests in the ledger."""

    @property
    def goodput(self) -> float:
        """Rows a second that were answered in time, from the first arrival to the last."""
        seconds = (self.fates[-1].arrival.at - self.fates[0].arrival.at) / 1e9 if self.fates else 0
        return sum(fate.arrival.rows for fate in self.fates if fate.is_good) / seconds if seconds else 0.0


def model(max_batch_size: int, batching: Batching | None = None) -> ModelSpec:
    """A model to simulate."""
    return ModelSpec(
        name="simulated",
        version=1,
        digest="",
        backend="",
        platform="",
        max_batch_size=max_batch_size,
        inputs=(TensorSpec("x", "UINT8", (-1,)),),
        outputs=(TensorSpec("y", "UINT8", (-1,)),),
        batching=batching or Batching(enabled=True),
    )


def simulate(  # noqa: PLR0913
    arrivals: Iterable[Arrival],
    simulated: ModelSpec,
    service: Service,
    *,
    instances: int = 1,
    learned: Iterable[tuple[int, int, int]] = (),
    watch: Watch | None = None,
    variant: Service | None = None,
    steer: Steer | None = None,
) -> Report:
    """Let these requests come, in order, and see what becomes of them.

    Args:
        arrivals: in the order of their instants.
        simulated: see `model`.
        service: how long batches run.
        instances: how many run batches at a time.
        learned: what is known beforehand, as a profile would: (length, rows, ns) of runs.
        watch: is shown each decision.
        variant: how long batches run on the cheaper variant, if there is one.
        steer: is called every second, from the first arrival to the last.
    """
    simulation = _Simulation(simulated, service, instances, watch, variant, steer)
    for length, rows, ns in learned:
        simulation.forecast.ran(bucket_of(((length,),)), rows, ns)
    simulation.forecast.settle()
    return simulation.run(list(arrivals))


class _Kind(IntEnum):
    """What happens next; of what happens at once, this is the order."""

    DONE = 0
    EXPIRE = 1
    ARRIVE = 2
    LOOK = 3
    STEER = 4


class _Simulation:
    def __init__(
        self,
        simulated: ModelSpec,
        service: Service,
        instances: int,
        watch: Watch | None,
        variant: Service | None,
        steer: Steer | None,
    ) -> None:
        self.clock = VirtualClock(0)
        self._events: list[tuple[int, int, int, Any]] = []
        self._order = itertools.count()
        self._recorded = 0
        self._ledger = Ledger(self._fold)
        self._queue = PortableQueue(simulated, Limits(), self._ledger, self.clock, lambda _, at: self._at(at, _Kind.EXPIRE))
        points = SetPoints.of(simulated, instances)
        self.forecast = Forecast(self._queue, points, instances, variant=None if variant is None else Learned())
        self._service, self._variant, self._watch, self._steer = service, variant or service, watch, steer
        self._decided: list[Fate] = []
        self._last = 0
        self._idle = list(range(instances))
        self._tensors: dict[tuple[int, int], NDArray[np.uint8]] = {}
        self._report = Report([])

    def run(self, arrivals: Sequence[Arrival]) -> Report:
        """Until nothing happens any more."""
        report = self._report
        report.fates = [Fate(arrival) for arrival in arrivals]
        for number, arrival in enumerate(arrivals):
            self._at(arrival.at, _Kind.ARRIVE, number)
        if self._steer is not None and arrivals:
            self._last = arrivals[-1].at
            self._at(arrivals[0].at + SECOND, _Kind.STEER)
        while self._events:
            at, kind, _, what = heapq.heappop(self._events)
            if at > self.clock.now():
                self.clock.advance(at - self.clock.now())
            if kind == _Kind.ARRIVE:
                self._arrive(report.fates[what], what)
            elif kind == _Kind.DONE:
                self._done(*what)
            elif kind == _Kind.EXPIRE:
                again = self._queue.expire(self.clock.now())
                if again is not None:
                    self._at(again, _Kind.EXPIRE)
            elif kind == _Kind.STEER:
                self._let_steer()
            self._look()
        self._ledger.drain()
        report.recorded = self._recorded
        return report

    def deliver(self, answers: Sequence[Answer]) -> None:
        """As a sink: every answer is at the client a little later."""
        now = self.clock.now()
        for answer in answers:
            fate = self._report.fates[int(answer.entry.request.id)]
            fate.outcome = Outcome.ANSWERED if isinstance(answer.result, Response) else outcome_of(answer.result)
            fate.answered = now + WAY_BACK_NS
            self._decided.append(fate)
            answer.settle(now)

    def _let_steer(self) -> None:
        assert self._steer is not None
        decided, self._decided = self._decided, []
        self._steer(self.forecast, decided, self.clock.now())
        if self.clock.now() < self._last:
            self._at(self.clock.now() + SECOND, _Kind.STEER)

    def _at(self, at: int, kind: _Kind, what: object = None) -> None:
        heapq.heappush(self._events, (at, kind, next(self._order), what))

    def _fold(self, requests: Records, batches: Records) -> None:
        self._recorded += len(requests)

    def _arrive(self, fate: Fate, number: int) -> None:
        arrival, now = fate.arrival, self.clock.now()
        request = Request(
            "simulated",
            {"x": self._tensor(arrival.rows, arrival.length)},
            id=str(number),
            deadline=None if arrival.deadline_ns is None else now + arrival.deadline_ns,
            priority=arrival.priority,
            received=now,
            decoded=now,
        )
        try:
            self._queue.push(request, self)
            fate.admitted = True
        except HeadraceError as error:
            fate.outcome = outcome_of(error)
            self._decided.append(fate)
        self._report.most_waiting = max(self._report.most_waiting, self._queue.depth().requests)

    def _look(self) -> None:
        """Idle instances take what the plan gives them."""
        while self._idle and self._queue.depth().requests:
            turn = self._queue.turn(None)
            assert turn is not None, "a queue that is not closed gives a turn"
            now, instance = self.clock.now(), self._idle[0]
            with turn:
                on_variant = self.forecast.is_for_variant
                decided = plan(turn.view, self.forecast.predictor, self.forecast.points, now, turn.busy_until)
                self.forecast.saw(turn.view, decided, now)
                if self._watch is not None:
                    self._watch(turn.view, decided, now)
                batch = turn.take(decided, instance)
            if batch is None:
                if decided.until is not None and decided.until > now:
                    self._at(decided.until, _Kind.LOOK)
                return
            self._idle.pop(0)
            self._begin(batch, decided.bucket, instance, on_variant)

    def _begin(self, batch: PortableBatch, bucket: int, instance: int, on_variant: bool) -> None:
        now = self.clock.now()
        for request in batch.requests:
            fate = self._report.fates[int(request.id)]
            fate.taken, fate.on_variant = now, on_variant
        self._report.batches.append((now, batch.rows))
        length = batch.tensors()["x"].shape[1]
        lasts = max(1, (self._variant if on_variant else self._service)(length, batch.rows, now))
        self._at(now + lasts, _Kind.DONE, (batch, bucket, instance, lasts, on_variant))

    def _done(self, batch: PortableBatch, bucket: int, instance: int, lasted: int, on_variant: bool) -> None:
        with batch:
            batch.reply({"y": batch.tensors()["x"]})
        self.forecast.ran(bucket, batch.rows, lasted, on_variant=on_variant)
        self._idle.append(instance)
        self._idle.sort()

    def _tensor(self, rows: int, length: int) -> NDArray[np.uint8]:
        tensor = self._tensors.get((rows, length))
        if tensor is None:
            tensor = self._tensors[rows, length] = np.zeros((rows, length), np.uint8)
        return tensor


class Resampled:
    """Service times drawn from runs that were recorded, made worse.

    Two policies that are compared on one seed should differ by what they decide and not by their luck. So whatever batch begins
    at an instant draws alike from its runs, and there are instants at which whatever runs lasts ten times as long.

    Args:
        runs: of each length, of each row count: how long it ran, in ns, several times.
        random: where chance comes from.
        outliers: the share of batches that last ten times as long, if they are as long as is usual.
        bias: by how much all of it may be slower or quicker than was recorded, once for all.
        drift: by how much it may be slower or quicker from time to time, within `period_ns`.
        usual_ns: how long a batch lasts, about.
    """

    def __init__(
        self,
        runs: dict[int, dict[int, list[int]]],
        random: np.random.Generator,
        *,
        outliers: float = 0.01,
        bias: float = 0.3,
        drift: float = 0.3,
        period_ns: int = 5_000_000_000,
        usual_ns: int = 1_000_000,
    ) -> None:
        self._factor = 1 + random.uniform(-bias, bias)
        self._drift, self._period_ns, self._phase = random.uniform(0, drift), period_ns, random.uniform(0, 2 * np.pi)
        self._usual_ns = usual_ns
        self._chance = random.random(_SLOTS)
        self._stalls = np.cumsum(random.exponential(usual_ns / outliers, _SLOTS)) if outliers else np.zeros(0)
        self._runs = {length: {rows: sorted(times) for rows, times in of.items()} for length, of in runs.items()}
        self._counts = {length: sorted(of) for length, of in runs.items()}

    def __call__(self, length: int, rows: int, now: int) -> int:
        """See `Service`."""
        counts = self._counts[length]
        above = next((count for count in counts if count >= rows), counts[-1])
        below = max((count for count in counts if count <= rows), default=above)
        chance = float(self._chance[now // self._usual_ns % _SLOTS])
        low, high = (self._draw(length, count, chance) for count in (below, above))
        lasts = low if below == above else low + (high - low) * (rows - below) / (above - below)
        lasts *= self._factor * (1 + self._drift * np.sin(self._phase + 2 * np.pi * now / self._period_ns))
        stalls = np.searchsorted(self._stalls, (now, now + lasts))
        return int(lasts * (10 if stalls[0] < stalls[1] else 1))

    def _draw(self, length: int, rows: int, chance: float) -> int:
        recorded = self._runs[length][rows]
        return recorded[int(chance * len(recorded))]
