"""One of several processes that make the parts of a job, of which another one holds the lock and gives out the splits.

A split is made when its part is in place and recorded. Two that make the same split – one of them was taken for dead – write the
same bytes, each to a file of its own until it is renamed.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import NamedTuple

from headrace.errors import HeadraceError, InvalidRepository, JobFailed, JobStopped, sentence
from headrace.jobs.beginning import Asked, Begun, begun_anew, gone_on
from headrace.jobs.flow import Flow, Work
from headrace.jobs.location import Location
from headrace.jobs.manifest import Done, Manifest
from headrace.jobs.parts import Parts
from headrace.jobs.split import Piece, Recipe, windows


class Opening(NamedTuple):
    """A worker that has opened the graph: its name, and the job as it knows it."""

    name: str
    manifest: Manifest
    recipe: Recipe


class Worker:
    """See above. `open` is called first; `make` by as many threads as splits are to overlap.

    Args:
        asked: the job.
        location: of the output, as one of its writers.
        memory: bytes that windows may hold on their way from input to output.
        most_rejected: rows that may be rejected, by this worker, before it stops.
    """

    def __init__(self, asked: Asked, location: Location, memory: int, most_rejected: int) -> None:
        self._asked, self._location, self._most_rejected = asked, location, most_rejected
        self._flow: Flow[Piece] = Flow(memory)
        self._open = ExitStack()
        self._begun: Begun | None = None
        self._given: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # as many as threads call `make`
        self._wanted: dict[int, Future[Done]] = {}
        """In the order in which they were given."""
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: HeadraceError | None = None
        self._parts: Parts | None = None

    @property
    def name(self) -> str:
        """The machine, and the number of this process there."""
        return f"{socket.gethostname()}/{os.getpid()}"

    def open(self, manifest: Manifest | None) -> Opening:
        """Open the graph, to go on with a job or, without a manifest, to begin one.

        Raises:
            InvalidJob, InvalidRepository: it cannot begin; JobChanged: nor go on.
        """
        begun = begun_anew(self._asked) if manifest is None else gone_on(manifest, self._asked)
        try:
            self._begun = self._open.enter_context(begun)
        except InvalidRepository as error:
            raise InvalidRepository(f"on {socket.gethostname()}: {error.message}") from None
        return Opening(self.name, self._begun.manifest, self._begun.recipe)

    def make(self, number: int) -> Done:
        """Make a split.

        Raises:
            JobFailed: it, or one given before, cannot be made; this worker is of no use then. JobStopped: it was told to stop.
        """
        made: Future[Done] = Future()
        with self._changing:
            if self._error is not None:
                raise self._error
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, args=(self._checked(),), name="headrace-job", daemon=True)
                self._thread.start()
            self._wanted[number] = made
            self._given.put(number)
        return made.result()

    def progress(self) -> tuple[int, int]:
        """How many rows have run or were rejected, in splits that are under way too, and how many were rejected."""
        return self._flow.rows, self._parts.rejected if self._parts is not None else 0

    def stop(self) -> None:
        """Leave what is unfinished, and close the graph."""
        self._flow.stop(JobStopped("the job was stopped"))
        self._given.put(None)
        if self._thread is not None:
            self._thread.join()
        self._open.close()

    def _checked(self) -> Begun:
        """The job, when it is the one in the output."""
        assert self._begun is not None
        there = self._location.manifest()
        if there is None or there.id != self._begun.manifest.id:
            raise JobFailed(
                f"{self._location.name} is another place on {socket.gethostname()}: parts are written where they are made, so "
                "the output has to be a directory that all machines share, or a URL that is of the same store on each"
            )
        return self._begun

    def _work(self, begun: Begun) -> None:
        runners = [begun.graph.runner(number) for number in range(begun.runners)]
        try:
            with (
                Parts(self._location, begun, self._most_rejected, 0, self._recorded) as self._parts,
                self._flow.working(self._windows(begun), runners) as written,
            ):
                try:
                    for work in written:
                        self._parts.add(work)
                finally:
                    self._given.put(None)  # whoever reads may wait for a split
        except Exception as error:
            self._fail(begun, error)
        else:
            self._fail(begun, JobStopped("the job was stopped"))

    def _windows(self, begun: Begun) -> Iterator[Work[Piece]]:
        while (number := self._given.get()) is not None:
            try:
                yield from windows(begun.recipe, begun.inputs, number, begun.splits[number])
            except (OSError, HeadraceError) as error:
                raise _Unreadable(number, error) from error

    def _recorded(self, done: Done) -> None:
        with self._changing:
            made = self._wanted.pop(done.split)
        made.set_result(done)

    def _fail(self, begun: Begun, error: Exception) -> None:
        with self._changing:
            # Parts are written one after the other, in the order in which splits were given.
            first = next(iter(self._wanted), None)
            if isinstance(error, _Unreadable):
                first, error = error.number, error.why
            where = self.name if first is None else f"{begun.address(first)}, in {self.name}"
            self._error = error if isinstance(error, JobStopped) else JobFailed(f"{where}: {sentence(error)}")
            for made in self._wanted.values():
                made.set_exception(self._error)
            self._wanted.clear()


class _Unreadable(Exception):
    """A split cannot be read, and why."""

    def __init__(self, number: int, why: Exception) -> None:
        super().__init__(number)
        self.number, self.why = number, why
