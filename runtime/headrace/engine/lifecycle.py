"""One loaded version: from files on disk to instances that run, and back.

Open, warm, start, retire – in that order, each once. The engine decides when; nothing here knows of other versions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from headrace.backends.base import Device, Outside, Session, stands_zeros
from headrace.backends.registry import Backends
from headrace.backends.zeros import Zeros
from headrace.clock import SECOND, Clock
from headrace.engine.crew import Crew
from headrace.engine.keyed import KeyedSession
from headrace.engine.profile import Calls, Profile
from headrace.engine.profiles import key_of
from headrace.engine.routes import Route
from headrace.errors import HeadraceError, InvalidRepository, sentence
from headrace.graph.join import Way
from headrace.graph.session import SegmentSession
from headrace.model import GraphIO, ModelSpec
from headrace.models.autocomplete import complete
from headrace.models.check import check_graph, check_tensors
from headrace.models.files import ModelFiles, VersionFiles
from headrace.models.fill import GRAPHS
from headrace.models.spec import spec_of, warnings
from headrace.protocol.headrace_pb2 import ModelConfig, ModelInstanceGroup, ModelStatistics
from headrace.scheduling.admission import Depth, Limits
from headrace.scheduling.base import OpenQueue

if TYPE_CHECKING:
    from headrace.engine.variants import VariantSession

log = logging.getLogger(__name__)

_UNTOLD = GraphIO((), ())
"""Of a model whose file does not say what it takes and gives."""
UNBOUNDED = Limits(requests=1 << 62, rows=1 << 62, nbytes=1 << 62, undated=1 << 62)
"""Between segments nobody is refused: who sends on waits instead."""
_RETURN_SECONDS = 2.0
"""How long a version that ends waits for a session that a probe has: such runs are short."""


@dataclass(frozen=True, slots=True)
class Behind:
    """A segment of a graph that has a queue of its own, and how many instances it gets."""

    spec: ModelSpec
    session: SegmentSession
    count: int


class Lent(NamedTuple):
    """A version that a graph runs, as the graph asked for it; `version` 0 is the highest."""

    model: str
    version: int
    running: Running


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
    own_digest: str
    """Of its files alone: what a graph's digest says of its models is not in it."""
    calls: Calls | None = None
    """The measurement because of which it has the instances it has, where they were left open."""
    upload: object = None
    """What keeps the files there, if they came with a request."""
    behind: tuple[Behind, ...] = ()
    """Of a graph: what runs in the segments behind the first."""
    lent: tuple[Lent, ...] = ()
    """The versions that it runs: of a graph, those of its nodes; else its variant."""
    variant: VariantSession | None = None
    nodes: tuple[tuple[str, int], ...] = ()
    """By the name and the number under which the ledger has them: of a graph, its nodes that run classes; else its backends, if
    there are several; and its variant."""

    def close(self) -> None:
        """Close the sessions."""
        _close([session for session, _ in self.sessions] + ([self.variant] if self.variant is not None else []))

    def is_still(self, files: ModelFiles, version: VersionFiles) -> bool:
        """Whether opening `version` again would give the same: configuration, contents, labels.

        Raises:
            InvalidRepository: the files cannot be read.
        """
        if self.config_text != files.config_text or self.own_digest != version.digest():
            return False
        if any(isinstance(session, Outside) and session.has_changed() for session, _ in self.sessions):
            return False
        is_graph = self.config.platform in GRAPHS  # of which labels are no part
        return is_graph or spec_of(self.config, version.number, self.spec.digest, files.path) == self.spec


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
        if sessions[0].io != _UNTOLD:
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
    return Opened(spec, config, counted, tuple(lines), told, files.config_text, version, profile_key, digest, calls, files.upload)


