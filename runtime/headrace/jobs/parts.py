"""Windows that have run become parts, one split after the other."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from types import TracebackType

from headrace.errors import JobFailed
from headrace.jobs.beginning import Known
from headrace.jobs.flow import Work
from headrace.jobs.location import Location
from headrace.jobs.manifest import Done
from headrace.jobs.outputs import PartWriter, part_path
from headrace.jobs.split import Piece, output_of, rejects_of


class Parts:
    """Writes the parts of a job, and records each. A context manager: what is unfinished when it is left is removed.

    Args:
        location: of the output.
        begun: the job.
        most_rejected: rows that may be rejected before this raises.
        rejected: rows that were.
        recorded: is told of each part that is.
    """

    def __init__(
        self, location: Location, begun: Known, most_rejected: int, rejected: int, recorded: Callable[[Done], None]
    ) -> None:
        self._location, self._begun, self._most, self._recorded = location, begun, most_rejected, recorded
        self.rejected, self.nbytes, self.splits = rejected, 0, 0
        self._writer: PartWriter | None = None
        self._windows: list[int] = []
        self._rejects: list[str] = []
        self._since = time.monotonic()

    def add(self, work: Work[Piece]) -> None:
        """Take the next window, or the end of a split.

        Raises:
            JobFailed: too many rows were rejected.
            OSError: it cannot be written.
        """
        piece = work.owner
        if self._writer is None:
            self._since = time.monotonic()
            path = self._location.temporary(piece.number)
            self._writer = PartWriter(path, self._begun.recipe.schema, self._begun.recipe.options.format)
        if piece.batch is None:
            self._finish(piece, self._writer)
            return
        rows = output_of(self._begun.recipe, work)
        self._writer.write(rows)
        self._windows.append(rows.num_rows)
        self._reject(rejects_of(self._begun.inputs, work))

    def _reject(self, lines: list[str]) -> None:
        self._rejects += lines
        self.rejected += len(lines)
        if self.rejected > self._most:
            raise JobFailed(
                f"{self.rejected} rows were rejected, and at most {self._most} may be (--max-rejects); the last: {lines[-1]}"
            )

    def _finish(self, piece: Piece, writer: PartWriter) -> None:
        written = writer.close()
        self._writer = None
        number = piece.number
        told = "".join(f"{line}\n" for line in self._rejects).encode()
        self._location.put_rejects(number, told)
        done = Done(
            split=number,
            part=part_path(self._begun.inputs, piece.split, number, self._begun.recipe.options.format),
            windows=tuple(self._windows),
            rejected=len(self._rejects),
            nbytes=written.nbytes,
            sha256=written.sha256,
            rejects_sha256=hashlib.sha256(told).hexdigest() if told else None,
            seconds=round(time.monotonic() - self._since, 3),
        )
        self._location.put_part(done)
        self._rejects, self._windows = [], []
        self.nbytes += written.nbytes
        self.splits += 1
        self._recorded(done)

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.abandon()
