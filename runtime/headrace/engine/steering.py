"""Once a second: how do the budgets burn? The controller decides, and the versions are steered by it. A thread of the engine."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from headrace.budgets.budgets import Account, Budgets
from headrace.budgets.burn import rates
from headrace.budgets.controller import Move, Seen, State, decide
from headrace.budgets.decisions import Decisions
from headrace.budgets.history import BAD, TOTAL
from headrace.clock import SECOND, Clock
from headrace.engine.lifecycle import Running
from headrace.ledger.ledger import Ledger
from headrace.ledger.records import Refusal
from headrace.ledger.views import Statistics

log = logging.getLogger(__name__)

_EVERY_NS = SECOND


class SlowLoop:
    """Steers the versions for which there are objectives.

    Args:
        running: everything that runs.
        budgets: what has become of the objectives.
        ledger: feeds them.
        statistics: fed by it, too.
        clock: the clock.
    """

    def __init__(
        self,
        running: Callable[[], Sequence[Running]],
        budgets: Budgets,
        ledger: Ledger,
        statistics: Statistics,
        clock: Clock,
    ) -> None:
        self._running, self._budgets, self._ledger = running, budgets, ledger
        self._statistics, self._clock = statistics, clock
        self.decisions = Decisions()
        # By model and version: one that takes another's place goes on where that was.
        self._states: dict[tuple[str, int], State] = {}
        self._refused: dict[tuple[int, Refusal], int] = {}
        self._stopping = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="headrace-steering", daemon=True)

    def start(self) -> None:
        """Begin, if there is anything to steer by. Once."""
        if self._budgets.accounts:
            self._thread.start()

    def close(self) -> None:
        """Steer no more. What was decided stays."""
        with self._stopping:
            self._is_closed = True
            self._stopping.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def step(self) -> None:
        """Look, decide and steer, once."""
        now = self._clock.now()
        versions = [running for running in self._running() if not running.is_leaving and self._covering(running)]
        seen = self._ledger.read(lambda: [(running, *self._look(running, now)) for running in versions])
        for running, objective, what in seen:
            of = running.opened.spec.name, running.opened.spec.version
            decision = decide(self._states.get(of, State()), what, now)
            self._states[of] = decision.state
            running.forecast.steer(decision.steering)
            if self.decisions.add(of, objective, decision, time.time()) and decision.move is not Move.NONE:
                log.info("%s", decision.why, extra={"model": of[0], "version": of[1], "levers": str(decision.levers)})

    def _covering(self, running: Running) -> list[Account]:
        spec = running.opened.spec
        return [each for each in self._budgets.accounts.values() if each.objective.covers(spec.name, spec.version)]

    def _look(self, running: Running, now: int) -> tuple[str, Seen]:
        """What the controller has to know, of the objective that burns most. Called under the ledger's lock: it only adds up."""
        number = running.route.queue.model_number
        refused = self._newly_refused(number, Refusal.CANNOT_MEET_DEADLINE)
        is_deserted = not self._newly_refused(number, Refusal.CLASS_SHED)
        accounts = self._covering(running)
        # Whoever is refused so that others come first burns because of that.
        shed = running.forecast.steering.shed
        first = [each for each in accounts if not each.objective.classes or not shed.keys() >= set(each.objective.classes)]
        seen = {each.objective.name: self._seen(running, each, refused, is_deserted, now) for each in first or accounts}
        return max(seen.items(), key=lambda each: (each[1].fast, each[1].requests))

    def _seen(self, running: Running, account: Account, refused: int, is_deserted: bool, now: int) -> Seen:
        objective, burn = account.objective, rates(account.history, now)
        last = account.history.counts(now, _EVERY_NS)
        classes = running.opened.spec.batching.priority_levels
        return Seen(
            burn.fast,
            burn.slow,
            burn.left,
            float(last[TOTAL]),
            float(last[BAD]),
            min(float(refused), float(last[BAD])),
            objective.budget,
            objective.threshold_ns,
            has_variant=running.opened.variant is not None,
            classes=classes,
            sheddable=max(0, classes - max(objective.classes)) if objective.classes else 0,
            is_deserted=is_deserted,
        )

    def _newly_refused(self, number: int, why: Refusal) -> int:
        """Requests that were refused because of this since the last look."""
        totals = self._statistics.versions.get(number)
        now = totals.refusals[why] if totals is not None else 0
        before, self._refused[number, why] = self._refused.get((number, why), now), now
        return now - before

    def _run(self) -> None:
        until = self._clock.now() + _EVERY_NS
        while True:
            with self._stopping:
                while not self._is_closed and self._clock.now() < until:
                    self._clock.wait(self._stopping, until)
                if self._is_closed:
                    return
            try:
                self.step()
            except Exception:
                log.exception("steering failed; this is a bug in Headrace. What was decided before holds")
            until = max(until + _EVERY_NS, self._clock.now())
