"""How long a queue may stand: a bound for requests that say nothing about when they are due. Pure.

After CoDel (Nichols and Jacobson, "Controlling Queue Delay", 2012): not the length of a queue says that it is too long, but that
even the shortest wait of a while was too long. What is bounded here is the number of those that wait, for whoever is refused at
the door has lost nothing yet.
"""

from __future__ import annotations

_LEAST = 16
"""Requests that may wait in any case."""


class Sojourn:
    """Watches the waits of one queue, and says how many requests may wait.

    Args:
        target_ns: how long a request may wait as a rule.
        most: how many may wait at most, and do while nothing is wrong.
    """

    def __init__(self, target_ns: int, most: int) -> None:
        self._target_ns, self._most = target_ns, most
        self._interval_ns = max(1, target_ns // 10)
        self._shortest: int | None = None
        self._began = self._passed = 0
        self.limit = most

    def saw(self, waited_ns: int, passed: int, now: int) -> int:
        """The most urgent request had waited so long when an instance came for it. The limit from now on.

        A standing queue is cut to what is done within the target at the rate at which it moves (Little's law); once the
        shortest wait is half the target, the limit doubles again with each interval.

        Args:
            waited_ns: how long it had waited.
            passed: how many have been taken since the last call.
            now: the instant, in ns.
        """
        self._passed += passed
        if self._shortest is None:
            self._shortest, self._began, self._passed = waited_ns, now, 0
        self._shortest = min(self._shortest, waited_ns)
        lasted = now - self._began
        if lasted >= self._interval_ns:
            if self._shortest > self._target_ns:
                self.limit = min(self.limit, max(_LEAST, self._passed * self._target_ns // lasted))
            elif 2 * self._shortest <= self._target_ns:
                self.limit = min(self._most, 2 * self.limit)
            self._shortest = None
        return self.limit
