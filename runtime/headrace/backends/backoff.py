"""When a process that ended is started again. Pure: the instant is an argument, in ns."""

from __future__ import annotations

from headrace.clock import MILLISECOND, SECOND

_FIRST_NS = 100 * MILLISECOND
_LONGEST_NS = 30 * SECOND


class Backoff:
    """Each end in a row waits twice as long as the one before."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._until = 0

    @property
    def is_counting(self) -> bool:
        """Whether it has ended, and not yet done what it is for."""
        return self._in_a_row > 0

    def ended(self, now: int) -> None:
        """It ended, or did not come up."""
        # Not by shifting alone: after a night of failures that number would fill the memory.
        self._until = now + min(_FIRST_NS << min(self._in_a_row, 30), _LONGEST_NS)
        self._in_a_row += 1

    def went_well(self) -> None:
        """It did what it is for."""
        self._in_a_row = 0

    def wait(self, now: int) -> int:
        """How long not to start it yet, in ns."""
        return max(0, self._until - now)
