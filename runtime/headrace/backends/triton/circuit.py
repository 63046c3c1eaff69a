"""When a server is left alone, and when it is asked again. Pure: the instant is an argument, in ns."""

from __future__ import annotations

from headrace.backends.backoff import Backoff

_TOLERATED = 3
"""Calls in a row that were not answered in time, until nothing more is sent."""


class Circuit:
    """Closed, batches go; open, nothing is sent until the server has been looked at and found well.

    A server that was found well is on trial: its first failure opens the circuit again, and for longer.
    """

    def __init__(self) -> None:
        self._backoff = Backoff()
        self._unanswered = 0
        self._why = ""
        self._on_trial = False

    @property
    def is_open(self) -> bool:
        """Whether nothing is to be sent."""
        return bool(self._why)

    @property
    def why(self) -> str:
        """Why it is open; empty when it is not."""
        return self._why

    def wait(self, now: int) -> int:
        """How long not to look at the server yet, in ns."""
        return self._backoff.wait(now) if self._why else 0

    def answered(self) -> None:
        """The server has answered a batch, be it with an error."""
        self._unanswered = 0
        if self._on_trial:
            self._on_trial = False
            self._backoff.went_well()

    def timed_out(self, why: str, now: int) -> None:
        """A batch was not answered in time."""
        self._unanswered += 1
        if self._on_trial or self._unanswered >= _TOLERATED:
            self.down(why, now)

    def down(self, why: str, now: int) -> None:
        """It cannot be reached, or is not what it was."""
        if not self._why:  # several batches find out at once, and that is one failure
            self._backoff.ended(now)
        self._why = why

    def looked(self, why: str, now: int) -> None:
        """It was looked at; `why` says what is wrong, or is empty."""
        if why:
            self._backoff.ended(now)
            self._why = why
        elif self._why:
            self._why, self._on_trial, self._unanswered = "", True, 0
