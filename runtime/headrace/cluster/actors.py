"""The directory of a cluster of several nodes: an actor, and what stands for it in every process.

Each process tells the actor again and again what it has published. What a process that has gone silent published disappears; an
actor that was started anew learns within a moment what there is, and says nothing before.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.experimental import internal_kv

from headrace.cluster.directory import BalancerReport, Call, Replica, View
from headrace.errors import ChangeUnderWay, DirectoryUnreachable, sentence

log = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0
SILENT_SECONDS = 5.0
"""Who has not been heard of for so long is gone."""
_ASK_SECONDS = 10.0
_STEP_SECONDS = 0.5

T = TypeVar("T")


class Register:
    """What the actor holds: who has published what, and when it was heard last. Time comes as an argument, in seconds."""

    def __init__(self, run: str, is_restarted: bool, now: float) -> None:
        self._run, self._version = run, 0
        self._replicas: dict[str, tuple[Replica, str]] = {}
        self._balancers: dict[str, tuple[BalancerReport, str]] = {}
        self._heard: dict[str, float] = {}
        self._turn: str | None = None
        self.settled_at = now + SILENT_SECONDS if is_restarted else now
        """From when on what it knows is all there is."""

    def hear(self, who: str, replicas: list[Replica], balancers: list[BalancerReport], now: float) -> bool:
        """A process says what it has published, all of it. Returns whether it brought the first replica there is."""
        had_none = not self._replicas
        before = (dict(self._replicas), dict(self._balancers))
        self._heard[who] = now
        self._replace(self._replicas, who, {each.id: each for each in replicas})
        self._replace(self._balancers, who, {each.id: each for each in balancers})
        self._version += before != (self._replicas, self._balancers)
        return had_none and bool(self._replicas) and now >= self.settled_at

    def forget_silent(self, now: float) -> None:
        """Forget who has not been heard of for too long."""
        for who in [who for who, at in self._heard.items() if now - at > SILENT_SECONDS]:
            log.warning("%s has gone silent", who)
            self.hear(who, [], [], now)
            del self._heard[who]
            if self._turn == who:
                self._turn = None

    def view(self) -> View:
        """What there is."""
        replicas = {name: each for name, (each, _) in self._replicas.items()}
        balancers = {name: each for name, (each, _) in self._balancers.items()}
        return View(replicas, balancers, self.token)

    @property
    def token(self) -> str:
        """Tells two states apart."""
        return f"{self._run}-{self._version}"

    def take_turn(self, who: str) -> bool:
        """Whether `who` has the turn now."""
        if self._turn is None:
            self._turn = who
        return self._turn == who

    def end_turn(self, who: str) -> None:
        """It is somebody else's turn."""
        if self._turn == who:
            self._turn = None

    @staticmethod
    def _replace(known: dict[str, tuple[T, str]], who: str, published: dict[str, T]) -> None:
        for name in [name for name, (_, publisher) in known.items() if publisher == who and name not in published]:
            del known[name]
        known.update({name: (each, who) for name, each in published.items()})


class _Store:
    """Calls that are remembered, in the store that Ray's own state is in."""

    def __init__(self, app: str) -> None:
        self._prefix = f"headrace/{app}/".encode()

    def keep(self, key: str, call: Call) -> None:
        at = f"{time.time_ns():020d}"
        value = b"\n".join((at.encode(), call.method.encode(), call.payload))
        internal_kv._internal_kv_put(self._prefix + key.encode(), value, overwrite=True)

    def kept(self) -> list[Call]:
        found = [internal_kv._internal_kv_get(key) for key in self._keys()]
        told = [value.split(b"\n", 2) for value in sorted(value for value in found if value is not None)]
        return [Call(method.decode(), payload) for _, method, payload in told]

    def clear(self) -> None:
        for key in self._keys():
            internal_kv._internal_kv_del(key)

    def _keys(self) -> list[bytes]:
        return internal_kv._internal_kv_list(self._prefix)


