"""A batch job on Ray: the driver holds the lock and gives out splits, and actors make the parts, each its own.

An actor reads what it runs, so nothing that it waits for needs a CPU that actors have taken. What an actor had that has died,
with its node or alone, is made by others; actors end with their driver, and whoever goes on then, here or without Ray, makes what
is not recorded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from headrace.cluster.connection import Actors, connected, room_for
from headrace.cluster.rota import AHEAD, Rota
from headrace.errors import HeadraceError, InvalidJob, JobFailed, JobStopped, sentence
from headrace.jobs.beginning import Known, Server
from headrace.jobs.inputs import Inputs
from headrace.jobs.job import ActorProgress, BatchJob, Progress
from headrace.jobs.manifest import Done, Manifest
from headrace.jobs.worker import Opening, Worker

log = logging.getLogger("headrace.batch")

_LOOK_SECONDS = 0.2
_ASK_SECONDS = 0.5
_PATIENCE_SECONDS = 30.0
"""How long none can begin until the log says so."""
_END_SECONDS = 10.0
_UNOPENED = 3
"""Actors in a row that may die before they have opened the graph."""


@dataclass(slots=True, eq=False)
class _Actor:
    """An actor, as the driver knows it. `opened` 0 is one that has not come to that; all times are of the driver."""

    number: int
    handle: Any
    name: str = ""
    opened: float = 0.0
    asked: float = 0.0
    rows: int = 0
    rejected: int = 0
    done: list[Done] = field(default_factory=list[Done])

    def told(self, rows: int, rejected: int) -> None:
        """How far it is, in splits that are under way too."""
        self.rows, self.rejected = rows, rejected

    def made(self, done: Done) -> None:
        """It has made a split."""
        self.done.append(done)
        self.rows, self.rejected = max(self.rows, self._rows), max(self.rejected, self._rejected)

    def died(self) -> None:
        """What it has not finished is lost."""
        self.rows, self.rejected = self._rows, self._rejected

    @property
    def _rows(self) -> int:
        return sum(done.rows + done.rejected for done in self.done)

    @property
    def _rejected(self) -> int:
        return sum(done.rejected for done in self.done)


class RayJob(BatchJob):
    """A job whose rows run in actors. It runs once; see `BatchJob` for everything else.

    It works on the Ray that this process is connected to, else on that of RAY_ADDRESS, else on one that ends with it.

    Args:
        actors: how many, and what they take.
        told, more: as for `BatchJob`; `memory` is of each actor, and graph, input and output are the same on all nodes.

    Raises:
        InvalidJob: the graph is to be run by a server.
    """

    def __init__(self, actors: Actors, *told: Any, **more: Any) -> None:
        super().__init__(*told, **more)
        if isinstance(self._asked.repository, Server):
            raise InvalidJob("a job runs on Ray or shares a server, not both")
        self._wanted, self._stopping = actors, threading.Event()
        self._actors: list[_Actor] = []
        """All that there were."""
        self._under_way: dict[ray.ObjectRef, tuple[_Actor, str, int]] = {}
        """Of each call, its actor, the method, and the split."""
        self._count, self._unopened = 1, 0
        self._idle_since: float | None = None

    def stop(self) -> None:
        """See `BatchJob`."""
        self._stopping.set()

    @property
    def progress(self) -> Progress:
        """See `BatchJob`."""
        known = self._begun
        if known is None or self._since is None:
            return Progress()
        now = self._until or time.monotonic()
        splits, actors = known.splits, list(self._actors)
        before = sum(splits[number].rows for number in self._done)
        sizes = [rows for _, rows in known.manifest.shapes.batch_rows]
        made = [done for actor in actors for done in list(actor.done)]
        return Progress(
            rows=before + sum(actor.rows for actor in actors),
            total_rows=sum(split.rows for split in splits),
            before=before,
            rejected=self._rejected,
            splits=len(self._done) + len(made),
            total_splits=len(splits),
            nbytes=sum(done.nbytes for done in made),
            batch_rows=(min(sizes), max(sizes)),
            seconds=now - self._since,
            actors=tuple(
                ActorProgress(actor.name, actor.rows, len(actor.done), round(actor.rows / max(1e-3, now - actor.opened), 1))
                for actor in actors
                if actor.opened
            ),
        )

    @property
    def _rejected(self) -> int:
        """Rows, in runs before this one and by all actors."""
        before = sum(done.rejected for done in self._done.values())
        return before + sum(actor.rejected for actor in list(self._actors))

    @contextmanager
    def _opened(self) -> Iterator[Known]:
        manifest = self._found()
        cpus = self._wanted.cpus or (manifest.shapes.threads if manifest is not None else 1)
        self._wanted = replace(self._wanted, cpus=cpus)
        self._asked = replace(self._asked, cpus=cpus)
        with connected(self._wanted):
            try:
                opening = self._first(manifest)
                if manifest is None:
                    self._location.begin(opening.manifest)
                yield Known(opening.manifest, Inputs(opening.manifest.found, self._asked.filesystem), opening.recipe)
            finally:
                self._end()

    def _first(self, manifest: Manifest | None) -> Opening:
        """Have one actor open the graph, and begin the job if nobody has: it has the devices that the others have, too."""
        self._start(manifest)
        while True:
            for actor, method, _, result in self._results():
                if method == "open" and isinstance(result, Opening):
                    self._open(actor, result)
                    return result
                self._lost(actor, result)
                self._start(manifest)

    def _make(self, begun: Known) -> None:
        rota = Rota(number for number in range(len(begun.splits)) if number not in self._done)
        self._count = min(self._wanted.count or room_for(self._wanted), max(1, rota.waiting))
        while not rota.is_done:
            self._employ(begun, rota)
            for actor, method, number, result in self._results():
                if isinstance(result, Exception):
                    self._lost(actor, result)
                    if (guilty := rota.died(actor.number)) is not None:
                        raise JobFailed(f"actors die of {begun.address(guilty)}; the last one, {actor.name}: {_why(result)}")
                    break  # what else it had to say is of no use
                if method == "open":
                    self._open(actor, result)
                elif method == "progress":
                    actor.told(*result)
                else:
                    rota.made(actor.number, number)
                    self._made(actor, result)
        self._end()
        self._location.tidy()  # of actors that died

    def _employ(self, begun: Known, rota: Rota) -> None:
        """Give every actor what it can take, and see that there are enough."""
        alive = [actor for actor in self._actors if actor.handle is not None]
        for actor in alive:
            if not actor.opened:
                continue
            while (number := rota.give(actor.number)) is not None:
                self._reading[number] = time.time_ns()
                self._call(actor, "make", number)
            if time.monotonic() - actor.asked > _ASK_SECONDS:
                actor.asked = time.monotonic()
                self._call(actor, "progress")
        for _ in range(min(self._count - len(alive), rota.waiting)):
            self._start(begun.manifest)

    def _made(self, actor: _Actor, done: Done) -> None:
        actor.made(done)
        self._recorded(done)
        if self._rejected > self._most_rejected:
            raise JobFailed(f"{self._rejected} rows were rejected, and at most {self._most_rejected} may be (--max-rejects)")

    # Actors, and calls of them.

    def _start(self, manifest: Manifest | None) -> None:
        options: dict[str, Any] = {
            "num_cpus": self._wanted.cpus,
            "num_gpus": self._wanted.gpus,
            "max_concurrency": AHEAD + 2,  # splits, how far it is, and the end
            "max_restarts": 0,
        }
        rejected = sum(done.rejected for done in self._done.values())
        told = (self._asked, self._location.writer(), self._memory, self._most_rejected - rejected)
        handle = ray.remote(Worker).options(**options).remote(*told)
        actor = _Actor(len(self._actors), handle)
        self._actors.append(actor)
        self._call(actor, "open", manifest)

    def _open(self, actor: _Actor, opening: Opening) -> None:
        actor.name, actor.opened, self._unopened = opening.name, time.monotonic(), 0

    def _call(self, actor: _Actor, method: str, *arguments: Any) -> None:
        number = arguments[0] if method == "make" else -1
        self._under_way[getattr(actor.handle, method).remote(*arguments)] = (actor, method, number)

    def _results(self) -> Iterator[tuple[_Actor, str, int, Any]]:
        """What has come back: the actor, the method, the split, and the result, which is an exception if the actor has died.

        Raises:
            JobStopped: the job was told to stop.
            HeadraceError: what an actor has raised.
        """
        ready, _ = ray.wait(list(self._under_way), num_returns=1, timeout=_LOOK_SECONDS)
        if self._stopping.is_set():
            raise JobStopped("the job was stopped")
        self._see_that_some_begin()
        for ref in ready:
            actor, method, number = self._under_way.pop(ref)
            try:
                yield actor, method, number, ray.get(ref)
            except RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, HeadraceError) else JobFailed(f"{actor.name}: {sentence(cause)}") from None
            except RayError as error:
                yield actor, method, number, error

    def _lost(self, actor: _Actor, error: Exception) -> None:
        """An actor does not answer, and shall never again."""
        log.warning("an actor (%s) has died: %s", actor.name or "which has not begun", _why(error))
        self._under_way = {ref: call for ref, call in self._under_way.items() if call[0] is not actor}
        ray.kill(actor.handle)
        actor.handle = None
        actor.died()
        self._unopened += not actor.opened
        if self._unopened >= _UNOPENED:
            raise JobFailed(f"actors die when they open the graph, {_UNOPENED} one after the other: {_why(error)}")

    def _see_that_some_begin(self) -> None:
        """Say so if there is no room for any."""
        if any(actor.opened and actor.handle is not None for actor in self._actors):
            self._idle_since = None
            return
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since > _PATIENCE_SECONDS:
            self._idle_since = now
            log.warning(
                "no actor works yet: each is to have %g CPUs and %g GPUs of one node, and Ray has %s left; see --actor-cpus",
                self._wanted.cpus,
                self._wanted.gpus,
                ray.available_resources(),
            )

    def _end(self) -> None:
        """End all actors, those that work within a batch."""
        alive = [actor for actor in self._actors if actor.handle is not None]
        stopping = [actor.handle.stop.remote() for actor in alive if actor.opened]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=_END_SECONDS)
        for actor in alive:
            ray.kill(actor.handle)
            actor.handle = None
        self._under_way.clear()


def _why(error: Exception) -> str:
    """Of what Ray says of a death, what it begins with: it goes on with all that may have been the cause."""
    return sentence(error).splitlines()[0].rstrip(".")
