"""Opens portable queues, and expires what waits in them."""

from __future__ import annotations

import logging
import threading
from weakref import WeakKeyDictionary

from headrace.clock import SECOND, Clock
from headrace.ledger.ledger import Ledger
from headrace.model import ModelSpec
from headrace.scheduling.admission import Limits
from headrace.scheduling.plan import NEVER
from headrace.scheduling.queue import PortableQueue

log = logging.getLogger(__name__)


class PortableQueues:
    """Opens queues, and runs the one thread that expires what waits in them.

    Expiry has a time of its own: it does not wait until an instance looks at the queue again.
    """

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger, self._clock = ledger, clock
        self._wakeup = threading.Condition()
        # Weakly: a queue that is unloaded should not stay for its furthest deadline.
        self._due: WeakKeyDictionary[PortableQueue, int] = WeakKeyDictionary()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="headrace-expiry", daemon=True)

    def __call__(self, spec: ModelSpec, limits: Limits) -> PortableQueue:
        """A queue for one loaded version."""
        with self._wakeup:
            if not self._thread.is_alive() and not self._closed:
                self._thread.start()
        return PortableQueue(spec, limits, self._ledger, self._clock, self._expires)

    def close(self) -> None:
        """End the thread."""
        with self._wakeup:
            self._closed = True
            self._wakeup.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _expires(self, queue: PortableQueue, at: int) -> None:
        with self._wakeup:
            self._due[queue] = min(at, self._due.get(queue, NEVER))
            self._wakeup.notify_all()

    def _run(self) -> None:
        while True:
            with self._wakeup:
                while not self._closed and (not self._due or min(self._due.values()) > self._clock.now()):
                    self._clock.wait(self._wakeup, min(self._due.values(), default=None))
                if self._closed:
                    return
                now = self._clock.now()
                ripe = [queue for queue, at in self._due.items() if at <= now]
                for queue in ripe:
                    del self._due[queue]
            for queue in ripe:
                self._expire(queue, now)
            ripe.clear()

    def _expire(self, queue: PortableQueue, now: int) -> None:
        try:
            again = queue.expire(now)
        except Exception:
            log.exception("expiry stumbled; this is a bug in Headrace")
            again = now + SECOND
        if again is not None:
            self._expires(queue, again)
