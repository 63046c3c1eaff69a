"""Whose requests were bad, and who made those of others bad: clients, among the latest requests of a server. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.budgets.attribution import CAUSES, Allowance, charges, lengths, straggling
from headrace.budgets.slo import Objective
from headrace.ledger.collect import BATCH_KIND, REQUEST_KIND, Chunk
from headrace.ledger.home import Name
from headrace.ledger.records import BATCH, REQUEST, Records, concatenated, of_version


@dataclass(frozen=True, slots=True)
class Offender:
    """A client: its pseudonym, how many requests it had that count, how many of them were bad, and how many of others it spoilt.

    `spoilt` is in requests, too: what theirs were charged for padding to the longest of its.
    """

    client: str
    requests: int
    bad: int
    spoilt: float


def offenders_of(objective: Objective, allowed: Allowance, chunks: Sequence[Chunk], names: Mapping[int, Name]) -> list[Offender]:
    """Clients of which a request was bad, or that spoilt one of others; the worst first.

    Args:
        objective: whose.
        allowed: what it allows.
        chunks: what the rings of a server hold.
        names: what numbers of versions mean.
    """
    counted: dict[int, list[float]] = {}
    for number, (model, version, _) in names.items():
        if not objective.covers(model, version):
            continue
        requests, batches = (
            concatenated(empty, *(of_version(c.records, number) for c in chunks if c.kind == kind))
            for kind, empty in ((REQUEST_KIND, np.zeros(0, REQUEST)), (BATCH_KIND, np.zeros(0, BATCH)))
        )
        _count(objective, allowed, requests, batches, counted)
    found = [
        Offender(f"{client:016x}" if client else "", int(of), int(bad), spoilt)
        for client, (of, bad, spoilt) in counted.items()
        if bad or spoilt
    ]
    return sorted(found, key=lambda each: (-each.bad - each.spoilt, each.client))


def _count(
    objective: Objective, allowed: Allowance, requests: Records, batches: Records, counted: dict[int, list[float]]
) -> None:
    """Add to what was counted of each client: requests, bad ones, what it spoilt."""
    counts, bad = objective.judge(requests)
    padding = np.zeros(len(requests))
    shares = charges(requests[bad], batches, allowed, straggling(requests, batches)[bad])
    padding[bad] = shares[:, CAUSES.index("padding")]
    longest = _longest(requests)
    for client in np.unique(requests["client"]).tolist():
        mine, theirs = requests["client"] == client, requests["client"][longest] == client
        found = int((mine & counts).sum()), int((mine & bad).sum()), float(padding[theirs & ~mine].sum())
        counted[client] = [a + b for a, b in zip(counted.get(client, (0, 0, 0.0)), found, strict=True)]


def _longest(requests: Records) -> NDArray[np.intp]:
    """Of each request, the place of the longest member of its batch, by bytes a row; of one that never ran, its own."""
    order = np.lexsort((lengths(requests), requests["batch"]))
    batches = requests["batch"][order]
    last = np.searchsorted(batches, requests["batch"], side="right") - 1
    return np.where(requests["batch"] > 0, order[last], np.arange(len(requests)))
