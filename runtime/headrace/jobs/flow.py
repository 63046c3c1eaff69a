"""From who reads to who runs to who writes, in order, and within bounds of memory.

One thread reads windows and puts them in, as long as there is room. Threads of runners take units of them, the first window
first. One thread takes the windows out, in the order in which they were put in, each when its last unit has run.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from headrace.jobs.compiled import Runner
from headrace.jobs.cutting import Rows, count
from headrace.jobs.window import Window

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Work(Generic[T]):
    """A window on its way: whose it is, and how many bytes it holds until it is written. `window` None has nothing to run.

    `skipped` are rows that are not in it.
    """

    owner: T
    window: Window | None = None
    nbytes: int = 0
    skipped: int = 0
    left: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.left = len(self.window.units) if self.window is not None else 0


class Flow(Generic[T]):
    """See above.

    Args:
        memory: how many bytes windows may hold between those who read and those who write; one always may.
    """

    def __init__(self, memory: int) -> None:
        self._memory, self._held = memory, 0
        self._changed = threading.Condition()
        self._order: deque[Work[T]] = deque()
        self._units: deque[tuple[Work[T], Sequence[Rows]]] = deque()
        self._is_complete = False
        self._error: BaseException | None = None
        self._unread: BaseException | None = None
        """Why nothing more can be read: what was, is written first."""
        self.rows = 0
        """Rows that have run, or never will."""

    def stop(self, error: BaseException) -> None:
        """Let everybody end, each with what he is at. The first error counts."""
        with self._changed:
            self._error = self._error or error
            for work in self._order:
                if work.window is not None:
                    work.window.is_wanted = False
            self._changed.notify_all()

    @contextmanager
    def working(self, works: Iterable[Work[T]], runners: Sequence[Runner]) -> Iterator[Iterator[Work[T]]]:
        """Read `works` and run them, in threads that have ended when this is left; gives them in order, when they have run.

        Raises:
            Exception: whatever any of them raised, or was given to `stop`.
        """
        threads = [threading.Thread(target=self._read, args=(works,), name="headrace-job-read", daemon=True)]
        threads += [
            threading.Thread(target=self._run, args=(runner,), name=f"headrace-job-run-{number}", daemon=True)
            for number, runner in enumerate(runners)
        ]
        for thread in threads:
            thread.start()
        try:
            yield self._written()
        except BaseException as error:
            self.stop(error)
            raise
        finally:
            with self._changed:
                self._is_complete = True
                self._changed.notify_all()
            for thread in threads:
                thread.join()

    def _read(self, works: Iterable[Work[T]]) -> None:
        try:
            for work in works:
                if not self._put(work):
                    return
        except BaseException as error:
            self._unread = error
        with self._changed:
            self._is_complete = True
            self._changed.notify_all()

    def _put(self, work: Work[T]) -> bool:
        """Put a window in when there is room; False when nobody wants it any more."""
        with self._changed:
            while self._held and self._held + work.nbytes > self._memory and self._error is None:
                self._changed.wait()
            if self._error is not None:
                return False
            self._held += work.nbytes
            self.rows += work.skipped
            self._order.append(work)
            if work.window is not None:
                self._units.extend((work, unit) for unit in work.window.units)
            self._changed.notify_all()
            return True

    def _run(self, runner: Runner) -> None:
        try:
            while (taken := self._take()) is not None:
                work, unit = taken
                assert work.window is not None
                runner.run(work.window, unit)
                with self._changed:
                    if self._error is not None:
                        return
                    self.rows += sum(map(count, unit))
                    work.left -= 1
                    if not work.left:
                        self._changed.notify_all()
        except BaseException as error:
            self.stop(error)

    def _take(self) -> tuple[Work[T], Sequence[Rows]] | None:
        with self._changed:
            while not self._units and not self._is_complete and self._error is None:
                self._changed.wait()
            return None if self._error is not None or not self._units else self._units.popleft()

    def _written(self) -> Iterator[Work[T]]:
        while True:
            with self._changed:
                while self._error is None and (self._order[0].left if self._order else not self._is_complete):
                    self._changed.wait()
                if self._error is not None:
                    raise self._error
                if not self._order:
                    if self._unread is not None:
                        raise self._unread
                    return
                work = self._order.popleft()
            yield work
            with self._changed:
                self._held -= work.nbytes
                self._changed.notify_all()
