"""What batches of a job pass on their way to a server: as many at once as `sharing` finds right, by what the server tells."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from headrace.backends.base import Batch, Partable
from headrace.backends.triton.channel import FAILURES
from headrace.backends.triton.session import words_of
from headrace.clock import SECOND, Clock
from headrace.errors import BackendDown, BackendFailed
from headrace.jobs.sharing import EVERY_NS, Seen, Share, decide
from headrace.protocol.slack import Slack

log = logging.getLogger(__name__)

_PATIENCE_NS = 10 * SECOND
"""A server that has not said anything for so long is gone."""


class Gate:
    """Looks at the server from a thread of its own, and lets batches through accordingly.

    Args:
        graph: for messages.
        look: asks the server; raises one of `FAILURES` when it does not say, and `BackendFailed` when it is not what it was.
        clock: the clock.
    """

    def __init__(self, graph: str, look: Callable[[], Slack], clock: Clock) -> None:
        self._graph, self._look, self._clock = graph, look, clock
        self._lock = threading.RLock()
        self._closing = threading.Condition(self._lock)
        self._share = Share()
        self._under_way = 0
        self._line: deque[threading.Condition] = deque()
        """Who waits, in order: else a window of rows could wait for one of its batches for ever."""
        self._times: list[int] = []
        """Of answers since the last step."""
        self._shortest = self._refused = 0
        self._heard_at = clock.now()
        self._why = ""
        """Why nothing will be let through any more."""
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="headrace-job-gate", daemon=True)
        self._thread.start()

    @property
    def limit(self) -> int:
        """How many batches may be under way at present."""
        return self._share.limit

    def close(self) -> None:
        """Look no more."""
        with self._lock:
            self._is_closed = True
            self._closing.notify_all()
        self._thread.join()

    def enter(self, batch: Batch) -> None:
        """Wait until one more batch may be under way.

        Raises:
            BackendDown: there is no server any more, or nobody who waits for the batch.
        """
        with self._lock:
            turn = threading.Condition(self._lock)
            self._line.append(turn)
            self._let()
            while turn in self._line:
                why = self._why if not isinstance(batch, Partable) or batch.is_wanted else "the job has ended"
                if why:
                    self._line.remove(turn)
                    raise BackendDown(self._graph, why)
                turn.wait()

    def _let(self) -> None:
        """Let those through for whom there is room. Whoever is refused comes back after the next step at the earliest."""
        while self._line and self._under_way < self.limit and not self._refused:
            self._under_way += 1
            self._line.popleft().notify()

    def answered(self, took_ns: int) -> None:
        """A batch has come back."""
        with self._lock:
            self._times.append(took_ns)
            self._shortest = min(self._shortest or took_ns, took_ns)

    def refused(self) -> None:
        """A batch was not taken."""
        with self._lock:
            self._refused += 1

    def leave(self) -> None:
        """It is under way no more, whatever came of it."""
        with self._lock:
            self._under_way -= 1
            self._let()

    def step(self) -> None:
        """Look at the server, and decide, once."""
        try:
            burn, why = self._look().burn, ""
            self._heard_at = self._clock.now()
        except FAILURES as error:
            # Who does not say how he is, is not to be burdened.
            burn, why = float("inf"), f"the server does not answer ({words_of(error)})"
            if self._clock.now() - self._heard_at >= _PATIENCE_NS:
                self._why = why
        except BackendFailed as error:
            burn, self._why = float("inf"), error.message
            why = self._why
        with self._lock:
            usual = sum(self._times) // len(self._times) if self._times else 0
            before, seen = self._share, Seen(burn, self._refused, usual, self._shortest)
            self._share = decide(before, seen, self._clock.now())
            self._times.clear()
            self._refused = 0
            self._let()
            for turn in self._line:
                turn.notify()
        if before.limit and not self.limit:
            log.info("%s: nothing is sent for now: %s", self._graph, why or "the latency budget of others burns")
        elif self.limit and not before.limit:
            log.info("%s: rows are sent", self._graph)

    def _run(self) -> None:
        until = self._clock.now()
        while True:
            with self._lock:
                while not self._is_closed and self._clock.now() < until:
                    self._clock.wait(self._closing, until)
                if self._is_closed:
                    return
            try:
                self.step()
            except Exception as error:
                log.exception("looking at the server failed; this is a bug in Headrace")
                self._why = words_of(error)
            until = self._clock.now() + EVERY_NS
