"""One loaded version: from files on disk to instances that run, and back.

Open, warm, start, retire – in that order, each once. The engine decides when; nothing here knows of other versions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headrace.backends.base import Device, Session
from headrace.backends.registry import Backends
from headrace.clock import SECOND, Clock
from headrace.engine.instance import Instance
from headrace.engine.profile import Calls, Profile
from headrace.engine.profiles import key_of
from headrace.engine.routes import Route
from headrace.engine.zeros import Zeros
from headrace.errors import HeadraceError, InvalidRepository, sentence
from headrace.model import ModelSpec
from headrace.models.autocomplete import complete
from headrace.models.check import check_graph, check_tensors
from headrace.models.files import ModelFiles, VersionFiles
from headrace.models.spec import spec_of, warnings
from headrace.protocol.headrace_pb2 import ModelConfig, ModelInstanceGroup
from headrace.scheduling.admission import Limits
from headrace.scheduling.base import OpenQueue
from headrace.scheduling.forecast import Forecast
from headrace.scheduling.plan import SetPoints

log = logging.getLogger(__name__)

_RETURN_SECONDS = 2.0
"""How long a version that ends waits for a session that a probe has: such runs are short."""


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
    version: VersionFiles
    profile_key: str
    calls: Calls | None = None
    """The measurement because of which it has the instances it has, where they were left open."""
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


def open_version(files: ModelFiles, version: VersionFiles, backends: Backends, calls: Calls | None = None) -> Opened:
    """Load a version and check it against its configuration.

    Args:
        files: of the model.
        version: one of them.
        backends: what loads it.
        calls: what was found to do more with than one instance, where the configuration leaves that open.

    Raises:
        InvalidRepository: it cannot be served, and the message says why.
    """
    config = ModelConfig()
    config.CopyFrom(files.config)
    _check_can_serve(config)
    lines: list[str] = []
    if calls is not None:
        config.instance_group[0].count = calls.count
        lines.append(f"instance_group: {calls.count} instances of one thread each, {calls.gain:.1f}x the rows/s of one")
    backend = backends.get(config.backend, config.name)
    digest = version.digest()
    profile_key = key_of(config, digest)
    placed = _placements(config)
    sessions: list[Session] = []
    try:
        for device in placed:
            sessions.append(backend.load(version.path, config, device))
        lines += complete(config, sessions[0].io)
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
    return Opened(spec, config, counted, tuple(lines), told, files.config_text, version, profile_key, calls, files.upload)


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
    """An opened version with its queue and its instances.

    `load_ns` is how long it took to open and warm it, `warm_ns` the run at one row alone: None when zeros do not run.
    `profile` is what was measured of it; while it is None, `unprofiled` says why, if that is known.
    """

    def __init__(self, opened: Opened, open_queue: OpenQueue, clock: Clock, load_ns: int = 0, warm_ns: int | None = None) -> None:
        self.opened, self.load_ns, self.warm_ns = opened, load_ns, warm_ns
        self.profile: Profile | None = None
        self.unprofiled = ""
        spec = opened.spec
        self.route = Route(open_queue(spec, Limits()), spec, opened.config)
        sessions = [session for session, count in opened.sessions for _ in range(count)]
        points = SetPoints.of(spec, len(sessions))
        self.forecast = Forecast(self.route.queue, points, len(sessions))
        self._instances = [
            Instance(number, session, self.route.queue, self.forecast, points, clock) for number, session in enumerate(sessions)
        ]
        self._retiring = threading.Lock()
        self._is_retired = False
        self._lent = threading.Lock()
        self._is_leaving = False

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

    @property
    def is_leaving(self) -> bool:
        """Whether it takes no more: it was unloaded or replaced, or the engine ends."""
        return self._is_leaving

    def leave(self) -> None:
        """Take no more. What is queued is still served."""
        self._is_leaving = True
        self.route.queue.close()

    @contextmanager
    def borrow(self) -> Iterator[Session | None]:
        """Its session, for runs beside those of the instances; None when it is leaving."""
        with self._lent:
            yield None if self._is_leaving else self.opened.sessions[0][0]

    def retire(self, until: int, clock: Clock) -> None:
        """Take no more, serve what is queued until the instant `until` (ns), refuse the rest, then close the sessions.

        A session that still runs then is left to its thread. A second call waits for the first.
        """
        queue = self.route.queue
        self.leave()
        queue.wait_settled(until)
        with self._retiring:
            if self._is_retired:
                return
            self._is_retired = True
            queue.abandon()
            grace = max(0.2, (until - clock.now()) / SECOND)
            ended = [instance.join(grace) for instance in self._instances]
            if is_back := self._lent.acquire(timeout=_RETURN_SECONDS):
                self._lent.release()
            if all(ended) and is_back:
                self.opened.close()
            else:
                log.warning("%s still runs; its session is not closed", self.opened.spec)


def warm_up(opened: Opened, clock: Clock) -> int | None:
    """Run each session once at one row, so that the first client does not pay for what happens once.

    The data is zeros of the declared shape. A model that cannot stand them is served all the same.

    Returns:
        How long that took in the first session, in ns; None when it failed.
    """
    lasted: list[int | None] = []
    for session, _ in opened.sessions:
        began = clock.now()
        try:
            outputs = session.run(Zeros(opened.spec))
            if not isinstance(outputs, Mapping):
                for _ in outputs:
                    pass
            lasted.append(clock.now() - began)
        except (Exception, SystemExit) as error:
            log.info("warm-up of %s failed, which need not mean anything: %s", opened.spec, error)
            lasted.append(None)
    return lasted[0]


def reason_of(error: BaseException, path: Path) -> str:
    """Why a version did not come up, in a line for people."""
    if isinstance(error, HeadraceError):
        return error.message
    return f"{path}: {type(error).__name__}: {sentence(error)}"
