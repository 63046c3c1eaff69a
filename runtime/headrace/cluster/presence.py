"""A replica as others see it: published in the directory, with the state it is in, for as long as its process moves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from headrace.cluster.directory import Directory, Replica, ReplicaState, View
from headrace.errors import HeadraceError

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_TAKEN_IN_SECONDS = 10.0
_TAKEN_OUT_SECONDS = 10.0


class Presence:
    """Publishes a replica, and what becomes of it.

    Args:
        directory: where.
        replica: as it is now.
        state: asked again and again, from a thread.
    """

    def __init__(self, directory: Directory, replica: Replica, state: Callable[[], ReplicaState]) -> None:
        self._directory, self._replica, self._state = directory, replica, state
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="headrace-presence", daemon=True)

    @property
    def id(self) -> str:
        """The replica's."""
        return self._replica.id

    def start(self) -> None:
        """Be there.

        Raises:
            HeadraceError: the directory cannot be told.
        """
        self._directory.publish(self._replica)
        self._thread.start()

    def enter(self) -> None:
        """Be ready, and wait until every balancer knows it: whoever this replica takes the place of may go then."""
        self._tell()
        if not self._until(lambda view: all(self.id in each.serving for each in view.balancers.values()), _TAKEN_IN_SECONDS):
            log.warning("a balancer has not taken the replica in")

    def leave(self) -> None:
        """Be about to go, and wait until no balancer sends a new request."""
        self._tell()
        if not self._until(lambda view: view.is_out(self.id), _TAKEN_OUT_SECONDS):
            log.warning("a balancer has not taken the replica out: it may lose requests")

    def close(self) -> None:
        """Be gone."""
        self._stop.set()
        self._thread.join()
        try:
            self._directory.withdraw(self.id)
        except HeadraceError as error:
            log.warning("the directory cannot be told that the replica is gone: %s", error.message)

    def _tell(self) -> None:
        with self._lock:
            state = self._state()
            if state is not self._replica.state:
                self._replica = replica = replace(self._replica, state=state)
                self._directory.publish(replica)

    def _follow(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            try:
                self._tell()
            except HeadraceError as error:
                log.warning("the directory cannot be told that the replica is %s: %s", self._replica.state.value, error.message)

    def _until(self, holds: Callable[[View], bool], seconds: float) -> bool:
        end, token = time.monotonic() + seconds, ""
        while (left := end - time.monotonic()) > 0:
            try:
                view = self._directory.changed(token, left)
            except HeadraceError as error:
                log.warning("the directory cannot be asked: %s", error.message)
                return False
            if holds(view):
                return True
            token = view.token
        return False
