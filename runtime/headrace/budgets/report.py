"""What a server says of its budgets to other processes, once a second: `budgets.json` in its directory (`ledger.home`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from headrace.budgets.attribution import CAUSES, CHARGES, EXTERNALITIES, Allowance
from headrace.budgets.budgets import Account, Budgets
from headrace.budgets.burn import SLOW, Pair, duration_text, pairs_of, rates
from headrace.budgets.history import BAD, TOTAL
from headrace.budgets.slo import Objective
from headrace.clock import MILLISECOND, SECOND
from headrace.errors import InvalidObjective
from headrace.ledger.records import STAGES

FILE = "budgets.json"


def report_of(budgets: Budgets, now: int) -> dict[str, Any]:
    """Everything, as JSON can say it; `now` is in ns of CLOCK_MONOTONIC. Called in `Ledger.read`."""
    return {"at_ns": now, "objectives": [_told(account, now) for account in budgets.accounts.values()]}


def read_report(server: Path) -> dict[str, Any]:
    """The latest of a server, given its directory.

    Raises:
        InvalidObjective: it has no objectives.
    """
    try:
        return json.loads((server / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        why = f"the server of {server} has no objectives: start it with --slo DIR, or put them into slo/ below its repository"
        raise InvalidObjective([why]) from None


def objective_of(told: Mapping[str, Any]) -> tuple[Objective, Allowance]:
    """The objective of which a report tells, and what it allows."""
    stages = list(told["stages_ms"].values())
    budgets = np.array([stage["budget"] for stage in stages]) * MILLISECOND
    usual = np.array([stage["budget"] if stage["usual"] is None else stage["usual"] for stage in stages]) * MILLISECOND
    objective = Objective(
        told["name"],
        told["model"],
        round(told["threshold_ms"] * MILLISECOND),
        told["target"],
        told["window_s"] * SECOND,
        told["version"] or 0,
        tuple(told["classes"] or ()),
    )
    return objective, Allowance(objective.threshold_ns, budgets, usual)


def _told(account: Account, now: int) -> dict[str, Any]:
    objective, burn = account.objective, rates(account.history, now)
    counts, allowed = account.history.counts(now, objective.window_ns), account.stages.allowance
    return {
        "name": objective.name,
        "promise": objective.sentence,
        "model": objective.model,
        "version": objective.version or None,
        "classes": list(objective.classes) or None,
        "threshold_ms": objective.threshold_ns / MILLISECOND,
        "target": objective.target,
        "window_s": objective.window_ns // SECOND,
        "requests": float(counts[TOTAL]),
        "bad": float(counts[BAD]),
        "left": burn.left,
        "exhausted_in_s": None if burn.exhausted_in_ns is None else burn.exhausted_in_ns / SECOND,
        "burn": {"fast": burn.fast, "slow": burn.slow, **{duration_text(ns): rate for ns, rate in burn.windows.items()}},
        "firing": [_pair(pair) for pair in burn.firing],
        "stages_ms": {
            name: {"budget": budget / MILLISECOND, "usual": usual / MILLISECOND if account.stages.is_known else None}
            for name, budget, usual in zip(STAGES, allowed.stages.tolist(), allowed.usual.tolist(), strict=True)
        },
        "spent": {"slow": _spent(account, now, SLOW), "hour": _spent(account, now, pairs_of(objective.window_ns)[0].long_ns)},
    }


def _pair(pair: Pair) -> dict[str, Any]:
    told = asdict(pair)
    return {**told, "long_s": told.pop("long_ns") / SECOND, "short_s": told.pop("short_ns") / SECOND}


def _spent(account: Account, now: int, window: int) -> dict[str, Any]:
    """The burn rate over a window, divided over what was charged, and how much of it others were the reason for."""
    counts = account.history.counts(now, window)
    may_be_bad = counts[TOTAL] * account.objective.budget
    by = dict(zip(CAUSES, (counts[BAD + 1 :] / may_be_bad).tolist() if may_be_bad else [0.0] * len(CAUSES), strict=True))
    return {
        "window_s": window / SECOND,
        "burn": float(counts[BAD] / may_be_bad) if may_be_bad else 0.0,
        "charges": {name: by[name] for name in CHARGES},
        "externalities": {name: by[name] for name in EXTERNALITIES},
    }
