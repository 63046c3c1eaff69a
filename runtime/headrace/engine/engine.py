"""The engine: the models it holds, the way in, and the way out.

Owner of models, versions and instances. Loads of one model are serialised by a lock of its own; what transports need is
published through `Routes` in one step. A version that is replaced serves what is queued for it, in the background.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.backends.base import Backend
from headrace.backends.registry import Backends
from headrace.clock import SECOND, Clock, MonotonicClock
from headrace.engine.lifecycle import Opened, Running, open_version, reason_of, warm_up
from headrace.engine.routes import Routes
from headrace.errors import HeadraceError, LoadFailed, NotAllowed, NotInRepository, Unsupported
from headrace.ledger.ledger import Ledger
from headrace.ledger.views import Statistics
from headrace.model import ModelSpec, State
from headrace.models.files import ModelFiles
from headrace.models.repository import ModelFile, Repository
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.request import Request, Response
from headrace.scheduling.base import OpenQueue
from headrace.scheduling.entry import Answer
from headrace.scheduling.expiry import PortableQueues
from headrace.scheduling.sinks import LoopSink, ThreadSink
from headrace.tensor import BytesTensor, Tensor, as_tensor

log = logging.getLogger(__name__)

_LOAD_THREADS = 4
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


@dataclass(slots=True)
class _Model:
    """A model by name. `lock` serialises its loads; `versions` is replaced, never changed."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    versions: dict[int, tuple[ModelStatus, Running | None]] = field(default_factory=dict)
    broken: ModelStatus | None = None
    config_text: str | None = None
    unloaded: bool = False


class ModelSource(Protocol):
    """Where models come from: a repository, or a single file."""

    def names(self) -> list[str]:
        """All names."""
        ...

    def read(self, name: str, override: ModelConfig | None = None, gpus: int = 0) -> ModelFiles:
        """One model."""
        ...

    def fingerprint(self, name: str) -> object:
        """What changes whenever the model does; None when it is gone."""
        ...


