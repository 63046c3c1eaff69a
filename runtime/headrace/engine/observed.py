"""The engine as metrics see it. Nothing of the engine imports this, so that a server without metrics does not pay for it."""

from __future__ import annotations

from collections import Counter

from headrace import __version__
from headrace.engine.engine import Engine
from headrace.engine.several import backends_of
from headrace.telemetry.metrics import Metrics, Present, RunningVersion


def metrics_of(engine: Engine, transport: str = "none") -> Metrics:
    """The metrics of an engine. `transport` is the name of the way in."""

    def look() -> Present:
        versions = [
            RunningVersion(
                running.opened.spec.name,
                running.opened.spec.version,
                running.depth,
                running.instances,
                running.load_ns,
                backends_of(running.opened),
            )
            for running in engine.catalog.running()
        ]
        states = Counter(status.state for status in engine.catalog.statuses(include_unloaded=False))
        return Present(__version__, engine.ready, transport, states, versions)

    return Metrics(engine.ledger, engine.statistics, engine.histograms, look)
