"""`headrace serve`: one server process, from the first bind to the last reply.

Order matters: the port is taken first (a busy one should not cost the loading of models), models load while the server is
live and not ready, and stopping goes the other way round: not ready, grace, no new requests, drained, closed.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.cli.keeper import Keeper
from headrace.cli.logs import configure_logs
from headrace.clock import SECOND
from headrace.config import ServerConfig
from headrace.errors import InvalidRepository
from headrace.model import State

if TYPE_CHECKING:
    from headrace.budgets.slo import Objective
    from headrace.engine.engine import Engine
    from headrace.models.repository import ModelFile, Repository
    from headrace.transport.base import Transport
    from headrace.transport.metrics import MetricsEndpoint

log = logging.getLogger("headrace.serve")

_SWITCH_SECONDS = 0.0005


class Stopped(BaseException):
    """SIGTERM or SIGINT came before the server was up. No error: nothing may catch it on its way."""


class StopSignals:
    """SIGTERM and SIGINT as something to wait for.

    Until `listen`, a signal raises `Stopped` wherever the main thread is; afterwards signals only end `wait`. Main thread only.
    """

    def __init__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._raise)

    def _raise(self, number: int, frame: object) -> None:
        raise Stopped

    def listen(self) -> None:
        """From now on, keep signals for `wait`."""
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: None)

    def wait(self, seconds: float | None) -> bool:
        """Wait for the next signal; whether one came within `seconds` (None: forever)."""
        readable, _, _ = select.select([self._reader], [], [], seconds)
        return bool(readable) and bool(self._reader.recv(1))

    def wait_or(self, call: Callable[[], object]) -> bool:
        """Run `call` in a thread and wait for it; False when a signal came first."""

        def run() -> None:
            try:
                call()
            finally:
                self._writer.send(b"\0")

        threading.Thread(target=run, name="drain", daemon=True).start()
        return self._reader.recv(1) == b"\0"


def run_server(config: ServerConfig, model: Path | None = None) -> None:
    """Serve `config.repository`, or the one file `model`, until a signal comes; then drain.

    Raises:
        HeadraceError: the server cannot come up: no repository, a busy port, a transport that is not there.
    """
    from headrace.transport.ways import chosen_transport, open_transport

    source = _source(config, model)
    name = chosen_transport(config.transport)
    configure_logs(config.log_level, config.log_format)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its failures are exceptions; its own lines on stderr are no JSON
    from headrace.budgets.slo import unserved
    from headrace.engine.engine import Engine, ModelControl
    from headrace.engine.profiles import Profiles
    from headrace.transport.control import Control

    # A thread that wants the interpreter waits for at most this long: a tenth of Python's default.
    sys.setswitchinterval(_SWITCH_SECONDS)
    grpc = open_transport(name, config.grpc, header_forward_pattern=config.grpc_header_forward_pattern)
    engine = Engine(
        source,
        queues=grpc.queues,
        control=ModelControl(config.model_control, tuple(config.load_model), config.poll_seconds),
        strict_readiness=config.strict_readiness,
        profiles=Profiles() if config.probe else None,
        objectives=_objectives(config, source),
    )
    ways_in: dict[str, Transport] = {"grpc": grpc, **_other_ways_in(config)}
    try:
        keeper = Keeper(config, engine)
    except BaseException:
        engine.close(0)
        raise
    metrics = _metrics(config, engine, name, keeper)
    deadline = 0
    try:
        signals = StopSignals()
        keeper.start()
        control = Control(engine, config.server_name, config.allow_client_shm)
        for way_in in ways_in.values():
            way_in.start(engine.routes, control)
        if metrics is not None:
            metrics.start()
        addresses = {protocol: way_in.address for protocol, way_in in ways_in.items()}
        addresses |= {"metrics": metrics.address} if metrics is not None else {}
        log.debug("listening, loading models", extra=addresses)
        engine.start()
        _check_serves(engine, config)
        for problem in unserved(engine.budgets.objectives, engine.known_models()):
            log.warning("%s", problem)
        # What is there now stays: the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()
        signals.listen()
        _announce(engine, addresses, name)
        signals.wait(None)
        deadline = _drain(config, engine, ways_in.values(), signals)
    except Stopped:
        log.info("stopped before it was ready")
    finally:
        for way_in in ways_in.values():
            way_in.close(deadline)
        if metrics is not None:
            metrics.close()
        engine.close(deadline)
        keeper.close()
    log.info("drained", extra=engine.statistics.summary())


def _other_ways_in(config: ServerConfig) -> dict[str, Transport]:
    if config.http is None:
        return {}
    from headrace.transport.rest import RestTransport

    return {"http": RestTransport(config.http, max_input_bytes=config.http_max_input_size)}


def _metrics(config: ServerConfig, engine: Engine, transport: str, keeper: Keeper) -> MetricsEndpoint | None:
    if config.metrics is None:
        return None
    from headrace.engine.observed import metrics_of
    from headrace.transport.metrics import MetricsEndpoint

    return MetricsEndpoint(config.metrics, metrics_of(engine, transport, keeper.pulse, keeper.tally, keeper.directory).render)


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


def _check_serves(engine: Engine, config: ServerConfig) -> None:
    """A broken model takes no other down; but where nothing came up and nothing can change that, there is no server.

    Raises:
        InvalidRepository: with the first reason.
    """
    statuses = engine.statuses()
    if config.model_control == "none" and statuses and not any(status.state is State.READY for status in statuses):
        rest = f" (and {len(statuses) - 1} more; see headrace models)" if len(statuses) > 1 else ""
        raise InvalidRepository(f"no model came up; {statuses[0].model}: {statuses[0].reason}{rest}")


def _announce(engine: Engine, addresses: Mapping[str, str], name: str) -> None:
    """The one line on stdout. It says that loading is over and requests are answered; models may be missing from it."""
    up: dict[str, bool] = {}
    for status in engine.statuses():
        up[status.model] = up.get(status.model, False) or status.state is State.READY
    told = " ".join(f"{protocol}={address}" for protocol, address in addresses.items())
    print(f"ready {told} models={sum(up.values())}/{len(up)} transport={name}", flush=True)


def _drain(config: ServerConfig, engine: Engine, ways_in: Iterable[Transport], signals: StopSignals) -> int:
    """Stop in order; another signal hastens each wait. Returns until when (ns) what is still open may take."""
    log.info("stopping: not ready, new requests are taken for %g s more", config.drain_grace)
    engine.unready()
    signals.wait(config.drain_grace)
    for way_in in ways_in:
        way_in.stop_accepting()
    deadline = time.monotonic_ns() + round(config.drain_seconds * SECOND)
    if signals.wait_or(lambda: engine.drain(deadline)):
        return deadline
    log.warning("hastened: requests that are not done are dropped")
    return time.monotonic_ns()
