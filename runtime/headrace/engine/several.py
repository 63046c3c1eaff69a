"""Models of several backends, as the rest of the engine sees them: which one serves, and what each of them ran."""

from __future__ import annotations

from dataclasses import replace

from headrace.backends.base import Batch
from headrace.backends.fallback import FallbackSession
from headrace.clock import Clock
from headrace.engine.lifecycle import Opened
from headrace.ledger.ledger import Ledger


def name_in_ledger(model: str, backend: str) -> str:
    """Under which name the ledger has what one backend of a model ran."""
    return f"{model}@{backend}"


def with_accounts(opened: Opened, ledger: Ledger, clock: Clock) -> Opened:
    """The version, whose backends are accounted each under a number of its own if it has several."""
    sessions = [session for session, _ in opened.sessions if isinstance(session, FallbackSession)]
    if not sessions:
        return opened
    from headrace.graph.steps import Visits  # for whoever has several

    spec, visits = opened.spec, Visits(ledger.write_batch, clock)
    numbers = {
        name: ledger.register(replace(spec, name=name_in_ledger(spec.name, name), backend=name)) for name in sessions[0].names
    }

    def ran(backend: str, batch: Batch, began: int, *, is_well: bool) -> None:
        visits.write(numbers[backend], batch, batch.rows, began, 0 if is_well else None)

    for session in sessions:
        session.account_with(ran)
    return replace(opened, nodes=tuple((name_in_ledger(spec.name, name), number) for name, number in numbers.items()))


def backends_of(opened: Opened) -> dict[str, bool]:
    """The backends of a version in order, and whether each would be given a batch now."""
    session = opened.sessions[0][0]
    if isinstance(session, FallbackSession):
        serving = session.serving
        return {name: name == serving for name in session.names}
    return {opened.spec.backend or opened.spec.platform: True}
