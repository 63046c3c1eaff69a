"""The agent of a node as an actor there: the first replica brings it, and it goes when there have been none for a while."""

from __future__ import annotations

import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from headrace.cluster.actors import OPTIONS, RayDirectory
from headrace.cluster.agent import Agent
from headrace.errors import HeadraceError
from headrace.files import replace_file
from headrace.server.logs import configure_logs

log = logging.getLogger("headrace.agent")

_LINGER_SECONDS = 60.0
_LOOK_SECONDS = 5.0
_UP_SECONDS = 60.0


class _Agent:
    """Runs an agent in this process, and starts it again when Ray has started the process again."""

    def __init__(self, app: str, node: str, address: str, run: Path) -> None:
        configure_logs("info", "auto")
        self._name, self._address = _name(app, node), address
        is_restarted = ray.get_runtime_context().was_current_actor_reconstructed
        # Clients know the port that the last one took.
        taken = run.with_suffix(".address")
        self._directory = RayDirectory(app, f"agent-{node}")
        self._error: HeadraceError | None = None
        try:
            self._agent = Agent(self._directory, node, taken.read_text() if is_restarted and taken.exists() else address, run)
            self._agent.start()
            replace_file(taken, self._agent.address.encode())
        except HeadraceError as error:
            if is_restarted:
                raise  # nobody asks: Ray tries again
            self._error = error
            return
        threading.Thread(target=self._linger, name="headrace-linger", daemon=True).start()

    def asked(self, address: str) -> str:
        """Where clients reach the balancer, for a replica that wants one at `address`.

        Raises:
            HeadraceError: there is none.
        """
        if self._error is not None:
            raise self._error
        if address != self._address:
            log.warning("the balancer stays at %s; it moves to %s when its last replica is gone", self._address, address)
        return self._agent.address

    def _linger(self) -> None:
        """Until there has been no replica for a while: of other nodes, too, for clients know this address."""
        alone, stop = 0.0, threading.Event()
        while alone < _LINGER_SECONDS:
            stop.wait(_LOOK_SECONDS)
            try:
                alone = 0.0 if self._directory.view().replicas else alone + _LOOK_SECONDS
            except HeadraceError:
                alone = 0.0
        log.info("there has been no replica for %g s: the balancer ends", _LINGER_SECONDS)
        self._agent.stop()
        self._directory.close()
        myself: Any = ray.get_actor(self._name, OPTIONS["namespace"])
        ray.kill(myself)


AgentActor: Any = ray.remote(_Agent)


def ask_for_balancer(app: str, node: str, address: str, run: Path | None) -> str:
    """See to it that this node, the one we are on, has a balancer for `app` at `address`; where it is.

    Raises:
        HeadraceError: it cannot have one, and the message says why.
    """
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    actor = AgentActor.options(name=_name(app, node), scheduling_strategy=here, **OPTIONS)
    agent = actor.remote(app, node, address, _run_of(run, app, node))
    try:
        return ray.get(agent.asked.remote(address), timeout=_UP_SECONDS)
    except HeadraceError as error:
        # Whoever comes next may have more luck.
        ray.kill(agent)
        raise getattr(error, "cause", error) from None


def _name(app: str, node: str) -> str:
    return f"agent-{app}-{node}"


def _run_of(run: Path | None, app: str, node: str) -> Path:
    """Where the balancer's files are; short, for the path of a socket has at most 107 bytes."""
    return (run or Path(tempfile.gettempdir()) / "headrace-balancers") / f"{app[:16]}-{node[:8]}"
