"""The instances of one queue, as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from headrace.backends.base import Session
from headrace.clock import Clock
from headrace.engine.instance import Instance
from headrace.graph.session import SegmentSession
from headrace.scheduling.base import Queue
from headrace.scheduling.forecast import Forecast
from headrace.scheduling.plan import SetPoints
from headrace.scheduling.predictor import Learned

if TYPE_CHECKING:
    from headrace.engine.variants import VariantSession


class Crew:
    """The instances that take turns at one queue, and what they learn.

    Args:
        queue: of the version, or of a segment of a graph.
        sessions: one an instance.
        clock: the clock.
        refuses: whether the queue is a door: see `Forecast`.
        variant: the cheaper variant, if there is one.
    """

    def __init__(
        self,
        queue: Queue,
        sessions: Sequence[Session],
        clock: Clock,
        *,
        refuses: bool = True,
        variant: VariantSession | None = None,
    ) -> None:
        self.queue = queue
        learned = None if variant is None else variant.lent.running.forecast.learned or Learned()
        points = SetPoints.of(queue.spec, len(sessions))
        self.forecast = Forecast(queue, points, len(sessions), refuses=refuses, variant=learned)
        self._instances = [
            Instance(number, session, queue, self.forecast, clock, _before(session), variant)
            for number, session in enumerate(sessions)
        ]

    def __len__(self) -> int:
        return len(self._instances)

    def start(self) -> None:
        """Let the instances take turns.

        Raises:
            RuntimeError: the machine has no more threads; those that were started are ended.
        """
        try:
            for instance in self._instances:
                instance.start()
        except RuntimeError:
            self.queue.close()
            raise

    def stalled(self, before: int) -> list[str]:
        """What is wrong with those that do not move; see `Instance.stalled`."""
        return [trouble for instance in self._instances if (trouble := instance.stalled(before))]

    def join(self, seconds: float) -> bool:
        """Wait for all of them to end, for so long each; says whether they have."""
        ended = [instance.join(seconds) for instance in self._instances]
        return all(ended)


def _before(session: Session) -> Callable[[], None]:
    """What an instance waits for before its turns: in front of a border, that there is room behind it."""
    return session.wait_for_room if isinstance(session, SegmentSession) else lambda: None
