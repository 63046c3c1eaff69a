"""One server in this process: ways in, an engine, and what it does beside serving. `headrace serve` and each replica run one.

Order matters: the port is taken first (a busy one should not cost the loading of models), models load while the server is
live and not ready, and stopping goes the other way round: not ready, grace, no new requests, drained, closed.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.config import ServerConfig
from headrace.errors import InvalidRepository
from headrace.machine import SWITCH_SECONDS
from headrace.model import State
from headrace.server.keeper import Keeper
from headrace.server.logs import configure_logs

if TYPE_CHECKING:
    from headrace.budgets.slo import Objective
    from headrace.models.repository import ModelFile, Repository
    from headrace.transport.base import ControlCalls, Transport
    from headrace.transport.metrics import MetricsEndpoint

log = logging.getLogger("headrace.serve")


class Server:
    """Serves what `config` says. Nothing listens and nothing is loaded before `start`.

    Args:
        config: the settings.
        model: this one file instead of `config.repository`.

    Attributes:
        addresses: where it listens, by protocol; with the ports it got once it is started.
        transport: the name of the way in for gRPC.
        control: answers control calls; may be replaced before the start.

    Raises:
        HeadraceError: it cannot come up: no repository, a transport that is not there, objectives that are none.
    """

    def __init__(self, config: ServerConfig, model: Path | None = None) -> None:
        from headrace.transport.ways import chosen_transport, open_transport

        source = _source(config, model)
        self.config, self.transport = config, chosen_transport(config.transport)
        configure_logs(config.log_level, config.log_format)
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its failures are exceptions; its own lines on stderr are no JSON
        from headrace.engine.engine import Engine, ModelControl
        from headrace.engine.profiles import Profiles
        from headrace.transport.control import Control

        sys.setswitchinterval(SWITCH_SECONDS)
        grpc = open_transport(self.transport, config.grpc, header_forward_pattern=config.grpc_header_forward_pattern)
        self.engine = Engine(
            source,
            queues=grpc.queues,
            control=ModelControl(config.model_control, tuple(config.load_model), config.poll_seconds),
            strict_readiness=config.strict_readiness,
            profiles=Profiles() if config.probe else None,
            objectives=_objectives(config, source),
        )
        self._ways_in: dict[str, Transport] = {"grpc": grpc, **_other_ways_in(config)}
        try:
            self._keeper = Keeper(config, self.engine)
        except BaseException:
            self.engine.close(0)
            raise
        self._metrics = self._open_metrics()
        self.control: ControlCalls = Control(self.engine, config.server_name, config.allow_client_shm)
        self.addresses: dict[str, str] = {}

    def start(self) -> None:
        """Listen, then load the models; returns when every load has come to an end.

        Raises:
            HeadraceError: a port is taken, or no model came up.
        """
        from headrace.budgets.slo import unserved

        self._keeper.start()
        for way_in in self._ways_in.values():
            way_in.start(self.engine.routes, self.control)
        if self._metrics is not None:
            self._metrics.start()
        self.addresses = {protocol: way_in.address for protocol, way_in in self._ways_in.items()}
        self.addresses |= {"metrics": self._metrics.address} if self._metrics is not None else {}
        log.debug("listening, loading models", extra=self.addresses)
        self.engine.start()
        self._check_serves()
        for problem in unserved(self.engine.budgets.objectives, self.engine.known_models()):
            log.warning("%s", problem)
        # What is there now stays: the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()

    def models_up(self) -> tuple[int, int]:
        """How many models have a version that is ready, and how many there are."""
        up: dict[str, bool] = {}
        for status in self.engine.statuses():
            up[status.model] = up.get(status.model, False) or status.state is State.READY
        return sum(up.values()), len(up)

    def stop_accepting(self) -> None:
        """Refuse new requests; those that were accepted go on."""
        for way_in in self._ways_in.values():
            way_in.stop_accepting()

    def close(self, deadline: int) -> None:
        """Stop listening; what is still open may take until `deadline` (ns). Also what was never started."""
        for way_in in self._ways_in.values():
            way_in.close(deadline)
        if self._metrics is not None:
            self._metrics.close()
        self.engine.close(deadline)
        self._keeper.close()

    def _open_metrics(self) -> MetricsEndpoint | None:
        if self.config.metrics is None:
            return None
        from headrace.engine.observed import metrics_of
        from headrace.transport.metrics import MetricsEndpoint

        keeper = self._keeper
        render = metrics_of(self.engine, self.transport, keeper.pulse, keeper.tally, keeper.directory).render
        return MetricsEndpoint(self.config.metrics, render)

    def _check_serves(self) -> None:
        """A broken model takes no other down; but where nothing came up and nothing can change that, there is no server.

        Raises:
            InvalidRepository: with the first reason.
        """
        statuses = self.engine.statuses()
        if self.config.model_control == "none" and statuses and not any(status.state is State.READY for status in statuses):
            rest = f" (and {len(statuses) - 1} more; see headrace models)" if len(statuses) > 1 else ""
            raise InvalidRepository(f"no model came up; {statuses[0].model}: {statuses[0].reason}{rest}")


def _source(config: ServerConfig, model: Path | None) -> Repository | ModelFile:
    from headrace.models.repository import ModelFile, Repository

    if (model is None) == (config.repository is None):
        both = "either MODEL.onnx or --repository DIR, not both" if model else "--repository DIR, or one MODEL.onnx"
        raise InvalidRepository(f"give {both}")
    if model is not None:
        return ModelFile(model)
    assert config.repository is not None
    repository = Repository(config.repository)
    repository.names()  # raises where there is none
    return repository


def _objectives(config: ServerConfig, source: Repository | ModelFile) -> list[Objective]:
    directory = config.slo or source.objectives
    if directory is None:
        return []
    from headrace.budgets.reading import read_objectives

    return read_objectives(directory)


def _other_ways_in(config: ServerConfig) -> dict[str, Transport]:
    if config.http is None:
        return {}
    from headrace.transport.rest import RestTransport

    return {"http": RestTransport(config.http, max_input_bytes=config.http_max_input_size)}
