"""Several backends in order: the first that is well serves, and the next when it is not.

`backend: "several"`, and the parameter `backends` names them: `onnxruntime, triton`. All parameters are for all of them. One that
cannot be reached when the model loads is tried again, until it can.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from headrace.backends.backoff import Backoff
from headrace.backends.base import Backend, Batch, Counting, Device, Outputs, Outside, Piece, Session
from headrace.clock import Clock, MonotonicClock
from headrace.errors import BackendDown, BackendFailed, BackendUnreachable, HeadraceError, InvalidRepository, sentence
from headrace.model import GraphIO, GraphTensor
from headrace.protocol.headrace_pb2 import ModelConfig, ModelStatistics
from headrace.series import Series
from headrace.tensor import format_shape

log = logging.getLogger(__name__)

SEVERAL = "several"
_PARAMETER = "backends"

Get = Callable[[str, str], Backend]
"""(backend, model) → the backend of that name. Raises InvalidRepository."""


class Accounts(Protocol):
    """Where it is told which of them ran what."""

    def __call__(self, backend: str, batch: Batch, began: int, *, is_well: bool) -> None:
        """`backend` has run the batch since `began` (ns)."""
        ...


class SeveralBackends:
    """Loads a model with each of the backends that its configuration names.

    Args:
        get: gets them.
        clock: the clock.
    """

    def __init__(self, get: Get, clock: Clock | None = None) -> None:
        self._get, self._clock = get, clock or MonotonicClock()

    def load(self, path: Path, config: ModelConfig, device: Device) -> FallbackSession:
        """See `Backend.load`.

        Raises:
            InvalidRepository: none of them can load it, or they do not take and give the same.
        """
        if config.model_transaction_policy.decoupled:
            raise InvalidRepository(
                f"model '{config.name}' is decoupled, and has several backends: parts of an answer cannot be taken back; name one"
            )
        members = [Member(name, self._loader(name, path, config, device)) for name in _names(config)]
        try:
            return FallbackSession(config.name, members, self._clock)
        except BaseException:
            for member in members:
                member.close()
            raise

    def _loader(self, name: str, path: Path, config: ModelConfig, device: Device) -> Callable[[], Session]:
        def load() -> Session:
            # Copied each time: what the first of them tells is filled in after it was loaded.
            own = ModelConfig()
            own.CopyFrom(config)
            own.backend = name
            return self._get(name, config.name).load(path, own, device)

        return load


class Member:
    """One of the backends of a model. `session` is None as long as it could not load it; `why` says so."""

    def __init__(self, name: str, load: Callable[[], Session]) -> None:
        self.name, self._load = name, load
        self.session: Session | None = None
        self.why = ""
        self.may_come = False
        """Whether trying again later may do."""

    def load(self, check: Callable[[GraphIO], None]) -> bool:
        """Try to load it; says whether it did.

        Raises:
            InvalidRepository: by `check`, which is given what it takes and gives.
        """
        try:
            session = self._load()
        except (HeadraceError, ImportError) as error:
            self.why, self.may_come = sentence(error), isinstance(error, BackendUnreachable)
            return False
        self.may_come = False
        try:
            check(session.io)
        except InvalidRepository as error:
            self.why = error.message
            session.close()
            raise
        self.session, self.why = session, ""
        return True

    @property
    def is_well(self) -> bool:
        """Whether it can be asked."""
        session = self.session
        return session is not None and (not isinstance(session, Outside) or session.is_healthy)

    def close(self) -> None:
        """Give its session back."""
        session, self.session = self.session, None
        if session is not None:
            session.close()


class FallbackSession:
    """The sessions of several backends, of which the first that is well runs a batch.

    The next is asked only when nothing of the batch was sent to the one before.

    Args:
        model: for messages.
        members: in order.
        clock: the clock.

    Raises:
        InvalidRepository: none of them can load it, or they do not take and give the same.
    """

    def __init__(self, model: str, members: Sequence[Member], clock: Clock) -> None:
        self._model, self._members, self._clock = model, members, clock
        self._ran: Accounts | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._io: GraphIO | None = None
        for member in members:
            if not member.load(partial(self._check, member.name)):
                log.warning("backend '%s' of model '%s' did not load: %s", member.name, model, member.why)
        if self._io is None:
            told = "; ".join(f"{member.name}: {member.why}" for member in members)
            kind = BackendUnreachable if any(member.may_come for member in members) else InvalidRepository
            raise kind(f"model '{model}': none of its backends can load it: {told}")
        self.io: GraphIO = self._io
        if any(member.may_come for member in members):
            self._thread = threading.Thread(target=self._try_again, name="headrace-fallback", daemon=True)
            self._thread.start()

    @property
    def names(self) -> tuple[str, ...]:
        """The backends, in order."""
        return tuple(member.name for member in self._members)

    @property
    def serving(self) -> str:
        """The backend that a batch would be given now; empty when none is well."""
        return next((member.name for member in self._members if member.is_well), "")

    @property
    def replayable(self) -> bool:
        """See `Session.replayable`."""
        return all(member.session is not None and member.session.replayable for member in self._members)

    @property
    def is_healthy(self) -> bool:
        """See `Outside.is_healthy`."""
        return bool(self.serving)

    def has_changed(self) -> bool:
        """See `Outside.has_changed`: a backend that did not load may do so now, too."""
        sessions = [member.session for member in self._members]
        return None in sessions or any(isinstance(session, Outside) and session.has_changed() for session in sessions)

    def statistics(self) -> list[ModelStatistics]:
        """See `Outside.statistics`."""
        sessions = [member.session for member in self._members]
        return [each for session in sessions if isinstance(session, Outside) for each in session.statistics()]

    def own_series(self) -> list[Series]:
        """See `Counting.own_series`."""
        sessions = [member.session for member in self._members]
        return [each for session in sessions if isinstance(session, Counting) for each in session.own_series()]

    def account_with(self, ran: Accounts) -> None:
        """Tell `ran` of every batch from now on."""
        self._ran = ran

    def run(self, batch: Batch) -> Outputs | Iterator[Piece]:
        """Run the batch on the first backend that is well. See `Session.run`."""
        down: BackendDown | None = None
        for member, session in self._in_order():
            began = self._clock.now()
            try:
                outputs = session.run(batch)
            except BackendDown as error:
                down = error
                continue
            except BaseException:
                self._account(member, batch, began, is_well=False)
                raise
            if outputs is None:
                raise BackendFailed(f"backend '{member.name}' answers later, which a model of several backends cannot")
            self._account(member, batch, began, is_well=True)
            return outputs
        raise down or BackendDown(self._model, "none of its backends is loaded")

    def close(self) -> None:
        """Give all of them back."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        for member in self._members:
            member.close()

    def _in_order(self) -> Iterator[tuple[Member, Session]]:
        """Those that are well; if there is none, those that are not, which say why."""
        for is_well in (True, False):
            for member in self._members:
                session = member.session
                if session is not None and member.is_well is is_well:
                    yield member, session

    def _account(self, member: Member, batch: Batch, began: int, *, is_well: bool) -> None:
        if self._ran is not None:
            self._ran(member.name, batch, began, is_well=is_well)

    def _try_again(self) -> None:
        """Load what could not be reached, until it is there."""
        backoff = Backoff()
        while missing := [member for member in self._members if member.may_come]:
            backoff.ended(self._clock.now())
            with self._changed:
                while not self._is_closed and (wait := backoff.wait(self._clock.now())):
                    self._clock.wait(self._changed, self._clock.now() + wait)
                if self._is_closed:
                    return
            for member in missing:
                self._load_late(member)

    def _check(self, backend: str, io: GraphIO) -> None:
        self._io = io if self._io is None else merged(self._model, backend, self._io, io)

    def _load_late(self, member: Member) -> None:
        try:
            if member.load(partial(self._check, member.name)):
                log.info("backend '%s' of model '%s' is loaded", member.name, self._model)
        except InvalidRepository as error:
            log.error("%s", error.message)


