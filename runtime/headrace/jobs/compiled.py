"""The graph of a job: a version that an engine has loaded, as it would to serve it, and runs of batches that the job makes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from headrace.backends.base import Session
from headrace.backends.installed import onnxruntime_builds
from headrace.clock import MILLISECOND
from headrace.engine.engine import Engine, ModelControl, source_of
from headrace.engine.graphs import graph_of
from headrace.engine.lifecycle import Opened, Running, goes_back
from headrace.engine.profile import Profile
from headrace.engine.profiles import Profiles
from headrace.errors import InvalidJob
from headrace.graph.nodes import BUILT_IN
from headrace.jobs.cutting import Rows
from headrace.jobs.inner import InnerQueue, JobQueues
from headrace.jobs.manifest import Identity
from headrace.jobs.window import Window
from headrace.model import ModelSpec
from headrace.models.files import ModelFiles
from headrace.models.fill import GRAPHS
from headrace.models.repository import ModelSource
from headrace.protocol.headrace_pb2 import ModelConfig

_LOOK_NS = 100 * MILLISECOND
_THREADS = "intra_op_thread_count"
_FREE = ("onnxruntime", "triton", "several")
"""Backends whose sessions any number of threads may call."""
_THREADED = ("onnxruntime", "several")
"""Backends that run a batch on as many threads as they are told."""
_COLLECTED = 64 << 20
"""Bytes of rows that have crossed a border when they are run, although more of their unit are to come."""


class Runner:
    """Runs batches in the thread that calls it; each thread has its own."""

    def __init__(self, session: Session, inner: Sequence[tuple[InnerQueue, Session]]) -> None:
        self._session, self._inner = session, inner

    def run(self, window: Window, unit: Sequence[Rows]) -> None:
        """Run some batches of a window, to the last row of what they became; no more of them when nobody wants the window.

        Raises:
            Overloaded, MemoryError: nothing can be run now.
        """
        for rows in unit:
            if not window.is_wanted:
                return
            window.run(rows, self._session)
            if sum(queue.nbytes_here for queue, _ in self._inner) > _COLLECTED:
                self._settle(window)
        self._settle(window)
        for rows in unit:
            window.results.close(rows)

    def _settle(self, window: Window) -> None:
        """Run what has crossed borders, and what that has sent on."""
        while window.is_wanted and any(queue.run(session) for queue, session in self._inner):
            pass


class Compiled:
    """A loaded graph."""

    batch_rows: int | None = None
    """Rows of a batch, where nobody says how many: what the profile does."""

    def __init__(self, running: Running) -> None:
        self._opened = running.opened
        queues = {crew.queue.spec.name: crew.queue for crew in running.behind}
        self._inner = [
            (queue, behind.session)
            for behind in running.opened.behind
            if isinstance(queue := queues[behind.spec.name], InnerQueue)
        ]
        self._sessions = [session for session, count in running.opened.sessions for _ in range(count)]

    @property
    def spec(self) -> ModelSpec:
        """What it takes and gives."""
        return self._opened.spec

    @property
    def versions(self) -> dict[str, str]:
        """Who computes, beside Headrace."""
        return onnxruntime_builds()

    @property
    def has_borders(self) -> bool:
        """Whether its rows become others on the way."""
        return not goes_back(self._sessions[0])

    def identity(self) -> Identity:
        """What its numbers depend on."""
        spec, lent = self.spec, [each.running.opened for each in self._opened.lent]
        models = {opened.spec.name: _digest(opened) for opened in (self._opened, *lent)}
        return Identity(name=spec.name, version=spec.version, digest=spec.digest, models=models)

    def runner(self, number: int) -> Runner:
        """For one thread; `number` spreads them over devices."""
        return Runner(self._sessions[number % len(self._sessions)], self._inner)


def _digest(opened: Opened) -> str:
    """Of the files of a model and its configuration, in hex."""
    return hashlib.sha256(opened.own_digest.encode() + opened.config.SerializeToString(deterministic=True)).hexdigest()


@contextmanager
def compiled(repository: ModelSource | Path | str, name: str, threads: int) -> Iterator[Compiled]:
    """Load a graph, or a model, for a job.

    Args:
        repository: where it is.
        name: of it.
        threads: of ONNX Runtime for one batch, where its configuration does not say how many.

    Raises:
        InvalidRepository: it does not load; the message says why.
        InvalidJob: it cannot be run in batches.
    """
    engine = Engine(_WithThreads(source_of(repository), threads), control=ModelControl("explicit"), queues=JobQueues)
    with engine:
        running = _loaded(engine, name)
        check_answers(running.opened.spec)
        yield Compiled(running)


def check_answers(spec: ModelSpec) -> None:
    """Whether there is one answer for each row.

    Raises:
        InvalidJob: there is not.
    """
    if spec.decoupled or spec.sequences:
        what = "answers a request several times" if spec.decoupled else "has sequences"
        raise InvalidJob(f"'{spec.name}' {what}, and a job needs one answer for each row: take another graph")


def at_once(repository: ModelSource | Path | str, name: str) -> int | None:
    """How many of its batches may run at once, as its own code expects; None: as many as one likes.

    Sessions of models and the nodes of Headrace may be called by any number of threads. A class of somebody else may be by as
    many as it has instances.

    Raises:
        InvalidJob, InvalidRepository: it cannot be read.
    """
    source = source_of(repository)
    _check_name(source, name)
    files = source.read(name)
    if files.config.platform not in GRAPHS:
        free = files.config.backend in _FREE
        return None if free else max(1, sum(group.count for group in files.config.instance_group))
    graph = graph_of(files)
    own = any(node.run and node.run not in BUILT_IN for node in graph.nodes.values())
    limits = [limit for model in graph.models if (limit := at_once(source, model)) is not None]
    return min([*limits, *([graph.instances or 1] if own else [])], default=None)


def measured(repository: ModelSource | Path | str, name: str, threads: int | None = None) -> Profile | None:
    """What is known of how long a graph runs; measured now, if it was not before. None where that cannot be.

    Args:
        repository: where it is.
        name: of it.
        threads: of ONNX Runtime for one batch, as of `compiled`; None: as a server would load it.

    Raises:
        InvalidRepository: it does not load; the message says why.
    """
    source = source_of(repository) if threads is None else _WithThreads(source_of(repository), threads)
    with Engine(source, control=ModelControl("explicit"), profiles=Profiles()) as engine:
        running = _loaded(engine, name)
        assert engine.probe is not None
        while running.profile is None and not running.unprofiled:
            if engine.probe.wait(engine.clock.now() + _LOOK_NS):
                break
        return running.profile


def _check_name(source: ModelSource, name: str) -> None:
    names = source.names()
    if name not in names:
        raise InvalidJob(f"there is no graph '{name}' in {source}; there are {', '.join(names) or 'none'}")


def _loaded(engine: Engine, name: str) -> Running:
    _check_name(engine.repository, name)
    engine.load(name)
    return max((one for one in engine.catalog.running() if one.opened.spec.name == name), key=lambda one: one.opened.spec.version)


class _WithThreads:
    """A repository whose models run a batch on so many threads, where their configurations do not say it themselves."""

    def __init__(self, source: ModelSource, threads: int) -> None:
        self._source, self._threads = source, threads

    def names(self) -> list[str]:
        """See `ModelSource`."""
        return self._source.names()

    def read(self, name: str, override: ModelConfig | None = None, gpus: int = 0) -> ModelFiles:
        """See `ModelSource`."""
        files = self._source.read(name, override, gpus)
        if files.config.backend not in _THREADED or _THREADS in files.config.parameters:
            return files
        config = ModelConfig()
        config.CopyFrom(files.config)
        config.parameters[_THREADS].string_value = str(self._threads)
        return replace(files, config=config)

    def fingerprint(self, name: str) -> object:
        """See `ModelSource`."""
        return self._source.fingerprint(name)