def _check_can_serve(config: ModelConfig) -> None:
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
    `profile` is what was measured of it; while it is None, `unprofiled` says why, if that is known. `needs_sequence_keys` says
    whether several replicas answer.
    """

    def __init__(
        self,
        opened: Opened,
        open_queue: OpenQueue,
        clock: Clock,
        load_ns: int = 0,
        warm_ns: int | None = None,
        *,
        needs_sequence_keys: Callable[[], bool] = lambda: False,
    ) -> None:
        self.opened, self.load_ns, self.warm_ns = opened, load_ns, warm_ns
        self.profile: Profile | None = None
        self.unprofiled = ""
        spec = opened.spec
        self.route = Route(open_queue(spec, Limits()), spec, opened.config)
        sessions = [session for session, count in opened.sessions for _ in range(count)]
        if spec.sequences:
            sessions = [KeyedSession(session, needs_sequence_keys) for session in sessions]
        self._crew = Crew(self.route.queue, sessions, clock, variant=opened.variant)
        self.forecast = self._crew.forecast
        self.behind = [
            Crew(open_queue(each.spec, UNBOUNDED), [each.session] * each.count, clock, refuses=False) for each in opened.behind
        ]
        self._connect(clock)
        self._holding = threading.Lock()
        self._holds = 1
        """How many need the sessions: the instances, and each graph that runs them."""
        self._retiring = threading.Lock()
        self._is_retired = False
        self._lent = threading.Lock()
        self._is_leaving = False

    @property
    def instances(self) -> int:
        """How many instances take turns at its queue."""
        return len(self._crew)

    def start(self) -> None:
        """Let the instances take turns.

        Raises:
            RuntimeError: the machine has no more threads; those that were started are ended.
        """
        for crew in [*self.behind, self._crew]:
            crew.start()

    def stalled(self, before: int) -> list[str]:
        """See `Crew.stalled`: of all its instances. What takes no more requests may end."""
        troubles = [trouble for crew in (self._crew, *self.behind) for trouble in crew.stalled(before)]
        return [] if self._is_leaving else troubles

    @property
    def depth(self) -> Depth:
        """What waits: of a graph, in the queues of all its segments."""
        depths = [crew.queue.depth() for crew in (self._crew, *self.behind)]
        return Depth(*map(sum, zip(*depths, strict=True)))

    @property
    def inner(self) -> list[tuple[str, int]]:
        """What else the ledger has accounts of, by name and number: segments and classes of a graph, several backends."""
        return [(crew.queue.spec.name, crew.queue.model_number) for crew in self.behind] + list(self.opened.nodes)

    def statistics_elsewhere(self) -> list[ModelStatistics]:
        """Of a model that runs elsewhere, what is counted there. Asks."""
        session = self.opened.sessions[0][0]
        return session.statistics() if isinstance(session, Outside) else []

    def _connect(self, clock: Clock) -> None:
        """Lead the rows of each segment to the next."""
        crews = {crew.queue.spec.name: crew for crew in self.behind}
        first = [(session, self._crew) for session, _ in self.opened.sessions if isinstance(session, SegmentSession)]
        for session, crew in first + [(each.session, crews[each.spec.name]) for each in self.opened.behind]:
            session.connect(
                {
                    border.node: Way(border, crews[border.segment.name].queue, clock, crew.forecast.behind)
                    for border in session.segment.borders
                    if border.segment is not None
                }
            )

    def hold(self) -> bool:
        """Keep its sessions open for a graph that runs them, until `release`; False when it is too late for that."""
        with self._holding:
            if not self._holds:
                return False
            self._holds += 1
            return True

    def release(self) -> None:
        """They are needed no more. Whoever says so last closes them."""
        with self._holding:
            self._holds -= 1
            is_last = not self._holds
        if is_last:
            self.opened.close()

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
            self._crew.join(grace)
            for crew in self.behind:
                # Only now: what the first had to send on is answered, or never will be.
                crew.queue.close()
                crew.queue.abandon()
                crew.join(grace)
            # Who waited for room behind a border, and only now got it, ends now.
            ended = [crew.join(_RETURN_SECONDS) for crew in (self._crew, *self.behind)]
            if is_back := self._lent.acquire(timeout=_RETURN_SECONDS):
                self._lent.release()
            if all(ended) and is_back:
                self.release()
            else:
                log.warning("%s still runs; its session is not closed", self.opened.spec)


def goes_back(session: Session) -> bool:
    """Whether outputs come back from where the inputs went in, and not from segments behind."""
    return not isinstance(session, SegmentSession) or not session.segment.borders


def warm_up(opened: Opened, clock: Clock) -> int | None:
    """Run each session once at one row, so that the first client does not pay for what happens once.

    The data is zeros of the declared shape. A model that cannot stand them is served all the same.

    Returns:
        How long that took in the first session, in ns; None when it failed.
    """
    lasted: list[int | None] = []
    for session, spec in [(session, opened.spec) for session, _ in opened.sessions] + [
        (b.session, b.spec) for b in opened.behind
    ]:
        if not (goes_back(session) and stands_zeros(session)):
            lasted.append(None)
            continue
        began = clock.now()
        try:
            outputs = session.run(Zeros(spec))
            for _ in outputs or ():
                pass
            lasted.append(clock.now() - began)
        except (Exception, SystemExit) as error:
            log.info("warm-up of %s failed, which need not mean anything: %s", spec, sentence(error))
            lasted.append(None)
    return lasted[0]


def reason_of(error: BaseException, path: Path) -> str:
    """Why a version did not come up, in a line for people."""
    if isinstance(error, HeadraceError):
        return error.message
    return f"{path}: {type(error).__name__}: {sentence(error)}"