class Engine:
    """Serves the models of a repository in this process.

    Args:
        repository: a directory in Triton's layout, an `.onnx` file, or what `headrace.models.repository` makes of them.
        control: `none` loads all models once, `poll` follows the repository, `explicit` loads what it is told to.
        load: with `explicit`, the models to start with; `*` is all of them.
        poll_seconds: with `poll`, how often to look.
        strict_readiness: whether one model that is not ready makes the engine not ready.
        backends: backends to use instead of the built-in ones, by name.
        open_queue: the factory of queues; the portable one by default.
        clock: the clock.

    Raises:
        InvalidRepository: there is no such repository.
    """

    def __init__(
        self,
        repository: ModelSource | Path | str,
        *,
        control: str = "none",
        load: Sequence[str] = (),
        poll_seconds: float = 15.0,
        strict_readiness: bool = True,
        backends: Mapping[str, Backend] | None = None,
        open_queue: OpenQueue | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.repository = source_of(repository)
        self.repository.names()
        self.control, self._wanted = control, tuple(load)
        self.clock = clock or MonotonicClock()
        self.statistics = Statistics()
        self.ledger = Ledger(self.statistics.fold)
        self.routes = Routes(self.ledger, self.clock.now)
        self._poll_seconds, self._strict = poll_seconds, strict_readiness
        self._backends = Backends(backends)
        self._queues = PortableQueues(self.ledger, self.clock)
        self._open_queue = open_queue or self._queues
        self._models: dict[str, _Model] = {}
        self._seen: dict[str, object] = {}
        self._lock = threading.Lock()
        self._retiring: set[Running] = set()
        self._background = ThreadPoolExecutor(_LOAD_THREADS, "headrace-load")
        self._is_started = self._is_draining = False
        self._stop = threading.Event()
        self._poller: threading.Thread | None = None
        self._threads = ThreadSink(self.routes.push, self.clock)
        self._loops: dict[asyncio.AbstractEventLoop, LoopSink] = {}

    # Life.

    def start(self) -> None:
        """Load what the mode of control says. Returns when every load has come to an end, good or bad."""
        names = self.repository.names()
        if self.control == "explicit":
            unknown = [name for name in self._wanted if name != "*" and name not in names]
            if unknown:
                raise NotInRepository(unknown[0])
            names = names if "*" in self._wanted else list(self._wanted)
        self._seen = {name: self.repository.fingerprint(name) for name in names}
        list(self._background.map(self._try_load, names))
        self._is_started = True
        if self.control == "poll":
            self._poller = threading.Thread(target=self._follow, name="headrace-poll", daemon=True)
            self._poller.start()

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def is_live(self) -> bool:
        """Whether the engine runs: from start to the end of draining."""
        return self._is_started and not self._stop.is_set()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._stop.is_set()

    @property
    def ready(self) -> bool:
        """Whether to send requests here: started, not draining, and – if strict – every model that was not unloaded is ready."""
        if not self._is_started or self._is_draining:
            return False
        return not self._strict or all(s.state is State.READY for s in self._statuses(include_unloaded=False))

    def drain(self, deadline: int) -> bool:
        """Be not ready, and wait until everything that was pushed is settled, or `deadline` (ns). Says whether it is.

        Requests are still taken: a transport stops those at its door.
        """
        self._is_draining = True
        return all([running.route.queue.wait_settled(deadline) for running in self._all_running()])

    def unready(self) -> None:
        """Be not ready, while everything is still served."""
        self._is_draining = True

    def close(self, deadline: int | None = None) -> None:
        """Take no more, serve what is queued until `deadline` (ns; 30 s from now by default), end all threads. Once."""
        if self._stop.is_set():
            return
        self._is_draining = True
        self._stop.set()
        self.routes.close()
        until = self.clock.now() + 30 * SECOND if deadline is None else deadline
        if self._poller is not None:
            self._poller.join()
        self._background.shutdown(wait=True, cancel_futures=True)
        for running in self._all_running():
            running.retire(until, self.clock)
        self._queues.close()
        self.ledger.drain()

    # Models.

    def load(self, name: str, override: ModelConfig | None = None) -> None:
        """Load or reload a model. Versions that serve go on doing so until their successors are warm, or if those fail.

        Raises:
            NotInRepository: there is no such model.
            LoadFailed: at least one version did not come up.
            InvalidRepository: the model cannot be read.
        """
        model = self._model(name)
        with model.lock:
            try:
                files = self.repository.read(name, override)
            except NotInRepository:
                if not model.versions:
                    self._forget(name)
                raise
            except HeadraceError as error:
                if not any(running for _, running in model.versions.values()):
                    model.broken = ModelStatus(name, None, State.UNAVAILABLE, error.message)
                    self._publish(name, model)
                log.error("model cannot be read", extra={"model": name, "reason": error.message})
                raise
            model.broken, model.unloaded = None, False
            self._load_versions(name, model, files)

    def unload(self, name: str) -> None:
        """Stop serving a model, once what is queued has been answered in the background. Unknown names are fine."""
        with self._lock:
            model = self._models.get(name)
        if model is None:
            return
        with model.lock:
            old = [running for _, running in model.versions.values() if running]
            versions = model.versions or {}
            model.versions = {
                number: (ModelStatus(name, number, State.UNAVAILABLE, "unloaded", status.spec), None)
                for number, (status, _) in versions.items()
            }
            model.broken, model.config_text, model.unloaded = None, None, True
            self._publish(name, model)
            self._retire(old)
            log.info("model unloaded", extra={"model": name})

    def require_explicit(self) -> None:
        """For transports: loading by request is for mode `explicit`.

        Raises:
            NotAllowed: the engine is in another mode.
        """
        if self.control != "explicit":
            raise NotAllowed("explicit model load / unload is not allowed if polling is enabled")

    def statuses(self) -> list[ModelStatus]:
        """Every version of every model that was ever asked for, by name and version."""
        return self._statuses(include_unloaded=True)

    def poll(self) -> bool:
        """Look at the repository once. A change is acted on when two looks in a row find it the same: nobody is copying then.

        Returns whether there is a change to look at again.
        """
        try:
            names = set(self.repository.names())
        except HeadraceError as error:
            log.warning("%s", error)
            return False
        with self._lock:
            known = {name for name, model in self._models.items() if not model.unloaded}
        unsettled = False
        for name in sorted(names | known):
            now, before = self.repository.fingerprint(name), self._seen.get(name)
            if isinstance(before, _Changing) and now == before.to:
                self._seen[name] = now
                self._follow_change(name, gone=now is None and name not in names)
            elif now != (before.to if isinstance(before, _Changing) else before):
                self._seen[name] = _Changing(now)
                unsettled = True
        return unsettled

    # Inference.

    def infer(
        self,
        model: str,
        inputs: Mapping[str, object],
        *,
        version: int = 0,
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        request_id: str = "",
    ) -> dict[str, NDArray[Any]]:
        """Run one request through the same queue as everybody's.

        Args:
            model: its name.
            inputs: arrays by input name, with a batch dimension if the model batches; text and `bytes` for BYTES.
            version: 0 is the highest that is ready.
            outputs: names wanted; all of the model's when empty.
            timeout: seconds within which the answer is wanted: its deadline.
            request_id: for messages.

        Returns:
            Arrays by output name; BYTES are object arrays of `bytes`.

        Raises:
            HeadraceError: with the code and message a remote client would get.
        """
        request = self._request(model, inputs, version, outputs, timeout, request_id)
        return _arrays(self._threads.ask(request).result())

    async def infer_async(
        self,
        model: str,
        inputs: Mapping[str, object],
        *,
        version: int = 0,
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        request_id: str = "",
    ) -> dict[str, NDArray[Any]]:
        """`infer` for coroutines. Cancelling it takes the request out of the queue."""
        request = self._request(model, inputs, version, outputs, timeout, request_id)
        answer: Answer = await self.loop_sink().ask(request)
        answer.settle(self.clock.now())
        if isinstance(answer.result, HeadraceError):
            raise answer.result
        return _arrays(answer.result)

    def loop_sink(self) -> LoopSink:
        """The sink of the running event loop."""
        loop = asyncio.get_running_loop()
        sink = self._loops.get(loop)
        if sink is None:
            self._loops = {known: kept for known, kept in self._loops.items() if not known.is_closed()}
            sink = self._loops[loop] = LoopSink(self.routes.push, self.clock, loop)
        return sink

    def __repr__(self) -> str:
        ready = sum(status.state is State.READY for status in self.statuses())
        return f"<Engine {self.repository!r}, {ready} versions ready{', draining' if self._is_draining else ''}>"

    # Inside.

    def _request(
        self, model: str, inputs: Mapping[str, object], version: int, outputs: Sequence[str], timeout: float | None, request_id: str
    ) -> Request:
        now = self.clock.now()
        route = self.routes.resolve(model, version)
        if route.spec.decoupled:
            raise Unsupported(f"model '{model}' answers a request several times; infer returns one answer")
        tensors: dict[str, Tensor] = {name: as_tensor(value) for name, value in inputs.items()}
        deadline = None if timeout is None else now + int(timeout * SECOND)
        return Request(
            model, tensors, version, tuple(outputs), request_id, deadline=deadline, received=now, decoded=self.clock.now()
        )

    def _model(self, name: str) -> _Model:
        with self._lock:
            return self._models.setdefault(name, _Model())

    def _forget(self, name: str) -> None:
        with self._lock:
            self._models.pop(name, None)
        self.routes.publish(name, None)

    def _try_load(self, name: str) -> None:
        try:
            self.load(name)
        except HeadraceError as error:
            log.debug("load of %s: %s", name, error)
        except Exception:
            log.exception("loading model '%s' failed; this is a bug in Headrace", name)

    def _load_versions(self, name: str, model: _Model, files: ModelFiles) -> None:
        """Bring up what is new, publish it in one step, then let go of what it replaces."""
        old = dict(model.versions)
        same_config = model.config_text == files.config_text
        new: dict[int, tuple[ModelStatus, Running | None]] = {
            number: (ModelStatus(name, number, State.UNAVAILABLE, reason), None) for number, reason in files.missing.items()
        }
        failed = dict(files.missing)
        for version in files.versions:
            status, running = old.get(version.number, (None, None))
            try:
                if running is not None and same_config and running.opened.spec.digest == version.digest():
                    assert status is not None
                    new[version.number] = (status, running)
                    continue
                if running is None:
                    model.versions = {**model.versions, version.number: (ModelStatus(name, version.number, State.LOADING), None)}
                    self._publish(name, model)
                opened = open_version(files, version, self._backends)
                warm_up(opened)
                new[version.number] = self._run(opened)
            except Exception as error:
                reason = failed[version.number] = reason_of(error, version.path)
                log.error("version did not load", extra={"model": name, "version": version.number, "reason": reason})
                if running is not None and status is not None:
                    new[version.number] = (status, running)
                else:
                    new[version.number] = (ModelStatus(name, version.number, State.UNAVAILABLE, reason), None)
        model.versions = new
        model.config_text = None if failed else files.config_text
        self._publish(name, model)
        kept = {id(running) for _, running in new.values()}
        self._retire([running for _, running in old.values() if running is not None and id(running) not in kept])
        if failed:
            raise LoadFailed(name, failed)

    def _run(self, opened: Opened) -> tuple[ModelStatus, Running]:
        spec = opened.spec
        running = Running(opened, self._open_queue, self.clock)
        running.start()
        log.info("version ready", extra={"model": spec.name, "version": spec.version, "digest": spec.digest, "filled": opened.filled})
        for line in opened.warnings:
            log.warning("%s", line, extra={"model": spec.name})
        return ModelStatus(spec.name, spec.version, State.READY, "", spec, opened.filled, opened.warnings), running

    def _publish(self, name: str, model: _Model) -> None:
        self.routes.publish(name, {number: running.route if running else None for number, (_, running) in model.versions.items()})

    def _retire(self, replaced: list[Running]) -> None:
        for running in replaced:
            running.route.queue.close()
            with self._lock:
                self._retiring.add(running)
            threading.Thread(target=self._finish_retiring, args=(running,), name="headrace-retire", daemon=True).start()

    def _finish_retiring(self, running: Running) -> None:
        running.retire(self.clock.now() + _RETIRE_NS, self.clock)
        with self._lock:
            self._retiring.discard(running)

    def _all_running(self) -> list[Running]:
        with self._lock:
            models = list(self._models.values())
            return [running for model in models for _, running in model.versions.values() if running] + list(self._retiring)

    def _statuses(self, *, include_unloaded: bool) -> list[ModelStatus]:
        with self._lock:
            models = sorted(self._models.items())
        found: list[ModelStatus] = []
        for _, model in models:
            if model.unloaded and not include_unloaded:
                continue
            found += [status for _, (status, _) in sorted(model.versions.items())]
            found += [model.broken] if model.broken else []
        return found

    def _follow(self) -> None:
        """The poll thread. A change is looked at again soon, to see whether somebody is still copying."""
        seconds = self._poll_seconds
        while not self._stop.wait(seconds):
            seconds = min(1.0, self._poll_seconds) if self.poll() else self._poll_seconds

    def _follow_change(self, name: str, *, gone: bool) -> None:
        if gone:
            self.unload(name)
            self._forget(name)
            self._seen.pop(name, None)
        else:
            self._try_load(name)


@dataclass(frozen=True, slots=True)
class _Changing:
    """A fingerprint seen once."""

    to: object


def source_of(repository: ModelSource | Path | str) -> ModelSource:
    """A repository from what people write: a directory, or an `.onnx` file.

    Raises:
        InvalidRepository: it is neither.
    """
    if not isinstance(repository, (str, Path)):
        return repository
    path = Path(repository)
    return ModelFile(path) if path.is_file() or path.suffix == ".onnx" else Repository(path)


def _arrays(response: Response) -> dict[str, NDArray[Any]]:
    return {name: tensor.objects() if isinstance(tensor, BytesTensor) else np.asarray(tensor) for name, tensor in response.outputs.items()}
