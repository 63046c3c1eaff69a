"""What others tell of the time of requests, beside an objective: network, Ray Serve, a Triton. Pure.

The objective is about the server's own time, so none of this burns its budget. What clients wait for is judged by the same
threshold: a request that was too long for its client is divided as an overrun is, over the stages by what each took above its own
budget, and over what is outside. Of that nothing was promised, so all of it is above.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.budgets.attribution import Allowance, durations
from headrace.budgets.slo import Objective
from headrace.clock import MILLISECOND
from headrace.ledger.home import Name
from headrace.ledger.records import REQUEST, STAGES, Records

NETWORK, RAY = "network", "ray"
OUTSIDE = (NETWORK, RAY)
"""Around our own time: between client and server, and in Ray Serve."""
FAR, FAR_WAY = ("far_queue", "far_gather", "far_execute", "far_scatter"), "far_way"
"""Within our stage execute, where a Triton runs the model: its stages, and the rest, in which it had not got the batch."""
CLIENT = "client"
"""All that the client waited."""
PARTS = (*OUTSIDE, *FAR, FAR_WAY)
ABSENT = -1
JOINED: np.dtype[Any] = np.dtype([("record", REQUEST), *((name, "i8") for name in (CLIENT, *PARTS))], align=True)
"""A request, and what others told of it: ns, or `ABSENT`."""


def outside_of(objective: Objective, allowed: Allowance, joined: Records, names: Mapping[int, Name]) -> dict[str, Any]:
    """What others told of the requests that count for an objective, as JSON can say it: nothing of what they did not tell.

    Args:
        objective: whose.
        allowed: what it allows.
        joined: an array of `JOINED`.
        names: what numbers of versions mean.
    """
    covered = [number for number, (model, version, _) in names.items() if objective.covers(model, version)]
    joined = joined[np.isin(joined["record"]["model"], covered)]
    joined = joined[objective.judge(joined["record"])[0]]
    ours = joined["record"]["sent"] - joined["record"]["received"]
    whole = ours + sum(np.maximum(joined[name], 0) for name in OUTSIDE)
    told: dict[str, Any] = {}
    for name in PARTS:
        is_told = joined[name] != ABSENT
        if is_told.any():
            told[name] = _spread(joined[name][is_told])
            if name in OUTSIDE:
                told[name]["share"] = float(joined[name][is_told].sum() / max(1, whole[is_told].sum()))
    called = joined[joined[CLIENT] != ABSENT]
    if len(called):
        late = called[called[CLIENT] > allowed.threshold]
        charged = _charges(late, allowed).sum(axis=0)
        told["clients"] = {
            "requests": len(called),
            "late": len(late),
            "charged": dict(zip((*STAGES, *OUTSIDE), charged.tolist(), strict=True)),
        }
    return told


def _spread(ns: NDArray[np.int64]) -> dict[str, Any]:
    usual, long = np.quantile(ns, (0.5, 0.95)) / MILLISECOND
    return {"requests": len(ns), "usual_ms": float(usual), "long_ms": float(long)}


def _charges(late: Records, allowed: Allowance) -> NDArray[np.float64]:
    """Each of these divided over `STAGES` and `OUTSIDE`: a row a request that adds up to 1."""
    stages = np.maximum(durations(late["record"]) - allowed.stages, 0)
    outside = np.stack([np.maximum(late[name], 0) for name in OUTSIDE], axis=1)
    weights = np.concatenate([stages, outside], axis=1)
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1)
