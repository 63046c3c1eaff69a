"""A replica: one server in a process that Ray keeps, and what Serve asks of it.

Clients reach it through the balancer, over the native transport on a port of its own; Serve's handles and Serve's own gRPC proxy
reach the same queues. Its life: listen, load, be there for the balancers, serve; then say that it drains, wait until balancers
have taken it out, drain, end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from numpy.typing import NDArray
from pydantic import ValidationError
from ray import serve

from headrace.clock import SECOND
from headrace.cluster.actors import RayDirectory
from headrace.cluster.agents import ask_for_balancer
from headrace.cluster.calls import UNARY, Calls, Encoded
from headrace.cluster.holding import hold
from headrace.cluster.member import Member
from headrace.cluster.peers import replica_config
from headrace.cluster.settings import ClusterConfig, Holding
from headrace.errors import BackendFailed, InvalidRepository
from headrace.server.server import Server

if TYPE_CHECKING:
    from headrace.cluster.arrow import Table

log = logging.getLogger("headrace.replica")

STOPPING_SECONDS = 20.0
"""What stopping takes beside the drain: to be taken out of balancers before it, to close sessions after it."""
_CLOSE_NS = 5 * SECOND


class Replica:
    """Serves the models of one repository. See `headrace.cluster.app`."""

    async def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._holding: Holding | None = None
        self._is_leaving = False
        context, node = serve.get_replica_context(), ray.get_runtime_context().get_node_id()
        id, app = context.replica_id.unique_id, context.app_name
        self._server = Server(replica_config(config.of_replica(ray.util.get_node_ip_address())))
        try:
            self._directory = await asyncio.to_thread(RayDirectory, app, id)
            self._member = Member(self._server, self._directory, id, node, lambda: not self._troubles())
            await asyncio.to_thread(self._server.start)
            if config.balancer:
                await asyncio.to_thread(ask_for_balancer, app, node, config.grpc, config.run_directory)
            self._calls = Calls(self._server)
        except BaseException:
            self._server.close(0)
            raise
        log.info("replica listens", extra=self._server.addresses)

    # What Serve asks of it.

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Hold what `user_config` says (`Holding`). What is still to come is being loaded beside what serves, which goes on.

        Raises:
            InvalidRepository: before the replica takes requests: a model did not come up. Later that is in the log and in the
                repository's index: Serve would end a replica that serves, and start one that cannot.
        """
        is_new = self._holding is None
        try:
            holding = Holding.model_validate(user_config)
            problems = await asyncio.to_thread(hold, self._server.engine, holding.models)
        except (ValidationError, InvalidRepository) as error:
            if is_new:
                raise
            holding, problems = self._holding, [f"user_config is not as it has to be, and nothing changes: {error}"]
        up, _ = self._server.models_up()
        if is_new and problems and (self._config.server.strict_readiness or not up):
            raise InvalidRepository("; ".join(problems))
        for problem in problems:
            log.error("%s", problem)
        self._holding = holding
        if is_new:
            await asyncio.to_thread(self._member.enter)

    async def check_health(self) -> None:
        """Raises `BackendFailed` when an instance has stopped or hangs: Serve replaces the replica. A busy one is well."""
        if troubles := self._troubles():
            raise BackendFailed("; ".join(troubles))

    async def __del__(self) -> None:
        """Serve calls this once, when nothing of its own is under way any more, and waits for it."""
        if not self._is_leaving:
            self._is_leaving = True
            await asyncio.to_thread(self._leave)

    # What handles ask of it.

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, object] | Table,
        *,
        version: int = 0,
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        request_id: str = "",
    ) -> dict[str, NDArray[Any]] | Table:
        """Arrays by name for arrays by name, as `Engine.infer`; a table for a table, as `arrow.infer_table`.

        Both wait in the same queue as everybody's requests.

        Raises:
            HeadraceError: with the code and message that a remote client would get.
        """
        engine = self._server.engine
        if isinstance(inputs, Mapping):
            return await engine.infer_async(
                model, inputs, version=version, outputs=outputs, timeout=timeout, request_id=request_id
            )
        from headrace.cluster.arrow import infer_table

        return await infer_table(engine, model, inputs, version=version, outputs=outputs, timeout=timeout)

    async def status(self) -> dict[str, Any]:
        """Its `process`, where it listens (`addresses`), and its `models`: name/version → state, and what is wrong with it."""
        return {
            "process": os.getpid(),
            "addresses": self._server.addresses,
            "models": {
                f"{status.model}/{status.version or '-'}": (status.state.value, status.reason)
                for status in self._server.engine.statuses()
            },
        }

    # What Serve's proxy asks of it: each RPC by its name. The unary ones are below.

    async def ModelStreamInfer(self, requests: AsyncIterator[bytes], grpc_context: Any) -> AsyncIterator[Encoded]:
        """The one stream of the V2 service."""
        async for answer in self._calls.stream(requests, grpc_context):
            yield answer

    # Inside.

    def _troubles(self) -> list[str]:
        return self._server.engine.stalled(self._config.hung_seconds)

    def _leave(self) -> None:
        """Be taken out of balancers, serve what is here, end."""
        drain = self._config.server
        self._member.leave()
        self._server.engine.unready()
        if not self._config.balancer:
            time.sleep(drain.drain_grace)  # clients, or whatever is in front, look at readiness
        self._server.stop_accepting()
        deadline = time.monotonic_ns() + round(drain.drain_seconds * SECOND)
        self._server.engine.drain(deadline)
        self._server.close(deadline + _CLOSE_NS)
        self._member.close()
        self._directory.close()
        log.info("drained", extra=self._server.engine.statistics.summary())


def _rpc(name: str) -> Callable[[Replica, bytes, Any], Awaitable[Encoded]]:
    async def call(self: Replica, payload: bytes, grpc_context: Any) -> Encoded:
        return await self._calls.unary(name, payload, grpc_context)

    call.__name__ = name
    return call


for _name in UNARY:
    setattr(Replica, _name, _rpc(_name))

Headrace = serve.deployment(
    Replica,
    name="Headrace",
    max_ongoing_requests=1024,
    max_queued_requests=1024,  # of handles and of Serve's proxy: the queues have bounds of their own, and words for it
    max_surge_percent=100,  # a new replica is there before an old one goes
    max_constructor_retry_count=3,  # what does not load now will not a moment later
    health_check_period_s=2,
    health_check_timeout_s=10,
    ray_actor_options={"num_cpus": 1},
)
