"""The models an engine holds: which versions there are, in what state, and how one takes another's place.

Loads of one model are serialised by a lock of its own; what transports need is published through `Routes` in one step. A
version that is replaced serves what is queued for it, in the background.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from headrace.backends.installed import usable_gpus
from headrace.backends.registry import Backends
from headrace.clock import SECOND, Clock
from headrace.engine.lifecycle import Lent, Opened, Running, open_version, reason_of, warm_up
from headrace.engine.probe import Probe
from headrace.engine.routes import Routes
from headrace.engine.several import with_accounts
from headrace.engine.variants import variant_of, with_variant
from headrace.errors import Draining, HeadraceError, LoadFailed, ModelMissing
from headrace.ledger.ledger import Ledger
from headrace.model import ModelSpec, State
from headrace.models.files import ModelFiles, VersionFiles
from headrace.models.fill import GRAPHS
from headrace.models.repository import ModelSource
from headrace.models.spec import with_target
from headrace.models.uploads import Upload
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.scheduling.base import OpenQueue

log = logging.getLogger(__name__)

_RETIRE_NS = 300 * SECOND
"""How long a replaced version may go on serving what is queued for it."""


@dataclass(slots=True)
class ModelStatus:
    """What is known of one version; `version` None stands for a model of which no version could be read."""

    model: str
    version: int | None
    state: State
    reason: str = ""
    spec: ModelSpec | None = None
    filled: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


_Versions: TypeAlias = dict[int, tuple[ModelStatus, Running | None]]


@dataclass(slots=True)
class _Model:
    """A model by name. `lock` serialises its loads; `versions` is replaced, never changed.

    `needs` is what a graph runs. `given` is what its load request brought, which holds for bringing it up anew, too.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    versions: _Versions = field(default_factory=dict)
    broken: ModelStatus | None = None
    unloaded: bool = False
    needs: tuple[str, ...] = ()
    given: tuple[ModelConfig | None, Upload | None] = (None, None)


