"""What the ledger says of graphs: visits name the batch that made them, rows that were sent on the request they belong to."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.ledger.records import Records
from headrace.request import Origin, Request
from tests.graph.conftest import Home, Serve
from tests.graph.test_borders import COUNT, NODES, double
from tests.settling import wait_settled
from tests.waiting import until


def test_rows_know_their_request_and_visits_their_batch(home: Home, serve: Serve) -> None:
    home.model("work", double(replayable=True), rows=4, dims="1")
    home.graph("count", COUNT, NODES)
    server = serve()
    engine = server.engine
    requests: list[Records] = []
    batches: list[Records] = []
    fold = engine.ledger._fold

    def seen(some: Records, more: Records) -> None:
        requests.append(some.copy())
        batches.append(more.copy())
        fold(some, more)

    engine.ledger._fold = seen
    origin = Origin(7, 1, 2, 3, 0, 0, 1, 1)
    number = np.array([[6]], np.int64)
    ask: Any = engine._calls.ask
    answer = ask(Request("count", {"NUMBER": number}, received=engine.clock.now(), origin=origin)).result()
    assert answer.outputs["OUT"].shape == (1, 6, 1)
    for running in engine.catalog.running():
        wait_settled(engine, running.opened.spec.name)
    engine.ledger.drain()

    records = np.concatenate(requests)
    (parent,) = records[records["parent"] == 0]
    rows = records[records["parent"] > 0]
    assert len(rows) > 0
    assert set(rows["parent"].tolist()) == {int(parent["number"])}
    assert engine.ledger.model(int(rows["parent_model"][0]))[0] == "count"
    for field, value in (("client", 7), ("trace_high", 1), ("trace_low", 2), ("span", 3), ("trace_flags", 1), ("context", 1)):
        assert set(records[field].tolist()) == {value}, f"{field}, of the request and of its rows"

    def made_by_batches() -> bool:
        """A batch is in the ledger when its thread has done with it, which is after its requests have their answers."""
        engine.ledger.drain()
        made = np.concatenate(batches)
        visits, own = made[made["number"] == 0], made[made["number"] > 0]
        known = set(zip(own["model"].tolist(), own["number"].tolist(), strict=True))
        return len(visits) > 0 and set(zip(visits["parent_model"].tolist(), visits["parent"].tolist(), strict=True)) <= known

    until(made_by_batches)
