"""One loaded version: from files on disk to instances that run, and back.

Open, warm, start, retire – in that order, each once. The engine decides when; nothing here knows of other versions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headrace.backends.base import Device, Session
from headrace.backends.registry import Backends
from headrace.clock import SECOND, Clock
from headrace.engine.instance import Instance
from headrace.engine.routes import Route
from headrace.errors import HeadraceError, InvalidRepository, sentence
from headrace.model import ModelSpec
from headrace.models.autocomplete import complete
from headrace.models.check import check_graph, check_tensors
from headrace.models.files import ModelFiles, VersionFiles
from headrace.models.spec import spec_of, warnings
from headrace.protocol.headrace_pb2 import ModelConfig, ModelInstanceGroup
from headrace.protocol.validate import resolve_reshape
from headrace.request import Request
from headrace.scheduling.admission import Limits
from headrace.scheduling.base import OpenQueue
from headrace.scheduling.forecast import Forecast
from headrace.scheduling.plan import SetPoints
from headrace.tensor import DTYPES, BytesTensor, Tensor, TensorSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """A version that loads and fits its configuration; nothing runs yet."""

    spec: ModelSpec
    config: ModelConfig
    sessions: tuple[tuple[Session, int], ...]
    """Sessions, one a device, and how many instances each gets."""
    filled: tuple[str, ...]
    warnings: tuple[str, ...]
    config_text: str
    upload: object = None
    """What keeps the files there, if they came with a request."""

    def close(self) -> None:
        """Close the sessions."""
        _close([session for session, _ in self.sessions])

    def is_still(self, files: ModelFiles, version: VersionFiles) -> bool:
        """Whether opening `version` again would give the same: configuration, contents, labels.

        Raises:
            InvalidRepository: the files cannot be read.
        """
        if self.config_text != files.config_text or self.spec.digest != version.digest():
            return False
        return spec_of(self.config, version.number, self.spec.digest, files.path) == self.spec


def _close(sessions: Sequence[Session]) -> None:
    for session in sessions:
        try:
            session.close()
        except Exception:
            log.exception("a session could not be closed")


def open_version(files: ModelFiles, version: VersionFiles, backends: Backends) -> Opened:
    """Load a version and check it against its configuration.

    Raises:
        InvalidRepository: it cannot be served, and the message says why.
    """
    config = ModelConfig()
    config.CopyFrom(files.config)
    _check_can_serve(config)
    backend = backends.get(config.backend, config.name)
    digest = version.digest()
    placed = _placements(config)
    sessions: list[Session] = []
    try:
        for device in placed:
            sessions.append(backend.load(version.path, config, device))
        filled = complete(config, sessions[0].io)
        check_tensors(config)
        check_graph(config, sessions[0].io)
        spec = spec_of(config, version.number, digest, files.path)
        if not version.is_unchanged():
            raise InvalidRepository(
                f"version {version.number} of model '{config.name}' changed while it was being loaded; "
                "load it again when it is complete"
            )
    except BaseException:
        _close(sessions)
        raise
    counted = tuple(zip(sessions, placed.values(), strict=True))
    told = (*files.warnings, *warnings(config))
    return Opened(spec, config, counted, tuple(filled), told, files.config_text, files.upload)


def _check_can_serve(config: ModelConfig) -> None:
    if config.HasField("ensemble_scheduling"):
        raise InvalidRepository(f"model '{config.name}' is an ensemble, which this server does not run yet")
    if config.sequence_batching.control_input or config.sequence_batching.state:
        # Without them it would answer, and wrongly.
        raise InvalidRepository(
            f"model '{config.name}' needs the control inputs or the state of sequence_batching, "
            "which this server does not feed yet"
        )


def _placements(config: ModelConfig) -> dict[Device, int]:
    """How many instances run on each device."""
    placed: dict[Device, int] = {}
    for group in config.instance_group:
        indices = list(group.gpus) if group.kind == ModelInstanceGroup.KIND_GPU else [0]
        for index in indices:
            device = Device("GPU" if group.kind == ModelInstanceGroup.KIND_GPU else "CPU", index)
            placed[device] = placed.get(device, 0) + group.count
    return placed or {Device(): 1}


class Running:
    """An opened version with its queue and its instances. `load_ns` is how long it took to open and warm it."""

    def __init__(self, opened: Opened, open_queue: OpenQueue, clock: Clock, load_ns: int = 0) -> None:
        self.opened, self.load_ns = opened, load_ns
        spec = opened.spec
        self.route = Route(open_queue(spec, Limits()), spec, opened.config)
        sessions = [session for session, count in opened.sessions for _ in range(count)]
        points = SetPoints.of(spec, len(sessions))
        forecast = Forecast(self.route.queue, points, len(sessions))
        self._instances = [
            Instance(number, session, self.route.queue, forecast, points, clock) for number, session in enumerate(sessions)
        ]
        self._retiring = threading.Lock()
        self._is_retired = False

    @property
    def instances(self) -> int:
        """How many instances take turns at its queue."""
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
            self.route.queue.close()
            raise

    def retire(self, until: int, clock: Clock) -> None:
        """Take no more, serve what is queued until the instant `until` (ns), refuse the rest, then close the sessions.

        A session that still runs then is left to its thread. A second call waits for the first.
        """
        queue = self.route.queue
        queue.close()
        queue.wait_settled(until)
        with self._retiring:
            if self._is_retired:
                return
            self._is_retired = True
            queue.abandon()
            grace = max(0.2, (until - clock.now()) / SECOND)
            ended = [instance.join(grace) for instance in self._instances]
            if all(ended):
                self.opened.close()
            else:
                log.warning("%s still runs; its session is not closed", self.opened.spec)


def warm_up(opened: Opened) -> None:
    """Run each session once at one row, so that the first client does not pay for what happens once.

    The data is zeros of the declared shape. A model that cannot stand them is served all the same.
    """
    for session, _ in opened.sessions:
        try:
            outputs = session.run(_Zeros(opened.spec))
            if not isinstance(outputs, Mapping):
                for _ in outputs:
                    pass
        except (Exception, SystemExit) as error:
            log.info("warm-up of %s failed, which need not mean anything: %s", opened.spec, error)


class _Zeros:
    """A batch of one row of zeros, for warm-up. Dimensions that vary are 1; a length that is padded is that of a bucket."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self.rows, self.offsets = 1, [0, 1]

    @property
    def requests(self) -> list[Request]:
        return [Request(self._spec.name, self.tensors())]

    def wanted(self) -> tuple[str, ...]:
        return tuple(output.name for output in self._spec.outputs)

    def tensors(self) -> Mapping[str, Tensor]:
        return {spec.name: self._zeros(spec) for spec in self._spec.inputs if not spec.optional or self._is_made(spec)}

    def _is_made(self, spec: TensorSpec) -> bool:
        return self._spec.padding is not None and spec.name == self._spec.padding.mask

    def _zeros(self, spec: TensorSpec) -> Tensor:
        padding = self._spec.padding
        shape = tuple(1 if size == -1 else size for size in spec.dims)
        if padding is not None and spec.name in padding.values:
            shape = (*shape[: padding.axis], padding.edges[0], *shape[padding.axis + 1 :])
        if spec.reshape is not None:
            shape = resolve_reshape(shape, spec.dims, spec.reshape)
        if self._spec.max_batch_size > 0:
            shape = (1, *shape)
        if spec.datatype == "BYTES":
            return BytesTensor.of([b""] * int(np.prod(shape)), shape)
        return np.zeros(shape, DTYPES[spec.datatype])


def reason_of(error: BaseException, path: Path) -> str:
    """Why a version did not come up, in a line for people."""
    if isinstance(error, HeadraceError):
        return error.message
    return f"{path}: {type(error).__name__}: {sentence(error)}"
