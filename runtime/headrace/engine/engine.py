"""The engine: models in this process, the way in, and the way out.

It wires the parts: the catalog holds the models, routes lead to their queues, the ledger keeps the accounts.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.backends.base import Backend
from headrace.backends.registry import Backends
from headrace.budgets.budgets import Budgets
from headrace.budgets.slo import Objective
from headrace.clock import SECOND, Clock, MonotonicClock
from headrace.engine.catalog import Catalog, ModelSource, ModelStatus
from headrace.engine.inner import InnerCalls
from headrace.engine.probe import Probe
from headrace.engine.profiles import Profiles
from headrace.engine.regions import Regions
from headrace.engine.routes import Routes
from headrace.engine.steering import SlowLoop
from headrace.engine.watch import Watcher
from headrace.errors import HeadraceError, InvalidRequest, NotAllowed, NotInRepository, Unsupported
from headrace.ledger.histograms import Histograms
from headrace.ledger.ledger import Ledger, in_turn
from headrace.ledger.traces import TraceStore
from headrace.ledger.views import Statistics
from headrace.model import State
from headrace.models.repository import ModelFile, Repository, WithGraphs
from headrace.models.uploads import Upload
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.request import Request, Response
from headrace.scheduling.base import MakeQueues
from headrace.scheduling.entry import Answer
from headrace.scheduling.expiry import PortableQueues
from headrace.scheduling.sinks import CallSink, LoopSink
from headrace.tensor import BytesTensor, Tensor, as_tensor

if TYPE_CHECKING:
    from headrace.models.graphs import Graph

_LOAD_THREADS = 4
_CLOSE_NS = 30 * SECOND
_LONGEST_SECONDS = 1e9


@dataclass(frozen=True, slots=True)
class ModelControl:
    """Which models to hold, and when.

    Mode `none` loads all of them once, `poll` follows the repository, looking every `poll_seconds`, and `explicit` holds what
    it is told to, beginning with `load` (`*` is all).
    """

    mode: str = "none"
    load: tuple[str, ...] = ()
    poll_seconds: float = 15.0


class Engine:
    """Serves the models of a repository in this process.

    Args:
        repository: a directory in Triton's layout, an `.onnx` file, or what `headrace.models.repository` makes of them.
        graphs: further models, written in Python; their nodes run models of the repository.
        control: which models to hold, and when.
        strict_readiness: whether one model that is not ready makes the engine not ready.
        backends: backends to use instead of the built-in ones, by name.
        queues: the factory of queues; a transport brings the one it needs. The portable one by default.
        clock: the clock.
        profiles: where to keep how long models run; without, that is not measured.
        objectives: whose error budgets to keep.

    Attributes:
        needs_sequence_keys: says whether several replicas answer, so that sequences have to be kept with one of them.

    Raises:
        InvalidRepository: there is no such repository.
    """

    def __init__(  # noqa: PLR0913
        self,
        repository: ModelSource | Path | str,
        *,
        graphs: Sequence[Graph] = (),
        control: ModelControl = ModelControl(),
        strict_readiness: bool = True,
        backends: Mapping[str, Backend] | None = None,
        queues: MakeQueues = PortableQueues,
        clock: Clock | None = None,
        profiles: Profiles | None = None,
        objectives: Iterable[Objective] = (),
    ) -> None:
        source = source_of(repository)
        self.repository: ModelSource = WithGraphs(source, graphs) if graphs else source
        self.repository.names()
        self._control = control
        self.clock = clock or MonotonicClock()
        self.statistics = Statistics()
        self.histograms = Histograms()
        # It names versions by the ledger's numbers, and the ledger feeds it.
        self.budgets = Budgets(objectives, lambda number: self.ledger.model(number), time.time_ns() - time.monotonic_ns())
        self.ledger = Ledger(in_turn(self.statistics.fold, self.histograms.fold, self.budgets.fold))
        self.traces = TraceStore()
        self.regions = Regions()
        self.needs_sequence_keys: Callable[[], bool] = lambda: False
        self.routes = Routes(self.ledger, self.clock.now)
        self._strict = strict_readiness
        self._queues = queues(self.ledger, self.clock)
        loaders = Backends(backends, InnerCalls(self))
        self.probe: Probe | None = None
        if profiles is not None:
            self.probe = Probe(lambda: self.catalog.running(), loaders, profiles, self.clock)
        self.catalog = Catalog(
            self.repository,
            loaders,
            self._queues,
            self.routes,
            self.ledger,
            self.clock,
            self.probe,
            targets=self.budgets.targets,
            needs_sequence_keys=lambda: self.needs_sequence_keys(),
        )
        self.steering = SlowLoop(self.catalog.running, self.budgets, self.ledger, self.statistics, self.clock)
        self.watcher = Watcher(self.repository, self.catalog, control.poll_seconds)
        self._is_started = self._is_draining = False
        self._closed = threading.Event()
        self._calls = CallSink(self.routes.push, self.clock)
        self._loops: dict[asyncio.AbstractEventLoop, LoopSink] = {}

    # Life.

    def start(self) -> None:
        """Load what the mode of control says. Returns when every load has come to an end, good or bad. Once."""
        if self._is_started:
            return
        names = self.repository.names()
        if self._control.mode == "explicit":
            unknown = [name for name in self._control.load if name != "*" and name not in names]
            if unknown:
                raise NotInRepository(unknown[0])
            names = names if "*" in self._control.load else list(self._control.load)
        for name in names:
            self.watcher.remember(name)
        with ThreadPoolExecutor(_LOAD_THREADS, "headrace-load") as loaders:
            list(loaders.map(self.catalog.try_load, names))
        self._is_started = True
        self.steering.start()
        if self._control.mode == "poll":
            self.watcher.start()

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def is_live(self) -> bool:
        """Whether the engine runs: from start to the end of draining."""
        return self._is_started and not self._closed.is_set()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    @property
    def ready(self) -> bool:
        """Whether to send requests here: started, not draining, and – if strict – every model that was not unloaded is ready."""
        if not self._is_started or self._is_draining:
            return False
        return not self._strict or all(s.state is State.READY for s in self.catalog.statuses(include_unloaded=False))

    def stalled(self, seconds: float) -> list[str]:
        """What does not move: instances that have ended, or whose session has not come back for `seconds`.

        However much waits, and however long it has gone on: an instance that comes back between batches is only busy.
        """
        before = self.clock.now() - round(seconds * SECOND)
        return [trouble for running in self.catalog.running() for trouble in running.stalled(before)]

    def drain(self, deadline: int) -> bool:
        """Be not ready, and wait until everything that was pushed is settled, or `deadline` (ns). Says whether it is.

        Requests are still taken: a transport stops those at its door.
        """
        self.unready()
        settled = [running.route.queue.wait_settled(deadline) for running in self.catalog.running()]
        return all(settled)

    def unready(self) -> None:
        """Be not ready, while everything is still served."""
        self._is_draining = True

    def close(self, deadline: int | None = None) -> None:
        """Take no more, serve what is queued until `deadline` (ns; 30 s from now by default), end all threads. Once."""
        if self._closed.is_set():
            return
        self.unready()
        self._closed.set()
        self.routes.close()
        until = self.clock.now() + _CLOSE_NS if deadline is None else deadline
        self.watcher.stop()
        self.steering.close()
        self.catalog.close()
        if self.probe is not None:
            self.probe.close()
        for running in self.catalog.running():
            running.retire(until, self.clock)
        self._queues.close()
        self.ledger.drain()

    # Models.

    def load(self, name: str, override: ModelConfig | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """Load or reload a model. Versions that serve go on doing so until their successors are warm, or if those fail.

        Args:
            name: its name.
            override: its configuration, instead of the one in the repository.
            files: its files by their paths in the model's directory, such as `1/model.onnx`, instead of those in the
                repository. They are kept in a temporary directory for as long as something runs from it.

        Raises:
            NotInRepository: there is no such model.
            LoadFailed: at least one version did not come up.
            InvalidRepository: the model cannot be read.
        """
        self.catalog.load(name, override, Upload(name, files) if files else None)

    def unload(self, name: str) -> None:
        """Stop serving a model; what is queued is still answered, in the background. Unknown names are fine."""
        self.catalog.unload(name)

    def require_explicit(self) -> None:
        """For transports: loading by request is for mode `explicit`.

        Raises:
            NotAllowed: the engine is in another mode.
        """
        if self._control.mode != "explicit":
            raise NotAllowed("explicit model load / unload is not allowed if polling is enabled")

    def statuses(self) -> list[ModelStatus]:
        """Every version of every model that was ever asked for, by name and version."""
        return self.catalog.statuses()

    def known_models(self) -> dict[str, dict[int, int]]:
        """Of every model there is, loaded or not, the versions that came up, and how many priority levels each has."""
        known: dict[str, dict[int, int]] = {name: {} for name in self.repository.names()}
        for status in self.statuses():
            if status.spec is not None:
                known.setdefault(status.model, {})[status.spec.version] = status.spec.batching.priority_levels
        return known

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
        return _arrays(self._calls.ask(request).result())

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
        self,
        model: str,
        inputs: Mapping[str, object],
        version: int,
        outputs: Sequence[str],
        timeout: float | None,
        request_id: str,
    ) -> Request:
        now = self.clock.now()
        if not self._is_started:
            raise NotAllowed("the engine is not started: use it in a `with` statement, or call start()")
        if not isinstance(inputs, Mapping) or isinstance(outputs, str) or not isinstance(version, int):
            raise InvalidRequest("infer takes arrays by input name, a list of names as outputs, and a number as version")
        route = self.routes.resolve(model, version)
        if route.spec.decoupled:
            raise Unsupported(f"model '{model}' answers a request several times; infer returns one answer")
        tensors: dict[str, Tensor] = {name: as_tensor(value) for name, value in inputs.items()}
        if timeout is not None and not (isinstance(timeout, (int, float)) and 0 < timeout < _LONGEST_SECONDS):
            raise InvalidRequest(f"timeout is {timeout!r}; give seconds above 0, or None to wait for as long as it takes")
        deadline = None if timeout is None else now + int(timeout * SECOND)
        return Request(
            model, tensors, version, tuple(outputs), request_id, deadline=deadline, received=now, decoded=self.clock.now()
        )


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
    return {
        name: tensor.objects() if isinstance(tensor, BytesTensor) else np.asarray(tensor)
        for name, tensor in response.outputs.items()
    }
