"""A Grafana dashboard of objectives: what is left, how fast it burns, and where it goes.

It asks for what `budgets.rules` records, and for what servers say at `/metrics`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from headrace.budgets.burn import duration_text, pairs_of
from headrace.budgets.rules import LEFT, burn_name
from headrace.budgets.slo import Objective

_SCHEMA = 39
"""Of Grafana's dashboards: that of version 10.4. Later ones migrate it."""
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_HEIGHT = 8


def dashboard_text(objectives: Sequence[Objective]) -> str:
    """A dashboard as JSON, to be imported, or provisioned from a file."""
    panels = [panel for place, objective in enumerate(objectives) for panel in _panels(objective, place * (_HEIGHT + 1))]
    dashboard = {
        "title": "Headrace budgets",
        "uid": "headrace-budgets",
        "schemaVersion": _SCHEMA,
        "tags": ["headrace", "slo"],
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]},
        "panels": [panel | {"id": number} for number, panel in enumerate(panels, 1)],
    }
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def _panels(objective: Objective, top: int) -> list[dict[str, Any]]:
    of = f'{{objective="{objective.name}"}}'
    windows = sorted({ns for pair in pairs_of(objective.window_ns) for ns in (pair.short_ns, pair.long_ns)})
    by_stage = f"sum by (stage) (rate(headrace_slo_charged_total{of}[$__rate_interval]))"
    requests = f"scalar(sum(rate(headrace_slo_requests_total{of}[$__rate_interval])))"
    title = f"{objective.name}: {objective.sentence}"
    row = {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"h": 1, "w": 24, "x": 0, "y": top}}
    panels = [
        _panel("stat", "Budget left", 4, "percentunit", [(f"{LEFT}{of}", "")]),
        _panel("stat", "Lasts, at this rate", 4, "s", [(f"min(headrace_slo_budget_exhausted_seconds{of})", "")]),
        _panel("timeseries", "Burn rate", 8, "none", [(f"{burn_name(ns)}{of}", duration_text(ns)) for ns in windows]),
        _panel(
            "timeseries", "Burn rate by stage", 8, "none", [(f"{by_stage} / {requests} / {objective.budget:.12g}", "{{stage}}")]
        ),
    ]
    panels[-1]["fieldConfig"]["defaults"]["custom"] = {"stacking": {"mode": "normal"}, "fillOpacity": 40}
    left = 0
    for panel in panels:
        panel["gridPos"] |= {"x": left, "y": top + 1}
        left += panel["gridPos"]["w"]
    return [row, *panels]


def _panel(kind: str, title: str, width: int, unit: str, queries: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": kind,
        "title": title,
        "datasource": _SOURCE,
        "gridPos": {"h": _HEIGHT, "w": width},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(queries)
        ],
    }
