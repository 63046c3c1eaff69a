"""Prometheus rules for objectives: the burn rate over every window, the budget that is left, and the alerts of the SRE workbook.

The shares of bad requests are those of all servers together that a Prometheus scrapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from headrace.budgets.burn import Pair, duration_text, pairs_of
from headrace.budgets.slo import Objective

LEFT, BURN = "objective:headrace_slo_budget_left:ratio", "objective:headrace_slo_burn:rate"
"""What is recorded; the window, as in `…:rate5m`, stands behind that of the burn rates."""
ALERT = "HeadraceBudgetBurns"
_SEE = "`headrace budget` shows where the time goes."
_HEAD = "# Written by `headrace slo render`: change the objectives, and write it anew.\n"


def rules_text(objectives: Iterable[Objective]) -> str:
    """A file of rules, for `rule_files` of a Prometheus."""
    groups = [group for objective in objectives for group in _groups(objective)]
    # In lines as long as they are, and nothing of it by reference: it is for people, too.
    return _HEAD + yaml.dump({"groups": groups}, Dumper=_Plain, sort_keys=False, width=1 << 16, allow_unicode=True)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def burn_name(ns: int) -> str:
    """The name under which the burn rate over a window is recorded."""
    return f"{BURN}{duration_text(ns)}"


def _groups(objective: Objective) -> list[dict[str, Any]]:
    pairs = pairs_of(objective.window_ns)
    windows = sorted({ns for pair in pairs for ns in (pair.short_ns, pair.long_ns)})
    labels = {"objective": objective.name, "model": objective.model}
    records = [{"record": burn_name(ns), "expr": _burn(objective, ns), "labels": labels} for ns in windows]
    left = {"record": LEFT, "expr": f"1 - ({_burn(objective, objective.window_ns)})", "labels": labels}
    severities = dict.fromkeys(pair.severity for pair in pairs)
    alerts = [_alert(objective, severity, [pair for pair in pairs if pair.severity == severity]) for severity in severities]
    return [{"name": f"headrace-slo-{objective.name}", "rules": [*records, left, *alerts]}]


def _burn(objective: Objective, ns: int) -> str:
    """The share of bad requests over a window, as a burn rate."""
    window = duration_text(ns)
    bad, total = (
        f'sum(rate(headrace_slo_{kind}_total{{objective="{objective.name}"}}[{window}]))' for kind in ("bad_requests", "requests")
    )
    return f"{bad} / {total} / {objective.budget:.12g}"


def _alert(objective: Objective, severity: str, pairs: list[Pair]) -> dict[str, Any]:
    def above(ns: int, factor: float) -> str:
        return f'{burn_name(ns)}{{objective="{objective.name}"}} > {factor:g}'

    both = [f"({above(pair.long_ns, pair.factor)} and {above(pair.short_ns, pair.factor)})" for pair in pairs]
    window = duration_text(objective.window_ns)
    spent = " or ".join(f"{pair.spent:.0%} within {duration_text(pair.long_ns)}" for pair in pairs)
    return {
        "alert": ALERT,
        "expr": " or ".join(both),
        "labels": {
            "severity": severity,
            "objective": objective.name,
            **({"service": objective.service} if objective.service else {}),
        },
        "annotations": {
            "summary": f"{objective.name} spends its error budget {{{{ $value | humanize }}}} times as fast as it may",
            "description": f"Promised: {objective.sentence}. At this rate {spent} of the budget of {window} is spent. {_SEE}",
        },
    }
