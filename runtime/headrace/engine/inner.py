"""The way from a model that asks others into the engine that runs it. See `headrace.backends.base.Inner`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from google.protobuf import json_format

from headrace.errors import HeadraceError, InvalidRequest
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.request import Request, Response
from headrace.scheduling.sinks import CallSink

if TYPE_CHECKING:
    from headrace.engine.engine import Engine


class InnerCalls:
    """Requests of models go into the queues of everybody."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sink: CallSink | None = None

    def call(self, request: Request, receive: Callable[[Response | HeadraceError], None]) -> Callable[[], None]:
        """See `Inner.call`."""
        if self._sink is None:  # the routes come after the backends
            self._sink = CallSink(self._engine.routes.push, self._engine.clock)
        return self._sink.call(request, receive)

    def is_ready(self, model: str, version: int) -> bool:
        """See `Inner.is_ready`."""
        return self._engine.routes.find(model, version) is not None

    def is_decoupled(self, model: str, version: int) -> bool:
        """See `Inner.is_decoupled`."""
        route = self._engine.routes.find(model, version)
        return route is not None and route.spec.decoupled

    def load(self, model: str, config: str | None, files: Mapping[str, bytes]) -> None:
        """See `Inner.load`."""
        self._engine.require_explicit()
        override = None
        if config is not None:
            try:
                override = json_format.Parse(config, ModelConfig())
            except json_format.ParseError as error:
                raise InvalidRequest(f"the configuration for model '{model}' is not one: {error}") from None
        self._engine.load(model, override, files or None)

    def unload(self, model: str, *, dependents: bool) -> None:
        """See `Inner.unload`."""
        self._engine.require_explicit()
        if dependents:
            raise InvalidRequest(f"model '{model}' is unloaded without what it runs: unload that by its own name")
        self._engine.unload(model)