class _Directory:
    """The register of one application, and the calls that replicas have been told, which outlive it in Ray's own store."""

    def __init__(self, app: str) -> None:
        context = ray.get_runtime_context()
        self._store = _Store(app)
        self._register = Register(f"{time.time_ns():x}", bool(context.was_current_actor_reconstructed), time.monotonic())
        self._changed = asyncio.Event()

    async def hear(self, who: str, replicas: list[Replica], balancers: list[BalancerReport]) -> None:
        """See `Register.hear`."""
        if self._register.hear(who, replicas, balancers, time.monotonic()):
            await asyncio.to_thread(self._store.clear)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def changed(self, token: str, seconds: float) -> View:
        """The view, once it is another than that of `token`, or after so many seconds."""
        end = time.monotonic() + seconds
        while (left := self._register.settled_at - time.monotonic()) > 0:
            await asyncio.sleep(left)
        while True:
            self._register.forget_silent(time.monotonic())
            left = end - time.monotonic()
            if self._register.token != token or left <= 0:
                return self._register.view()
            changed = self._changed
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), min(left, _STEP_SECONDS))

    async def keep(self, key: str, call: Call) -> None:
        """See `Directory.keep`."""
        await asyncio.to_thread(self._store.keep, key, call)

    async def kept(self) -> list[Call]:
        """See `Directory.kept`."""
        return await asyncio.to_thread(self._store.kept)

    async def take_turn(self, who: str) -> bool:
        """See `Register.take_turn`."""
        return self._register.take_turn(who)

    async def end_turn(self, who: str) -> None:
        """See `Register.end_turn`."""
        self._register.end_turn(who)


DirectoryActor: Any = ray.remote(_Directory)
OPTIONS: dict[str, Any] = {
    "namespace": "headrace",
    "lifetime": "detached",
    "get_if_exists": True,
    "num_cpus": 0,
    "max_restarts": -1,
}
"""Of actors that outlive whoever brings them, and are started again when they die."""


class RayDirectory:
    """The directory of an application, for one process. See `headrace.cluster.directory.Directory`.

    Args:
        app: the application's name.
        who: this process, for logs; it is made unique.

    Raises:
        DirectoryUnreachable: Ray does not give an answer.
    """

    def __init__(self, app: str, who: str) -> None:
        self._who = f"{who}-{time.time_ns():x}"
        self._actor = DirectoryActor.options(name=f"directory-{app}", max_concurrency=1024, **OPTIONS).remote(app)
        self._lock = threading.Lock()
        self._replicas: dict[str, Replica] = {}
        self._balancers: dict[str, BalancerReport] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="headrace-directory", daemon=True)
        self._thread.start()

    def publish(self, replica: Replica) -> None:
        """See `Directory.publish`."""
        self._say(lambda: self._replicas.update({replica.id: replica}))

    def withdraw(self, replica: str) -> None:
        """See `Directory.withdraw`."""
        self._say(lambda: self._replicas.pop(replica, None))

    def report(self, balancer: BalancerReport) -> None:
        """See `Directory.report`."""
        self._say(lambda: self._balancers.update({balancer.id: balancer}))

    def withdraw_balancer(self, balancer: str) -> None:
        """See `Directory.withdraw_balancer`."""
        self._say(lambda: self._balancers.pop(balancer, None))

    def view(self) -> View:
        """See `Directory.view`."""
        return self.changed("", 0)

    def changed(self, token: str, seconds: float) -> View:
        """See `Directory.changed`."""
        return _ask(self._actor.changed.remote(token, seconds), seconds + SILENT_SECONDS + _ASK_SECONDS)

    def keep(self, key: str, call: Call) -> None:
        """See `Directory.keep`."""
        _ask(self._actor.keep.remote(key, call))

    def kept(self) -> list[Call]:
        """See `Directory.kept`."""
        return _ask(self._actor.kept.remote())

    @contextmanager
    def turn(self, seconds: float) -> Iterator[None]:
        """See `Directory.turn`."""
        end = time.monotonic() + seconds
        while not _ask(self._actor.take_turn.remote(self._who)):
            if time.monotonic() > end:
                raise ChangeUnderWay(seconds)
            time.sleep(_STEP_SECONDS / 10)
        try:
            yield
        finally:
            _ask(self._actor.end_turn.remote(self._who))

    def close(self) -> None:
        """Say nothing more. What was published and not withdrawn is gone after a while."""
        self._stop.set()
        self._thread.join()

    def _say(self, change: Callable[[], object]) -> None:
        with self._lock:  # so that nothing older arrives behind what is newer
            change()
            said = self._tell()
        _ask(said)

    def _tell(self) -> Any:
        return self._actor.hear.remote(self._who, list(self._replicas.values()), list(self._balancers.values()))

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT_SECONDS):
            try:
                with self._lock:
                    self._tell()
            except RayError as error:
                log.warning("the directory cannot be told that we are here: %s", sentence(error))


def _ask(answer: Any, seconds: float = _ASK_SECONDS) -> Any:
    """What the actor answers.

    Raises:
        DirectoryUnreachable: nothing, in time.
    """
    try:
        return ray.get(answer, timeout=seconds)
    except (GetTimeoutError, RayError) as error:
        raise DirectoryUnreachable(sentence(error)) from None
