"""Control calls that concern all replicas: whichever of them gets one, all do it, or it answers for all.

What changes something is done here first – what is wrong with it is found out before anybody else is told – then kept for
replicas that come later, then done by all others at once. Replicas are asked at their private listeners, which ask nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from google.protobuf.message import DecodeError, Message

from headrace.cluster.aggregation import merged_index, merged_statistics
from headrace.cluster.directory import Call, Directory, Replica, ReplicaState
from headrace.cluster.private import call_replica
from headrace.engine.regions import Regions
from headrace.errors import Code, HeadraceError, NotByAll, Unsupported
from headrace.protocol import headrace_pb2 as pb
from headrace.transport.base import ControlCalls
from headrace.transport.control import SERVICE

_LOAD_SECONDS = 600.0
_ASK_SECONDS = 10.0
_TURN_SECONDS = 60.0
_GONE_SECONDS = 2.0
"""How long it may take until the directory knows of a replica that it is gone."""
_UNREACHABLE = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
_Answers = dict[str, bytes | HeadraceError]


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
            f"/{SERVICE}/RepositoryModelLoad": self._tell_all,
            f"/{SERVICE}/RepositoryModelUnload": self._tell_all,
            f"/{SERVICE}/TraceSetting": self._tell_all,
            f"/{SERVICE}/LogSettings": self._tell_all,
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
            raise Unsupported(
                "shared memory cannot be used where several replicas answer: the one that gets a request need not be the one "
                "that knows the region; send tensors in the message"
            )
        way = self._ways.get(method)
        return self._control.handle(method, payload) if way is None else way(method, payload)

    def _tell_all(self, method: str, payload: bytes) -> bytes:
        changes = list(changes_of(method, payload))
        if not changes:
            return self._control.handle(method, payload)
        with self._directory.turn(_TURN_SECONDS):
            answer = self._control.handle(method, payload)
            # Whoever begins from now on finds it kept, and whoever has begun is in the directory.
            for key, call in changes:
                self._directory.keep(key, call)
            seconds = _LOAD_SECONDS if method in self._control.blocking else _ASK_SECONDS
            answers = self._ask(method, payload, seconds, ReplicaState.STARTING, ReplicaState.READY)
        failed = {who: told for who, told in answers.items() if isinstance(told, HeadraceError)}
        if failed:
            raise NotByAll(_what(method), [self._me, *(who for who in answers if who not in failed)], failed)
        return answer

    def _statistics(self, method: str, payload: bytes) -> bytes:
        answers = self._ask_with_me(method, payload, payload, ReplicaState.READY, ReplicaState.DRAINING)
        told = [pb.ModelStatisticsResponse.FromString(answer) for answer in answers.values()]
        return merged_statistics(told).SerializeToString()

    def _index(self, method: str, payload: bytes) -> bytes:
        request = pb.RepositoryIndexRequest.FromString(payload)
        whole = pb.RepositoryIndexRequest(repository_name=request.repository_name).SerializeToString()
        answers = self._ask_with_me(method, payload, whole, ReplicaState.READY)
        told = {who: pb.RepositoryIndexResponse.FromString(answer) for who, answer in answers.items()}
        return merged_index(told, only_ready=request.ready).SerializeToString()

    def _ask_with_me(self, method: str, mine: bytes, theirs: bytes, *states: ReplicaState) -> dict[str, bytes]:
        """The answers of all that can answer, by id.

        Raises:
            NotByAll: one cannot be reached: without it, the answer would be wrong.
            HeadraceError: nobody can answer; the words are this replica's.
        """

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

        with ThreadPoolExecutor(len(others), "headrace-together") as pool:
            told = zip(others, pool.map(ask, others), strict=True)
            return {replica.id: answer for replica, answer in told if answer is not None}

    def _is_gone(self, replica: str) -> bool:
        """Whether a replica that cannot be reached is dead: the directory may take a moment to know."""
        end, view = time.monotonic() + _GONE_SECONDS, self._directory.view()
        while replica in view.replicas and (left := end - time.monotonic()) > 0:
            view = self._directory.changed(view.token, left)
        return replica not in view.replicas
