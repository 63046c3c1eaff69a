"""Waiting for the ledger, which hears of a request with its answer, and of a batch after the answers of all that are in it."""

from __future__ import annotations

from headrace.clock import SECOND
from headrace.engine.engine import Engine
from headrace.scheduling.base import Queue
from headrace.scheduling.native import NativeQueue
from headrace.scheduling.queue import PortableQueue
from tests.waiting import until

PATIENCE = 30.0


def wait_settled(engine: Engine, model: str) -> None:
    """Wait until every request for `model` that was pushed is in the ledger, and all batches of it, behind borders, too."""
    assert engine.routes.resolve(model).queue.wait_settled(engine.clock.now() + int(PATIENCE * SECOND))
    ran = [each for each in engine.catalog.running() if each.opened.spec.name == model]
    queues = [queue for each in ran for queue in (each.route.queue, *(crew.queue for crew in each.behind))]
    until(lambda: not any(map(_running, queues)), PATIENCE)


def _running(queue: Queue) -> int:
    """Batches that are not in the ledger."""
    if isinstance(queue, NativeQueue):
        return queue.core.counts()[2]
    assert isinstance(queue, PortableQueue)
    return queue._running
