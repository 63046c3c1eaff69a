"""The engine as metrics see it. Nothing of the engine imports this, so that a server without metrics does not pay for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from headrace import __version__
from headrace.backends.base import Counting
from headrace.budgets.controller import Move
from headrace.engine.engine import Engine
from headrace.engine.lifecycle import Running
from headrace.engine.several import backends_of
from headrace.engine.variants import name_in_ledger, variant_of
from headrace.ledger.report import OutsideReport, Report, read_outside, read_report
from headrace.ledger.tally import Tally
from headrace.scheduling.steering import Steering
from headrace.telemetry.metrics import Metrics, Present, RunningVersion
from headrace.telemetry.pulse import Pulse


def metrics_of(
    engine: Engine,
    transport: str = "none",
    pulse: Pulse | None = None,
    side: Tally | None = None,
    directory: Path | None = None,
) -> Metrics:
    """The metrics of an engine.

    Args:
        engine: the engine.
        transport: the name of the way in.
        pulse: what measures the waits for the interpreter.
        side: the counters of the side process, if there is to be one.
        directory: where it tells which traces it has kept, and what spans of others say.
    """

    def look() -> Present:
        running_now = engine.catalog.running()
        versions = [
            RunningVersion(
                running.opened.spec.name,
                running.opened.spec.version,
                running.depth,
                running.instances,
                running.load_ns,
                backends_of(running.opened),
                _variant_of(running),
                running.opened.spec.batching.priority_levels,
                _steering_of(engine, running),
            )
            for running in running_now
        ]
        sessions = [session for running in running_now for session, _ in running.opened.sessions]
        own = [series for session in sessions if isinstance(session, Counting) for series in session.own_series()]
        states = Counter(status.state for status in engine.catalog.statuses(include_unloaded=False))
        kept = read_report(directory) if directory is not None else Report()
        outside = (read_outside(directory) if directory is not None else OutsideReport()).histograms()
        waits = pulse and pulse.waits
        return Present(__version__, engine.ready, transport, states, versions, waits, side, kept.examples, outside, own)

    return Metrics(engine.ledger, engine.statistics, engine.histograms, engine.budgets, look)


def _variant_of(running: Running) -> tuple[str, str] | None:
    name = variant_of(running.opened.config)
    return (name, name_in_ledger(running.opened.spec.name, name)) if name else None


def _steering_of(engine: Engine, running: Running) -> tuple[Steering, Mapping[str, int]] | None:
    known = engine.steering.decisions.steering((running.opened.spec.name, running.opened.spec.version))
    return None if known is None else (known[0], {move.name.lower(): known[1].get(move, 0) for move in Move})
