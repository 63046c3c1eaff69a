"""The directory: which replicas there are, and what each balancer makes of it.

A replica publishes itself, a balancer's agent follows and reports. A replica that stops publishes that it drains, and goes on
serving until no balancer sends it new requests (`View.is_out`). Whoever dies disappears.

What all replicas have been told – models loaded, settings – is kept here, too: a replica that comes later is told it as well.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from headrace.errors import ChangeUnderWay, InvalidDirectory
from headrace.files import is_locked, replace_file

_POLL_SECONDS = 0.05
_FIRST_SECONDS = 60.0
"""How long the first replica waits for another first one."""


class ReplicaState(StrEnum):
    """What a replica does with requests: not yet, yes, those it has."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica.

    Attributes:
        id: tells it from every other one that there has been; letters, digits, `-`, `_` and `.`.
        address: where balancers send requests: IP:PORT.
        private: where the other replicas call it: HOST:PORT. Not for clients.
        state: what it does with requests.
        node: the machine it runs on.
    """

    id: str
    address: str
    private: str
    state: ReplicaState
    node: str


@dataclass(frozen=True, slots=True)
class BalancerReport:
    """What a balancer does.

    Attributes:
        id: tells it from the others.
        address: where clients reach it: HOST:PORT.
        serving: the replicas to which it may send a new request, by id.
    """

    id: str
    address: str
    serving: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A control call that all replicas have been told."""

    method: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class View:
    """The directory at one moment; `token` tells two that differ apart."""

    replicas: Mapping[str, Replica]
    balancers: Mapping[str, BalancerReport]
    token: str

    def is_out(self, replica: str) -> bool:
        """Whether no balancer sends new requests to this replica."""
        return all(replica not in balancer.serving for balancer in self.balancers.values())

    @property
    def is_settled(self) -> bool:
        """Whether every balancer sends requests to every replica that is ready."""
        ready = {each.id for each in self.replicas.values() if each.state is ReplicaState.READY}
        return all(ready.issubset(balancer.serving) for balancer in self.balancers.values())

    def others(self, replica: str, *states: ReplicaState) -> list[Replica]:
        """The replicas in these states, without this one."""
        return [each for each in self.replicas.values() if each.id != replica and each.state in states]


class Directory(Protocol):
    """Safe to use from any thread, and from every replica and agent."""

    def publish(self, replica: Replica) -> None:
        """Add a replica, or say what has become of it. It is there until it is withdrawn, or its process ends."""
        ...

    def withdraw(self, replica: str) -> None:
        """Take a replica out. Any number of times."""
        ...

    def report(self, balancer: BalancerReport) -> None:
        """Add a balancer, or say what it does now. It is there until it is withdrawn, or its process ends."""
        ...

    def withdraw_balancer(self, balancer: str) -> None:
        """Take a balancer out. Any number of times."""
        ...

    def view(self) -> View:
        """What there is now: what any process published before is in it."""
        ...

    def changed(self, token: str, seconds: float) -> View:
        """Wait for a view with another token; the same one after so many seconds."""
        ...

    def keep(self, key: str, call: Call) -> None:
        """Remember a call for replicas that come later, instead of the one of this key. The first replica begins without any."""
        ...

    def kept(self) -> list[Call]:
        """What is remembered, in the order in which it was."""
        ...

    def turn(self, seconds: float) -> AbstractContextManager[None]:
        """Have what all replicas are told change one after the other. Ends with its process.

        Raises:
            ChangeUnderWay: somebody else's turn has taken longer.
        """
        ...


