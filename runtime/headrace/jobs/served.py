"""The graph of a job that a server runs, beside its other requests: the job only sends rows, in the class of jobs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from headrace.backends.base import Batch, Outputs
from headrace.backends.triton.channel import FAILURES, Lost, TimedOut, Unreachable
from headrace.backends.triton.client import Client
from headrace.backends.triton.messages import Asking, Header, pb, tensors_of
from headrace.backends.triton.session import words_of
from headrace.backends.triton.settings import Settings
from headrace.clock import SECOND, Clock, MonotonicClock
from headrace.errors import BackendFailed, Code, InvalidJob, ModelError
from headrace.jobs.compiled import Runner, check_answers
from headrace.jobs.gate import Gate
from headrace.jobs.manifest import Identity
from headrace.jobs.sharing import MANY
from headrace.model import GraphIO, ModelSpec
from headrace.protocol.headrace_pb2 import ModelMetadataResponse
from headrace.protocol.slack import Slack
from headrace.tensor import TensorSpec

_UNKNOWN_ROWS = 32
"""That may wait at the server, where it does not know yet how long they run."""
PATIENCE_NS = 30 * SECOND
"""How long a batch may wait at the server. A class is worth an hour there, so that no row ever comes before a request."""
_NOT_NOW = (Code.RESOURCE_EXHAUSTED, Code.NOT_FOUND)
"""Codes that say nothing about rows. Whether the model is gone, the gate finds out."""


class ServedSession:
    """See `Session`. A batch that was not taken, or whose answer was lost, is sent again: it does nothing but be answered."""

    replayable = True
    io = GraphIO((), ())

    def __init__(self, client: Client, header: Header, gate: Gate, clock: Clock) -> None:
        self._client, self._header, self._gate, self._clock = client, header, gate, clock

    def run(self, batch: Batch) -> Outputs:
        """Send the batch when there is room for it, and wait for the answer.

        Raises:
            BackendDown: there is no server any more.
            ModelError: the server's own error.
            BackendFailed: the answer is none.
        """
        asking = Asking(self._header, batch.tensors(), batch.wanted())
        while True:
            self._gate.enter(batch)
            try:
                began = self._clock.now()
                outputs = self._send(asking, began + PATIENCE_NS)
                self._gate.answered(self._clock.now() - began)
                return outputs
            except (Unreachable, TimedOut, Lost):
                self._gate.refused()
            except ModelError as error:
                if error.code not in _NOT_NOW:
                    raise
                self._gate.refused()
            finally:
                self._gate.leave()

    def close(self) -> None:
        """Nothing: whoever has opened the client closes it."""

    def _send(self, asking: Asking, until: int) -> Outputs:
        line = self._client.take()
        try:
            return tensors_of(self._client.infer(line, asking, until, ()), {})
        finally:
            self._client.give_back(line)


class Served:
    """A graph on a server. See `compiled.Compiled`."""

    has_borders = False

    def __init__(self, spec: ModelSpec, slack: Slack, server: str, session: ServedSession, gate: Gate) -> None:
        self.spec, self.gate, self._session = spec, gate, session
        # The server runs together what waits there.
        self.batch_rows = max(1, (slack.rows or _UNKNOWN_ROWS) // MANY)
        self.versions = {"server": server}

    def identity(self) -> Identity:
        """What its numbers depend on."""
        return Identity(name=self.spec.name, version=self.spec.version, digest=self.spec.digest, models={})

    def runner(self, number: int) -> Runner:
        """For one thread."""
        return Runner(self._session, [])


@contextmanager
def served(address: str, name: str) -> Iterator[Served]:
    """A graph that a Headrace serves, with a class for jobs.

    Args:
        address: of its gRPC, HOST:PORT or unix:PATH.
        name: of the graph, or model.

    Raises:
        InvalidJob: it does not, or the graph cannot be run in batches.
    """
    if not (address.startswith("unix:") or re.fullmatch(r"[^/\s]+:\d+", address)):
        raise InvalidJob(f"--share is '{address}'; it must be where the server listens for gRPC, HOST:PORT or unix:PATH")
    clock, settings = MonotonicClock(), Settings(address, name, shared_memory=False)
    with closing(Client(settings, clock)) as client:
        try:
            told, config = _metadata(client), client.config()
            server = client.ask("ServerMetadata", pb.ServerMetadataRequest())
        except FAILURES as error:
            raise InvalidJob(
                f"no server at {address} has '{name}' ready ({words_of(error)}): start it, or correct --share"
            ) from None
        spec, slack = _spec(told, config), Slack.of(told.properties)
        if not spec.digest:
            raise InvalidJob(f"the server at {address} is no Headrace: only that says what there is beside its other requests")
        check_answers(spec)
        if not slack.level:
            raise InvalidJob(
                f"'{name}' at {address} has no class for jobs, which is the lowest of several: give its configuration "
                "'dynamic_batching { priority_levels: 2 default_priority_level: 1 }'"
            )

        def look() -> Slack:
            told = _metadata(client)
            if told.properties["digest"] != spec.digest:
                raise BackendFailed(f"'{name}' at {address} is another than it was when the job began")
            return Slack.of(told.properties)

        with closing(Gate(name, look, clock)) as gate:
            header = Header(name, str(spec.version), parameters={"priority": slack.level})
            session = ServedSession(client, header, gate, clock)
            yield Served(spec, slack, f"{server.name} {server.version}", session, gate)


def _metadata(client: Client) -> ModelMetadataResponse:
    """With its properties, which Triton's own messages do not have."""
    return ModelMetadataResponse.FromString(client.metadata().SerializeToString())


def _spec(told: ModelMetadataResponse, config: Any) -> ModelSpec:
    """What the job sends and gets."""
    skipped = 1 if config.max_batch_size else 0
    optional = {tensor.name for tensor in config.input if tensor.optional}

    def tensors(declared: Any) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(t.name, t.datatype, tuple(t.shape[skipped:]), optional=t.name in optional) for t in declared)

    return ModelSpec(
        name=told.name,
        version=max(map(int, told.versions), default=0),
        digest=told.properties["digest"],
        backend=told.platform,
        platform=told.platform,
        max_batch_size=config.max_batch_size,
        inputs=tensors(told.inputs),
        outputs=tensors(told.outputs),
        decoupled=config.model_transaction_policy.decoupled,
        sequences=config.HasField("sequence_batching"),
    )
