"""How much room a version has beside its requests, for those who take only that."""

from __future__ import annotations

from headrace.budgets.burn import burning
from headrace.budgets.controller import BURNS
from headrace.engine.engine import Engine
from headrace.engine.lifecycle import Running
from headrace.protocol.slack import Slack
from headrace.scheduling.admission import job_level

_HELD_UP = 40
"""Rows of jobs last so small a part of the objective: so long may a request have to wait for them, and so much longer run."""


def slack_of(engine: Engine, running: Running) -> Slack:
    """What to tell of a version that runs. Objectives for the class of jobs alone are no reason for jobs to stay away."""
    spec, now = running.opened.spec, engine.clock.now()
    level = job_level(spec.batching)
    if not level:
        return Slack()
    accounts = [
        account
        for account in engine.budgets.accounts.values()
        if account.objective.covers(spec.name, spec.version) and account.objective.classes != (level,)
    ]
    burns = engine.ledger.read(lambda: [burning(account.history, now) for account in accounts])
    if running.forecast.steering.shed.get(level):
        burns.append(BURNS)  # it is not over for them
    return Slack(level, running.forecast.rows_within(spec.batching.objective_ns // _HELD_UP), max(burns, default=None))
