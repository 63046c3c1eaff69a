"""The agent of a node: follows the directory, and edits the balancer until both say the same."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from headrace.cluster.balancer import Balancer
from headrace.cluster.directory import BalancerReport, Directory, Replica, ReplicaState, View
from headrace.cluster.haproxy import SERVER_OPTIONS, TUNING, Admin, Server, Tuning
from headrace.errors import CannotBalance, sentence

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
"""How often the balancer is compared with the directory although nothing has changed there."""


class Verb(Enum):
    """What is done to a server. One that is held gets nothing at all, one that is drained nothing new."""

    ADD = "add"
    ENABLE = "enable"
    DRAIN = "drain"
    HOLD = "hold"
    REMOVE = "remove"


class Edit(NamedTuple):
    """One change of a balancer: to which server, and where that is."""

    verb: Verb
    server: str
    address: str = ""


def edits(replicas: Mapping[str, Replica], servers: Mapping[str, Server]) -> list[Edit]:
    """What brings a backend nearer to the directory. Pure.

    A server goes in two steps, as HAProxy wants it: it is held, and removed once it has no streams.

    Args:
        replicas: what the directory says, by id.
        servers: what the backend has, by name, which is the id of its replica.
    """
    found: list[Edit] = []
    for name, server in servers.items():
        replica = replicas.get(name)
        if replica is not None and replica.address == server.address:
            if replica.state is ReplicaState.READY and server.admin is not Admin.READY:
                found.append(Edit(Verb.ENABLE, name))
            elif replica.state is not ReplicaState.READY and server.admin is Admin.READY:
                found.append(Edit(Verb.DRAIN, name))
        elif Admin.MAINTENANCE not in server.admin:
            found.append(Edit(Verb.HOLD, name))
        elif not server.streams:
            found.append(Edit(Verb.REMOVE, name))
    ready = [replica for replica in replicas.values() if replica.state is ReplicaState.READY]
    return found + [Edit(Verb.ADD, replica.id, replica.address) for replica in ready if replica.id not in servers]


class Agent:
    """Keeps one balancer.

    Args:
        directory: who is there.
        id: tells the balancer from the others of the directory.
        address: where clients come: HOST:PORT.
        run: the directory of the balancer's run.
        tuning: how it runs.

    Raises:
        CannotBalance: there is no HAProxy here.
    """

    def __init__(self, directory: Directory, id: str, address: str, run: Path, tuning: Tuning = TUNING) -> None:
        self._directory, self._id = directory, id
        self._view = directory.view()
        self.balancer = Balancer(address, run, lambda: _ready(self._view), tuning)
        self._serving: frozenset[str] = frozenset()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="headrace-agent", daemon=True)

    @property
    def address(self) -> str:
        """Where clients reach the balancer."""
        return self.balancer.address

    def start(self) -> None:
        """Start the balancer, with the replicas that are ready, and follow the directory. Once.

        Raises:
            CannotListen: the address cannot be had.
            CannotBalance: another balancer has this run's directory, or HAProxy does not come up.
        """
        self.balancer.start()
        self._settle()
        self._thread.start()

    def stop(self) -> None:
        """Let the balancer finish what it has, and end it. Once."""
        self._is_stopping.set()
        self._thread.join()
        self.balancer.stop()
        self._directory.withdraw_balancer(self._id)

    def _follow(self) -> None:
        while not self._is_stopping.is_set():
            try:
                self._view = self._directory.changed(self._view.token, _LOOK_SECONDS)
                self._settle()
            except Exception as error:
                # The balancer goes on with what it has.
                log.warning("the balancer cannot follow the directory now: %s", sentence(error))
                self._is_stopping.wait(_LOOK_SECONDS)

    def _settle(self) -> None:
        """Edit each backend, and report to whom new requests may go.

        Who is about to be added is reported, and looked at once more, before it is: a replica that drains meanwhile either sees
        that, or is seen.
        """
        if not self._serving.issuperset(_ready(self._view)):
            self._report(self._serving.union(_ready(self._view)))
            self._view = self._directory.view()
        backends = self.balancer.admin.servers()
        wanted = [(backend, edit) for backend, servers in backends.items() for edit in edits(self._view.replicas, servers)]
        for backend, edit in wanted:
            self._apply(backend, edit)
        if wanted:
            backends = self.balancer.admin.servers()
        self._report(
            frozenset(name for servers in backends.values() for name, server in servers.items() if server.admin is Admin.READY)
        )

    def _report(self, serving: frozenset[str]) -> None:
        if serving != self._serving or self._id not in self._view.balancers:
            self._directory.report(BalancerReport(self._id, self.address, tuple(sorted(serving))))
            self._serving = serving

    def _apply(self, backend: str, edit: Edit) -> None:
        admin, server = self.balancer.admin, f"{backend}/{edit.server}"
        try:
            match edit.verb:
                case Verb.ADD:
                    admin.do(f"add server {server} {edit.address} {SERVER_OPTIONS}", "New server registered.")
                    admin.do(f"enable health {server}")
                    admin.do(f"enable server {server}")
                case Verb.ENABLE:
                    admin.do(f"set server {server} state ready")
                case Verb.DRAIN:
                    admin.do(f"set server {server} state drain")
                case Verb.HOLD:
                    admin.do(f"set server {server} state maint")
                case Verb.REMOVE:
                    # It still has idle connections for some seconds; then the next look removes it.
                    admin.do(f"del server {server}", "Server deleted.|.*still has .*connections.*")
        except CannotBalance as error:
            log.warning("%s", error)


def _ready(view: View) -> dict[str, str]:
    """The addresses of the replicas that are ready, by id."""
    return {replica.id: replica.address for replica in view.replicas.values() if replica.state is ReplicaState.READY}
