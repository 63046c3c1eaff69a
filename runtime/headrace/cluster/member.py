"""A server as one of the replicas of a directory: `headrace serve --directory`."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable

from headrace.cluster.directory import Directory, Replica, ReplicaState
from headrace.cluster.peers import Peers
from headrace.cluster.presence import Presence
from headrace.errors import InvalidRepository
from headrace.server.server import Server
from headrace.transport.listening import is_unix

_LOCAL = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}


class Member:
    """Made before the server is started; enters the directory when it is, and leaves it before it drains.

    Args:
        server: with settings from `peers.replica_config`.
        directory: who else there is.
        id: of the replica; one is made up if it is empty.
        node: the machine it runs on; this one's name if it is empty.
        is_well: asked again and again. While it is not, it gets no new requests.

    Raises:
        InvalidRepository: balancers could not reach it.
    """

    def __init__(
        self, server: Server, directory: Directory, id: str = "", node: str = "", is_well: Callable[[], bool] = lambda: True
    ) -> None:
        if is_unix(server.config.grpc):
            raise InvalidRepository(
                f"a replica of a directory listens on HOST:PORT, for balancers, and grpc is {server.config.grpc}"
            )
        self._server, self._directory = server, directory
        self._id, self._node = id or f"{os.getpid()}-{secrets.token_hex(3)}", node or socket.gethostname()
        self._peers = Peers(server, directory, self._id)
        self._presence: Presence | None = None
        self._is_well, self._wants = is_well, ReplicaState.STARTING

    def enter(self) -> None:
        """Do what the other replicas have been told, and be one that gets requests. The server is started.

        Raises:
            HeadraceError: it cannot be.
        """
        host, _, port = self._server.addresses["grpc"].rpartition(":")
        self._peers.start(f"{host}:0")
        address, private = (reachable(each) for each in (f"{host}:{port}", self._peers.address))
        replica = Replica(self._id, address, private, self._wants, self._node)
        self._presence = Presence(self._directory, replica, self._state)
        self._presence.start()
        self._peers.catch_up()
        self._wants = ReplicaState.READY
        self._presence.enter()

    def leave(self) -> None:
        """Get no new requests any more. Returns when balancers have heard it, or do not answer."""
        if self._presence is not None:
            self._wants = ReplicaState.DRAINING
            self._presence.leave()

    def close(self) -> None:
        """Be gone. Also what never entered."""
        self._peers.close()
        if self._presence is not None:
            self._presence.close()

    def _state(self) -> ReplicaState:
        is_ready = self._wants is ReplicaState.READY
        return ReplicaState.DRAINING if is_ready and not self._is_well() else self._wants


def reachable(address: str) -> str:
    """An address as everybody on this machine can use it, in numbers, as HAProxy repeats them: one of all interfaces is local.

    Raises:
        InvalidRepository: there is no such host.
    """
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(_LOCAL.get(host, host.strip("[]")), int(port), type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise InvalidRepository(f"balancers cannot reach {address}: {error.strerror}") from None
    return f"[{found}]:{port}" if ":" in str(found) else f"{found}:{port}"