class FileDirectory:
    """A directory for the processes of one machine: a folder. Who holds the lock of a name lives.

    Args:
        path: the folder; it is made if it is not there.

    Raises:
        InvalidDirectory: it cannot be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._locks: dict[Path, int] = {}
        try:
            for name in ("replicas", "balancers", "calls"):
                (path / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidDirectory(f"{path} cannot be a directory of replicas: {error.strerror}") from None
        if not os.access(path / "replicas", os.W_OK | os.X_OK):
            raise InvalidDirectory(f"{path} cannot be a directory of replicas: it may not be written to")

    def publish(self, replica: Replica) -> None:
        """See `Directory.publish`."""
        if self.view().replicas:
            self._put("replicas", replica.id, asdict(replica))
            return
        with self.turn(_FIRST_SECONDS):
            if not self.view().replicas:  # what others have been told, who are gone, is not for us
                for file in (self._path / "calls").iterdir():
                    file.unlink()
            self._put("replicas", replica.id, asdict(replica))

    def withdraw(self, replica: str) -> None:
        """See `Directory.withdraw`."""
        self._remove("replicas", replica)

    def report(self, balancer: BalancerReport) -> None:
        """See `Directory.report`."""
        self._put("balancers", balancer.id, asdict(balancer))

    def withdraw_balancer(self, balancer: str) -> None:
        """See `Directory.withdraw_balancer`."""
        self._remove("balancers", balancer)

    def view(self) -> View:
        """See `Directory.view`."""
        replicas = {name: Replica(**{**told, "state": ReplicaState(told["state"])}) for name, told in self._living("replicas")}
        balancers = {
            name: BalancerReport(**{**told, "serving": tuple(told["serving"])}) for name, told in self._living("balancers")
        }
        told = repr((sorted(replicas.items()), sorted(balancers.items())))
        return View(replicas, balancers, hashlib.sha1(told.encode(), usedforsecurity=False).hexdigest())

    def changed(self, token: str, seconds: float) -> View:
        """See `Directory.changed`."""
        end = time.monotonic() + seconds
        while (view := self.view()).token == token and (left := end - time.monotonic()) > 0:
            time.sleep(min(_POLL_SECONDS, left))
        return view

    def keep(self, key: str, call: Call) -> None:
        """See `Directory.keep`."""
        head = json.dumps({"at": time.time_ns(), "method": call.method}).encode()
        replace_file(self._path / "calls" / hashlib.sha256(key.encode()).hexdigest()[:32], head + b"\n" + call.payload)

    def kept(self) -> list[Call]:
        """See `Directory.kept`."""
        found: list[tuple[int, Call]] = []
        for file in (self._path / "calls").iterdir():
            with suppress(FileNotFoundError):
                head, _, payload = file.read_bytes().partition(b"\n")
                if not file.name.startswith("."):
                    told = json.loads(head)
                    found.append((told["at"], Call(told["method"], payload)))
        return [call for _, call in sorted(found, key=lambda each: each[0])]

    @contextmanager
    def turn(self, seconds: float) -> Iterator[None]:
        """See `Directory.turn`."""
        descriptor = os.open(self._path / "turn.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + seconds
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise ChangeUnderWay(seconds) from None
                    time.sleep(_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def _file(self, kind: str, name: str) -> Path:
        return self._path / kind / f"{name}.json"

    def _put(self, kind: str, name: str, told: Mapping[str, Any]) -> None:
        file = self._file(kind, name)
        if file not in self._locks:
            lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._locks[file] = lock
        replace_file(file, json.dumps(told).encode())

    def _remove(self, kind: str, name: str) -> None:
        file = self._file(kind, name)
        lock = self._locks.pop(file, None)
        if lock is not None:
            _unlink(file)
            os.close(lock)

    def _living(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """What is published there, by name; what a dead process left is removed."""
        for file in sorted((self._path / kind).glob("[!.]*.json")):
            with suppress(FileNotFoundError):
                told = json.loads(file.read_bytes())
                if is_locked(file.with_suffix(".lock")):
                    yield file.stem, told
                else:
                    _unlink(file)


def _unlink(file: Path) -> None:
    """Remove what was published, and its lock after it."""
    file.unlink(missing_ok=True)
    file.with_suffix(".lock").unlink(missing_ok=True)
