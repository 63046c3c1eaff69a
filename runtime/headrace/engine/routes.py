"""Which queue a request goes to.

Owner: the engine, which publishes a model's versions in one step. Transports read without a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from headrace.errors import Draining, HeadraceError, ModelNotFound, ModelNotReady, QueueClosed
from headrace.ledger.ledger import Ledger
from headrace.ledger.records import RequestRecord
from headrace.model import ModelSpec
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.request import NOWHERE, Origin, Request
from headrace.scheduling.admission import level_of
from headrace.scheduling.base import Queue
from headrace.scheduling.entry import Entry, Sink, outcome_of, refusal_of


@dataclass(frozen=True, slots=True)
class Route:
    """A version that takes requests. `config` is the normalised configuration it runs with."""

    queue: Queue
    spec: ModelSpec
    config: ModelConfig


class Follower(Protocol):
    """Is told of every change of the routes: a transport that keeps a table of its own."""

    def publish(self, model: str, versions: Mapping[int, Route | None] | None) -> None:
        """See `Routes.publish`. Must not raise, and not ask back."""
        ...

    def close_routes(self) -> None:
        """See `Routes.close`."""
        ...


class Routes:
    """(model, version or default) → route."""

    def __init__(self, ledger: Ledger, now: Callable[[], int]) -> None:
        self._ledger, self._now = ledger, now
        self._models: Mapping[str, Mapping[int, Route | None]] = {}
        self._defaults: Mapping[str, Route | None] = {}
        self._publishing = threading.Lock()
        self._followers: list[Follower] = []
        self._is_open = True

    def publish(self, model: str, versions: Mapping[int, Route | None] | None) -> None:
        """Replace what is known of a model. None for a version: it exists and is not ready; None for all: forget the model."""
        with self._publishing:
            others = {name: known for name, known in self._models.items() if name != model}
            self._models = others if versions is None else {**others, model: versions}
            self._defaults = {name: _best(known) for name, known in self._models.items()}
            for follower in self._followers:
                follower.publish(model, versions)

    def follow(self, follower: Follower) -> None:
        """Tell a follower of every route there is, and of each change from now on."""
        with self._publishing:
            for model, versions in self._models.items():
                follower.publish(model, versions)
            self._followers.append(follower)

    def close(self) -> None:
        """Refuse every request from now on."""
        self._is_open = False
        with self._publishing:
            for follower in self._followers:
                follower.close_routes()

    def ready(self, model: str | None = None) -> list[Route]:
        """The routes of a model, or of all, by name and version."""
        models = self._models
        names = sorted(models) if model is None else [model]
        return [route for name in names for _, route in sorted(models.get(name, {}).items()) if route is not None]

    def resolve(self, model: str, version: int = 0) -> Route:
        """The route of a version; 0 means the highest that is ready.

        Raises:
            ModelNotFound: no such model or version, or none of its versions is ready.
            ModelNotReady: that version is not ready.
        """
        versions = self._models.get(model)
        if versions is None:
            raise ModelNotFound(model)
        if version:
            if version not in versions:
                raise ModelNotFound(model, version)
            route = versions[version]
            if route is None:
                raise ModelNotReady(model, version)
            return route
        route = self._defaults.get(model)
        if route is None:
            raise ModelNotFound(model, known=True)
        return route

    def find(self, model: str, version: int = 0) -> Route | None:
        """`resolve`, or None."""
        try:
            return self.resolve(model, version)
        except (ModelNotFound, ModelNotReady):
            return None

    def push(self, request: Request, sink: Sink) -> Entry:
        """Bind a request to a version and push it there. What is turned away is in the ledger, too.

        Raises:
            HeadraceError: no such version, invalid, or refused.
        """
        route: Route | None = None
        try:
            if not self._is_open:
                raise Draining()
            route = self.resolve(request.model, request.version)
            try:
                return route.queue.push(request, sink)
            except QueueClosed:
                # The version was replaced between the two lines above: once more, to its successor.
                return self.resolve(request.model, request.version).queue.push(request, sink)
        except HeadraceError as error:
            if route is None:
                self.turned_away(error, request.received, origin=request.origin)
            else:
                to = route.queue.model_number, level_of(request, route.spec.batching)
                self.turned_away(error, request.received, to, request.origin)
            raise

    def turned_away(self, error: HeadraceError, received: int, to: tuple[int, int] = (0, 0), origin: Origin = NOWHERE) -> None:
        """Write the record of a request that got no entry.

        Args:
            error: why.
            received: when it came, in ns.
            to: the ledger's number of the version that it was for, and its class; zeros if none was found.
            origin: where it comes from.
        """
        self._ledger.write(
            RequestRecord(
                received=received,
                sent=self._now(),
                model=to[0],
                level=to[1],
                outcome=outcome_of(error),
                code=error.code.value,
                refusal=refusal_of(error),
                **origin._asdict(),
            )
        )


def _best(versions: Mapping[int, Route | None]) -> Route | None:
    """The highest that is ready."""
    return versions[max(ready)] if (ready := [number for number, route in versions.items() if route is not None]) else None
