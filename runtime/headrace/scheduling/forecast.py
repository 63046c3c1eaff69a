"""What the instances of a version learn of its execution times: the plan asks for it, and the queue is told what it needs."""

from __future__ import annotations

from headrace.scheduling.admission import Estimate, Limits
from headrace.scheduling.base import Queue
from headrace.scheduling.plan import Predictor, Unlearned
from headrace.scheduling.predictor import Learned, Line


class Forecast:
    """One for each version that runs; any of its instances may tell.

    Args:
        queue: of the version.
        max_rows: of a batch.
        instances: how many run batches.
    """

    def __init__(self, queue: Queue, max_rows: int, instances: int) -> None:
        self._queue, self._max_rows, self._instances = queue, max_rows, instances
        self._learned = Learned() if queue.spec.batching.predicts and not queue.spec.decoupled else None
        self._told: Line | None = None

    @property
    def predictor(self) -> Predictor:
        """What plans go by."""
        return self._learned or Unlearned()

    def ran(self, bucket: int, rows: int, ns: int) -> None:
        """A batch ran for `ns`, and nothing went wrong."""
        if self._learned is None:
            return
        self._learned.observe(bucket, rows, ns)
        line = self._learned.line(bucket)
        # The queue follows a version whose requests have several shapes from one to the other: refusing is not ordering.
        if line is not None and line != self._told:
            self._told = line
            self._queue.set_limits(Limits(estimate=Estimate(line.base_ns, line.row_ns, self._max_rows, self._instances)))
