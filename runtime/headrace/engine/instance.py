"""An instance: one thread that takes turns at a version's queue and runs what the plan says, from take to reply."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

from headrace.backends.base import Outputs, Session, runs_elsewhere
from headrace.clock import Clock
from headrace.engine.slices import check_slice, slices_of, stacked
from headrace.errors import BackendFailed, Broken, DeadlineExpired, HeadraceError, sentence
from headrace.scheduling.base import Batch, Queue, Turn
from headrace.scheduling.forecast import Forecast
from headrace.scheduling.plan import Plan, Reason, plan

log = logging.getLogger(__name__)


class Instance:
    """One of the threads that run a session. It ends when its queue is closed and empty.

    Args:
        number: tells the instances of a queue apart.
        session: runs batches.
        queue: holds what waits.
        forecast: what is known of how long they run, and what steers the plans.
        clock: the clock.
        before: is called before each turn, and returns when one may be taken.
        variant: runs the batches that are to run on the cheaper variant.
    """

    def __init__(
        self,
        number: int,
        session: Session,
        queue: Queue,
        forecast: Forecast,
        clock: Clock,
        before: Callable[[], None] = lambda: None,
        variant: Session | None = None,
    ) -> None:
        self._number, self._queue = number, queue
        self._own, self._variant = session, variant
        self._keeps = runs_elsewhere(session) and variant is None
        self._kept = 0
        """When the batch was done, in ns, whose answers may have been kept at the last turn; 0 where nobody learns from it."""
        self._forecast, self._clock, self._before = forecast, clock, before
        self._began = 0
        self.busy_since = 0
        """Since when (ns) the session has not come back from what it runs; 0 between batches."""
        self._session = session
        """What runs the batch of this turn."""
        self._last: tuple[int, int, int] | None = None
        """Of the batch that went well and is not told of: bucket, rows, and when its answers were there, in ns."""
        name = f"{queue.spec.name}/{queue.spec.version}#{number}"
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        """Begin to take turns."""
        self._thread.start()

    def stalled(self, before: int) -> str:
        """What is wrong with it: it has ended, or its session has not come back since before the instant `before` (ns)."""
        if not self._thread.is_alive():
            return f"{self._thread.name} has ended"
        since = self.busy_since
        return f"{self._thread.name} has not come back from its batch" if 0 < since < before else ""

    def join(self, seconds: float | None = None) -> bool:
        """Wait for the end; says whether it came."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        _yield_to_others(self._queue.niceness)
        until: int | None = None
        while True:
            try:
                # A turn also sends off what the last batch left to it: that may stumble, too.
                self._before()
                turn = self._queue.turn(until, keeps=self._keeps)
                if turn is None:
                    return
                self._tell(turn)
                until = self._step(turn)
            except BaseException:
                # Whatever it was, the next request needs this thread.
                log.exception("an instance stumbled; this is a bug in Headrace")
                until = None
            turn = None

    def _tell(self, turn: Turn) -> None:
        """Tell the forecast of the last batch, now that its answers have gone: what it took from one turn to the next.

        Answers that are kept hold up no other batch, but are so much later: that is told when they have gone, a turn later.
        """
        if turn.sent_late and self._kept:
            self._forecast.behind(turn.sent_late - self._kept)
        elif self._keeps and turn.sent:
            self._forecast.behind(0)
        self._kept = 0
        if self._last is not None:
            bucket, rows, self._kept = self._last
            self._last = None
            self._forecast.ran(bucket, rows, (turn.sent or self._kept) - self._began, on_variant=self._session is not self._own)

    def _step(self, turn: Turn) -> int | None:
        """One turn and its batch. Returns when to come back at the latest. A method, so that an idle thread holds no tensors."""
        with turn:
            decided = self._plan(turn)
            batch = turn.take(decided, self._number)
        if batch is not None:
            self.busy_since = self._began
            try:
                with batch:
                    self._run(batch, decided.bucket)
            finally:
                self.busy_since = 0
        return decided.until

    def _plan(self, turn: Turn) -> Plan:
        # Nobody else comes to a closed queue: there is nothing to wait for.
        points = self._forecast.points
        if turn.is_last_call:
            points = replace(points, delay_ns=0, holds=False)
        self._began = now = self._clock.now()
        self._session = self._variant if self._variant is not None and self._forecast.is_for_variant else self._own
        try:
            decided = plan(turn.view, self._forecast.predictor, points, now, turn.busy_until)
            self._forecast.saw(turn.view, decided, now)
            return decided
        except Exception:
            log.exception("planning failed; this is a bug in Headrace. The most urgent request runs alone")
            return Plan((int(turn.view["number"][0]),), (), None, Reason.ALONE)

    def _run(self, batch: Batch, bucket: int) -> None:
        spec = self._queue.spec
        if spec.batching.splits_oversize and batch.rows > spec.max_batch_size:  # one request: the plan takes such a one alone
            self._run_in_slices(batch, bucket)
            return
        try:
            batch.tensors()
            self._answer(batch)
            self._last = (bucket, batch.rows, self._clock.now())
        except Exception as error:
            if not self._session.replayable or len(batch) == 1:
                raise
            log.info("a batch of %d requests failed, each runs alone now: %s", len(batch), sentence(error))
            self._run_each(batch)

    def _answer(self, batch: Batch) -> None:
        outputs = self._session.run(batch)
        if isinstance(outputs, Mapping):
            batch.reply(outputs)
            return
        if outputs is None:
            return
        for index, piece, final in outputs:
            self.busy_since = self._clock.now()
            if isinstance(piece, HeadraceError):
                batch.fail(piece, index)
                continue
            try:
                batch.send(index, piece, final)
            except BackendFailed as error:
                if not final or isinstance(error, Broken):
                    raise
                # Its outputs are not what was declared; those of its neighbours may be.
                log.error("request failed: %s", sentence(error), extra={"model": self._queue.spec.name})
                batch.fail(error, index)

    def _run_in_slices(self, batch: Batch, bucket: int) -> None:
        spec, done = self._queue.spec, list[Outputs]()
        began = self._clock.now()
        for part in slices_of(batch, spec.max_batch_size):
            if done and not batch.is_wanted:
                # Whoever has cancelled is accounted as cancelled, whatever he is told.
                batch.fail(DeadlineExpired(spec.name))
                return
            done.append(check_slice(spec, part, self._session.run(part)))
            ended = self._clock.now()
            self._forecast.ran(bucket, part.rows, ended - began, on_variant=self._session is not self._own)
            self.busy_since = began = ended
        batch.reply(stacked(spec, done))

    def _run_each(self, batch: Batch) -> None:
        """One request that a model cannot stand must not fail its neighbours."""
        for index in range(len(batch)):
            self.busy_since = self._clock.now()
            try:
                outputs = self._session.run(batch.only(index))
                if not isinstance(outputs, Mapping):
                    raise BackendFailed("a decoupled session must not call itself replayable")
                batch.send(index, outputs, final=True)
            except Exception as error:
                batch.fail(BackendFailed.of(error), index)


def _yield_to_others(niceness: int) -> None:
    """Let this thread wait its turn when it is woken, instead of interrupting the thread that woke it.

    That one is reading requests: what it reads in the meantime is in the batch. `niceness` is how much less of a busy
    processor this thread gets than its neighbours, in steps of the system.
    """
    with contextlib.suppress(OSError, AttributeError):  # not everywhere allowed, and nothing depends on it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        if niceness:
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + niceness)