class Catalog:
    """All models by name.

    Args:
        repository: where they come from.
        backends: what loads them.
        open_queue: the factory of queues.
        routes: where what is ready is published.
        ledger: where nodes of graphs are accounted.
        clock: the clock.
        probe: what measures versions, if they are to be measured.
        targets: how soon (ns) requests of models are to be answered whose configuration does not say it.
        needs_sequence_keys: whether several replicas answer, so that sequences have to be kept with one of them.
    """

    def __init__(  # noqa: PLR0913
        self,
        repository: ModelSource,
        backends: Backends,
        open_queue: OpenQueue,
        routes: Routes,
        ledger: Ledger,
        clock: Clock,
        probe: Probe | None = None,
        *,
        targets: Mapping[str, int] = {},
        needs_sequence_keys: Callable[[], bool] = lambda: False,
    ) -> None:
        self._targets, self._needs_sequence_keys = targets, needs_sequence_keys
        self._repository, self._backends, self._open_queue = repository, backends, open_queue
        self._routes, self._ledger, self._clock, self._probe = routes, ledger, clock, probe
        self._lock = threading.Lock()
        self._models: dict[str, _Model] = {}
        self._is_closed = False
        self._retiring: set[Running] = set()

    def load(self, name: str, override: ModelConfig | None = None, upload: Upload | None = None) -> None:
        """Load or reload a model. Versions that serve go on doing so until their successors are warm, or if those fail.

        The models that a graph runs are loaded, if they are not; the graphs that run this one are brought up anew.

        Args:
            name: its name.
            override: its configuration, instead of the one in the repository.
            upload: its files, instead of those in the repository.

        Raises:
            NotInRepository: there is no such model.
            LoadFailed: at least one version did not come up.
            InvalidRepository: the model cannot be read.
        """
        changed: list[str] = []
        try:
            self._load(name, override, upload, changed)
        finally:
            # With no lock held: whoever loads one of these may wait for another.
            for each in changed:
                self._renew_graphs(each)

    def _load(self, name: str, override: ModelConfig | None, upload: Upload | None, changed: list[str]) -> None:
        """`load`, but for the graphs that run what was `changed`."""
        with self._locked(name) as model:
            try:
                files = self._read(name, override, upload)
            except HeadraceError as error:
                if name not in self._source(upload).names():
                    # There is no such model, or none of that name can be: nothing to keep in mind.
                    if not model.versions:
                        self._drop(name)
                    raise
                if any(running for _, running in model.versions.values()):
                    model.versions = {
                        number: (replace(status, reason=f"serving what was loaded before: {error.message}"), running)
                        for number, (status, running) in model.versions.items()
                    }
                else:
                    model.broken = ModelStatus(name, None, State.UNAVAILABLE, error.message)
                    self._publish(name, model)
                log.error("model cannot be read: %s", error.message, extra={"model": name})
                raise
            model.broken, model.unloaded = None, False
            before = model.versions
            try:
                self._load_versions(name, model, files, changed)
            finally:
                has_changed = bool(_only_in(model.versions, before))
                if has_changed:
                    changed.append(name)
                if has_changed or not before:
                    model.given = override, upload

    def _read(self, name: str, override: ModelConfig | None, upload: Upload | None) -> ModelFiles:
        files = self._source(upload).read(name, override, usable_gpus())
        return replace(files, upload=upload, config=with_target(files.config, self._targets.get(name)))

    def _source(self, upload: Upload | None) -> ModelSource:
        return upload.repository if upload else self._repository

    def unload(self, name: str) -> None:
        """Stop serving a model, once what is queued has been answered in the background. Unknown names are fine."""
        with self._lock:
            if name not in self._models:
                return
        with self._locked(name) as model:
            old = [running for _, running in model.versions.values() if running]
            model.versions = {
                number: (ModelStatus(name, number, State.UNAVAILABLE, "unloaded", status.spec), None)
                for number, (status, _) in model.versions.items()
            }
            model.broken, model.unloaded, model.given = None, True, (None, None)
            self._publish(name, model)
            self._retire(old)
            log.info("model unloaded", extra={"model": name})
        if old:
            self._renew_graphs(name)

    def try_load(self, name: str) -> None:
        """`load`, whose failure is in the statuses and in the log."""
        try:
            self.load(name)
        except HeadraceError as error:
            log.debug("load of %s: %s", name, error)
        except Exception:
            log.exception("loading model '%s' failed; this is a bug in Headrace", name)

    def forget(self, name: str) -> None:
        """Unload a model that is gone from the repository, and everything that was known of it."""
        self.unload(name)
        with self._locked(name) as model:
            if model.unloaded:
                self._drop(name)

    def close(self) -> None:
        """Load nothing more."""
        with self._lock:
            self._is_closed = True

    def names(self) -> set[str]:
        """The models that were loaded, or tried, and not unloaded since."""
        with self._lock:
            return {name for name, model in self._models.items() if not model.unloaded}

    # Graphs, and what they run.

    def _renew_graphs(self, name: str) -> None:
        """Bring up anew the graphs that run a model which has changed, or is there again; without it, they are not ready."""
        with self._lock:
            graphs = [graph for graph, known in self._models.items() if name in known.needs and not known.unloaded]
        for graph in graphs:
            changed: list[str] = []
            try:
                with self._locked(graph) as model:
                    before = model.versions
                    try:
                        self._load_versions(graph, model, self._read(graph, *model.given), None)
                    except LoadFailed:
                        raise
                    except HeadraceError as error:
                        self._let_go(graph, model, error)
                        raise
                    finally:
                        if model.versions != before:
                            changed.append(graph)
            except HeadraceError as error:
                log.debug("graph %s: %s", graph, error)
            for each in changed:
                self._renew_graphs(each)

    def _let_go(self, graph: str, model: _Model, error: HeadraceError) -> None:
        """Of a graph that cannot be read: what runs models that have changed would go on with those that were."""
        old = model.versions
        model.versions = {
            number: (status, running)
            if running is None or self._runs_current(running)
            else (ModelStatus(graph, number, State.UNAVAILABLE, error.message, status.spec), None)
            for number, (status, running) in old.items()
        }
        self._publish(graph, model)
        self._retire(_only_in(old, model.versions))
        log.error("graph cannot be read: %s", error.message, extra={"model": graph})

    def _lend(self, name: str, who: str, model: str, version: int, changed: list[str] | None) -> Lent:
        """A version for the model `name` to run, held open. `changed` None: what is not loaded stays so.

        Raises:
            ModelMissing: it is not there.
        """
        # Before any lock is waited for: two threads that each hold a graph, and want the other's, would wait for ever.
        if name in self.needs_of(model):
            raise ModelMissing(who, model, version, "no graph can contain itself")
        if changed is not None and self._find(model, version) is None:
            self._bring_in(who, model, version, changed)
        running = self._find(model, version)
        if running is None or not running.hold():
            raise ModelMissing(who, model, version, "load it first")
        return Lent(model, version, running)

    def _bring_in(self, who: str, model: str, version: int, changed: list[str]) -> None:
        try:
            self._load(model, None, None, changed)
        except LoadFailed:
            return  # one of its versions may have come up
        except HeadraceError as error:
            raise ModelMissing(who, model, version, error.message) from None

    def needs_of(self, name: str) -> set[str]:
        """A model, and all that it runs, as far as that is known."""
        found: set[str] = set()
        waiting = [name]
        with self._lock:
            while waiting:
                if (each := waiting.pop()) not in found:
                    found.add(each)
                    known = self._models.get(each)
                    waiting += known.needs if known is not None and not known.unloaded else ()
        return found

    def _find(self, name: str, version: int) -> Running | None:
        """A version that runs; 0 is the highest."""
        with self._lock:
            model = self._models.get(name)
        running = {number: each for number, (_, each) in (model.versions if model else {}).items() if each is not None}
        return running.get(version or max(running, default=0))

    def _load_versions(self, name: str, model: _Model, files: ModelFiles, changed: list[str] | None) -> None:
        """Bring up what is new, publish it in one step, then let go of what it replaces."""
        model.needs = _needs(files)
        old = dict(model.versions)
        new: _Versions = {
            number: (ModelStatus(name, number, State.UNAVAILABLE, reason), None) for number, reason in files.missing.items()
        }
        failed = dict(files.missing)
        for version in files.versions:
            status, running = old.get(version.number, (None, None))
            try:
                if running is not None and status is not None and self._is_still(running, files, version):
                    new[version.number] = (replace(status, reason=""), running)
                    continue
                if running is None:
                    model.versions = {**model.versions, version.number: (ModelStatus(name, version.number, State.LOADING), None)}
                    self._publish(name, model)
                new[version.number] = self._bring_up(files, version, changed)
            except (Exception, SystemExit) as error:
                reason = failed[version.number] = reason_of(error, version.path)
                log.error("version did not load", extra={"model": name, "version": version.number, "reason": reason})
                # A graph that lost one of its models would go on with one that was unloaded.
                is_over = isinstance(error, ModelMissing) and files.config.platform in GRAPHS
                if running is not None and status is not None and not is_over:
                    new[version.number] = (replace(status, reason=f"serving what was loaded before: {reason}"), running)
                else:
                    new[version.number] = (ModelStatus(name, version.number, State.UNAVAILABLE, reason), None)
        model.versions = new
        self._publish(name, model)
        self._retire(_only_in(old, new))
        if self._is_closed:
            # Closed while this was loading: `close` did not see the new ones.
            self._retire([running for _, running in new.values() if running is not None])
        elif self._probe is not None:
            self._probe.add(_only_in(new, old))
        if failed:
            raise LoadFailed(name, failed)

    def _is_still(self, running: Running, files: ModelFiles, version: VersionFiles) -> bool:
        """Whether bringing up `version` again would give the same."""
        return running.opened.is_still(files, version) and self._runs_current(running)

    def _runs_current(self, running: Running) -> bool:
        """Whether a graph's models are those that it would run now."""
        return all(self._find(*each[:2]) is each.running for each in running.opened.lent)

    def _bring_up(self, files: ModelFiles, version: VersionFiles, changed: list[str] | None) -> tuple[ModelStatus, Running]:
        begun = self._clock.now()
        with self._probe.pause() if self._probe is not None else nullcontext():
            opened = self._open(files, version, changed)
            warm_ns = warm_up(opened, self._clock)
            lasted, keys = self._clock.now() - begun, self._needs_sequence_keys
            running = Running(opened, self._open_queue, self._clock, lasted, warm_ns, needs_sequence_keys=keys)
            if self._probe is not None:
                self._probe.prime(running)
        running.start()
        spec = opened.spec
        log.info(
            "version ready",
            extra={"model": spec.name, "version": spec.version, "digest": spec.digest[:12], "filled": opened.filled},
        )
        for line in opened.warnings:
            log.warning("%s", line, extra={"model": spec.name})
        return ModelStatus(spec.name, spec.version, State.READY, "", spec, opened.filled, opened.warnings), running

    def _open(self, files: ModelFiles, version: VersionFiles, changed: list[str] | None) -> Opened:
        if files.config.platform in GRAPHS:
            opened = self._open_graph(files, version, changed)
        else:
            opened = open_version(files, version, self._backends, self._probe.advice(files, version) if self._probe else None)
            opened = with_accounts(opened, self._ledger, self._clock)
        whose = f"model '{files.name}': as its variant it"
        return with_variant(opened, lambda model: self._lend(files.name, whose, model, 0, changed), self._ledger, self._clock)

    def _open_graph(self, files: ModelFiles, version: VersionFiles, changed: list[str] | None) -> Opened:
        from headrace.engine.graphs import open_graph  # for whoever has graphs

        def lend(node: str, model: str, number: int) -> Lent:
            return self._lend(files.name, f"graph '{files.name}': node '{node}'", model, number, changed)

        return open_graph(files, version, lend, self._ledger, self._clock)

    def _publish(self, name: str, model: _Model) -> None:
        self._routes.publish(
            name, {number: running.route if running else None for number, (_, running) in model.versions.items()}
        )

    def _retire(self, replaced: list[Running]) -> None:
        for running in replaced:
            running.leave()
            with self._lock:
                self._retiring.add(running)
            threading.Thread(target=self._finish_retiring, args=(running,), name="headrace-retire", daemon=True).start()

    def _finish_retiring(self, running: Running) -> None:
        try:
            running.retire(self._clock.now() + _RETIRE_NS, self._clock)
        finally:
            with self._lock:
                self._retiring.discard(running)

    def running(self) -> list[Running]:
        """Everything that runs, what is being replaced included."""
        with self._lock:
            models = list(self._models.values())
            return [running for model in models for _, running in model.versions.values() if running] + list(self._retiring)

    def statuses(self, *, include_unloaded: bool = True) -> list[ModelStatus]:
        """Every version of every model that was ever asked for, by name and version."""
        with self._lock:
            models = sorted(self._models.items())
        found: list[ModelStatus] = []
        for _, model in models:
            if model.unloaded and not include_unloaded:
                continue
            found += [status for _, (status, _) in sorted(model.versions.items())]
            found += [model.broken] if model.broken else []
        return found

    @contextmanager
    def _locked(self, name: str) -> Iterator[_Model]:
        """The model of a name, which nobody else loads or unloads meanwhile."""
        while True:
            with self._lock:
                if self._is_closed:
                    raise Draining()
                model = self._models.setdefault(name, _Model())
            with model.lock:
                with self._lock:
                    is_current = self._models.get(name) is model
                # Whoever had the lock before may have dropped the model: then there is a new one.
                if is_current:
                    yield model
                    return

    def _drop(self, name: str) -> None:
        with self._lock:
            self._models.pop(name, None)
        self._routes.publish(name, None)


def _needs(files: ModelFiles) -> tuple[str, ...]:
    """The models that a model runs, if it is a graph or has a variant."""
    if files.config.platform not in GRAPHS:
        return tuple(filter(None, [variant_of(files.config)]))
    from headrace.engine.graphs import graph_of  # for whoever has graphs

    return graph_of(files).models


def _only_in(these: _Versions, those: _Versions) -> list[Running]:
    known = {id(running) for _, running in those.values()}
    return [running for _, running in these.values() if running is not None and id(running) not in known]