def merged(model: str, backend: str, first: GraphIO, other: GraphIO) -> GraphIO:
    """What both take and give.

    Raises:
        InvalidRepository: they differ.
    """
    for what, ours, theirs in (("input", first.inputs, other.inputs), ("output", first.outputs, other.outputs)):
        mine, found = ({tensor.name: tensor for tensor in each if not tensor.initializer} for each in (ours, theirs))
        for name in [*mine, *found]:
            if name not in mine or name not in found or not _is_same(mine[name], found[name]):
                raise InvalidRepository(
                    f"model '{model}': its backends are not the same model: {what} '{name}' is {_told(found.get(name))} for "
                    f"'{backend}', and {_told(mine.get(name))} for those before it"
                )
    sizes = [each.max_batch_size for each in (first, other) if each.max_batch_size is not None]
    return GraphIO(first.inputs, first.outputs, min(sizes, default=None))


def _is_same(one: GraphTensor, other: GraphTensor) -> bool:
    return (
        one.datatype == other.datatype
        and len(one.shape) == len(other.shape)
        and all(a == b or -1 in (a, b) for a, b in zip(one.shape, other.shape, strict=True))
    )


def _told(tensor: GraphTensor | None) -> str:
    return "not there" if tensor is None else f"{tensor.datatype}{format_shape(tensor.shape)}"


def _names(config: ModelConfig) -> list[str]:
    text = config.parameters[_PARAMETER].string_value if _PARAMETER in config.parameters else ""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) < 2 or len(set(names)) < len(names) or SEVERAL in names:
        raise InvalidRepository(
            f"model '{config.name}': parameter '{_PARAMETER}' is '{text}'; it must name two backends or more, in the order in "
            "which they are to be asked, as in onnxruntime, triton"
        )
    return names
