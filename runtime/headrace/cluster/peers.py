"""Control calls that concern all replicas: whichever of them gets one, all do it, or it answers for all.

What changes something is done here first – what is wrong with it is found out before anybody else is told – then kept for
replicas that come later, then done by all others at once. Replicas are asked at their private listeners, which ask nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from google.protobuf.message import DecodeError

from headrace.cluster.aggregation import merged_index, merged_statistics
from headrace.cluster.directory import Call, Directory, Replica, ReplicaState
from headrace.cluster.private import PrivateListener, call_replica
from headrace.config import ServerConfig
from headrace.engine.regions import Regions
from headrace.errors import Code, HeadraceError, InvalidRepository, NotByAll, Unsupported
from headrace.protocol import headrace_pb2 as pb
from headrace.protocol.headers import SEQUENCE_KEY
from headrace.server.server import Server
from headrace.transport.base import ControlCalls
from headrace.transport.control import SERVICE

_LOAD_SECONDS = 600.0
_ASK_SECONDS = 10.0
_TURN_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_GONE_SECONDS = 2.0
"""How long it may take until the directory knows of a replica that it is gone."""
_UNREACHABLE = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
_SHARED_MEMORY = (
    "shared memory cannot be used where several replicas answer: the one that gets a request need not be the one that knows the "
    "region; send tensors in the message"
)


def replica_config(config: ServerConfig) -> ServerConfig:
    """The settings of a server that is to be one of several replicas.

    Raises:
        InvalidRepository: they want what replicas cannot have.
    """
    if config.allow_client_shm:
        raise InvalidRepository(f"allow_client_shm is on: {_SHARED_MEMORY}")
    own, key = config.grpc_header_forward_pattern, f"^{SEQUENCE_KEY}$"
    return config.model_copy(update={"grpc_header_forward_pattern": f"(?:{own})|{key}" if own else key})


class Peers:
    """The other replicas, as a server has to do with them. Made before the server is started.

    Args:
        server: one replica, with settings from `replica_config`.
        directory: who else there is.
        id: of this replica.

    Attributes:
        address: where the others call this replica, once it is started.
    """

    def __init__(self, server: Server, directory: Directory, id: str) -> None:
        self._directory, self._alone = directory, server.control
        self._are_several = False
        self._ended = threading.Event()
        server.control = Together(server.control, directory, id)
        server.engine.needs_sequence_keys = lambda: self._are_several
        self.address = ""

    def start(self, address: str) -> None:
        """Listen for the others at HOST:PORT, and know from now on whether there are any. Once.

        Raises:
            CannotListen: the address cannot be had.
        """
        self._listener = PrivateListener(address, self._alone)
        self._listener.start()
        self.address = self._listener.address
        threading.Thread(target=self._look, name="headrace-peers", daemon=True).start()

    def catch_up(self) -> None:
        """Do what the others have been told before this replica was in the directory.

        Raises:
            HeadraceError: it cannot do it, so it must not take their requests.
        """
        with self._directory.turn(_LOAD_SECONDS):
            for call in self._directory.kept():
                self._alone.handle(call.method, call.payload)

    def close(self) -> None:
        """Listen no more. Any number of times, and before `start`, too."""
        self._ended.set()
        if self.address:
            self._listener.close()

    def _look(self) -> None:
        token = ""
        while not self._ended.is_set():
            try:
                view = self._directory.changed(token, _LOOK_SECONDS)
            except HeadraceError:  # it is as it was
                self._ended.wait(_LOOK_SECONDS)
            else:
                token, self._are_several = view.token, len(view.replicas) > 1


class Together:
    """See `transport.base.ControlCalls`: those of one replica, and through it of all.

    Args:
        control: answers for this replica alone.
        directory: who else there is.
        me: the id of this replica.
    """

    def __init__(self, control: ControlCalls, directory: Directory, me: str) -> None:
        self._control, self._directory, self._me = control, directory, me
        self._ways: dict[str, Callable[[str, bytes], bytes]] = {
            **{f"/{SERVICE}/{name}": self._tell_all for name in _CHANGES},
            f"/{SERVICE}/ModelStatistics": self._statistics,
            f"/{SERVICE}/RepositoryIndex": self._index,
        }

    @property
    def methods(self) -> Iterable[str]:
        """See `ControlCalls.methods`."""
        return self._control.methods

    @property
    def blocking(self) -> frozenset[str]:
        """See `ControlCalls.blocking`: who asks others waits for them."""
        return self._control.blocking | self._ways.keys()

    @property
    def regions(self) -> Regions:
        """See `ControlCalls.regions`."""
        return self._control.regions

    @property
    def dialogues(self) -> Iterable[str]:
        """See `ControlCalls.dialogues`."""
        return self._control.dialogues

    def handle(self, method: str, payload: bytes) -> bytes:
        """See `ControlCalls.handle`.

        Raises:
            NotByAll: some replicas have not done it.
            ChangeUnderWay: they are busy with another change.
            HeadraceError: as one replica's.
        """
        if "SharedMemory" in method:
            raise Unsupported(_SHARED_MEMORY)
        return self._ways.get(method, self._control.handle)(method, payload)

    def _tell_all(self, method: str, payload: bytes) -> bytes:
        changes = dict(_changes_of(method, payload))
        if not changes:
            return self._control.handle(method, payload)
        with self._directory.turn(_TURN_SECONDS):
            answer = self._control.handle(method, payload)
            # Whoever begins from now on finds it kept, and whoever has begun is in the directory.
            for key, call in changes.items():
                self._directory.keep(key, call)
            seconds = _LOAD_SECONDS if method in self._control.blocking else _ASK_SECONDS
            answers = self._ask(method, payload, seconds, ReplicaState.STARTING, ReplicaState.READY)
        failed = {who: told for who, told in answers.items() if isinstance(told, HeadraceError)}
        if failed:
            raise NotByAll(_name(method), [self._me, *(who for who in answers if who not in failed)], failed)
        return answer

    def _statistics(self, method: str, payload: bytes) -> bytes:
        answers = self._ask_all(method, payload, ReplicaState.READY, ReplicaState.DRAINING)
        told = [pb.ModelStatisticsResponse.FromString(answer) for answer in answers.values()]
        return merged_statistics(told).SerializeToString()

    def _index(self, method: str, payload: bytes) -> bytes:
        self._control.handle(method, payload)  # says what is wrong with the question
        wants_ready = pb.RepositoryIndexRequest.FromString(payload).ready
        answers = self._ask_all(method, pb.RepositoryIndexRequest().SerializeToString(), ReplicaState.READY)
        told = {who: pb.RepositoryIndexResponse.FromString(answer) for who, answer in answers.items()}
        return merged_index(told, only_ready=wants_ready).SerializeToString()

    def _ask_all(self, method: str, payload: bytes, *states: ReplicaState) -> dict[str, bytes]:
        """The answers of this replica and the others in these states, as far as they have any, by id.

        Raises:
            NotByAll: one cannot be reached: without it, the answer would be wrong.
            HeadraceError: nobody has an answer; the words are this replica's.
        """
        answers: _Answers = {self._me: self._answer_alone(method, payload), **self._ask(method, payload, _ASK_SECONDS, *states)}
        told = {who: answer for who, answer in answers.items() if isinstance(answer, bytes)}
        errors = {who: answer for who, answer in answers.items() if isinstance(answer, HeadraceError)}
        if not told:
            raise errors[self._me]
        if lost := {who: error for who, error in errors.items() if error.code in _UNREACHABLE}:
            raise NotByAll(_name(method), told, lost)
        return told

    def _answer_alone(self, method: str, payload: bytes) -> bytes | HeadraceError:
        try:
            return self._control.handle(method, payload)
        except HeadraceError as error:
            return error

    def _ask(self, method: str, payload: bytes, seconds: float, *states: ReplicaState) -> _Answers:
        """What the other replicas in these states answer, by id; those that are gone meanwhile are left out."""
        others = self._directory.view().others(self._me, *states)
        if not others:
            return {}

        def ask(replica: Replica) -> bytes | HeadraceError | None:
            try:
                return call_replica(replica.private, method, payload, seconds)
            except HeadraceError as error:
                return None if error.code in _UNREACHABLE and self._is_gone(replica.id) else error

        with ThreadPoolExecutor(len(others), "headrace-peers") as pool:
            told = zip(others, pool.map(ask, others), strict=True)
            return {replica.id: answer for replica, answer in told if answer is not None}

    def _is_gone(self, replica: str) -> bool:
        """Whether a replica that cannot be reached is dead: the directory may take a moment to know."""
        end, view = time.monotonic() + _GONE_SECONDS, self._directory.view()
        while replica in view.replicas and (left := end - time.monotonic()) > 0:
            view = self._directory.changed(view.token, left)
        return replica not in view.replicas


_CHANGES: dict[str, type[Any]] = {
    "RepositoryModelLoad": pb.RepositoryModelLoadRequest,
    "RepositoryModelUnload": pb.RepositoryModelUnloadRequest,
    "TraceSetting": pb.TraceSettingRequest,
    "LogSettings": pb.LogSettingsRequest,
}
_Answers: TypeAlias = "dict[str, bytes | HeadraceError]"


def _name(method: str) -> str:
    return method.rpartition("/")[2]


def _changes_of(method: str, payload: bytes) -> Iterator[tuple[str, Call]]:
    """What a call changes, as calls of their own, each with what it is about: the last one about something holds.

    None: it only asks, or is none.
    """
    try:
        request = _CHANGES[_name(method)].FromString(payload)
    except DecodeError:
        return
    if not hasattr(request, "settings"):
        yield f"model/{request.model_name}", Call(method, payload)
        return
    model = getattr(request, "model_name", "")
    for key in request.settings:
        alone = type(request)(model_name=model) if model else type(request)()
        alone.settings[key].CopyFrom(request.settings[key])
        yield f"{method}/{model}/{key}", Call(method, alone.SerializeToString())
