from __future__ import annotations

import threading

import numpy as np

from headrace.ledger.ledger import Ledger
from headrace.ledger.records import BatchRecord, Outcome, Records, RequestRecord
from headrace.ledger.views import Statistics
from headrace.model import ModelSpec


def spec(name: str = "m", version: int = 1, digest: str = "d") -> ModelSpec:
    return ModelSpec(name, version, digest, "fake", "", 8, (), ())


def answered(number: int, model: int = 1, rows: int = 1, batch: int = 1) -> RequestRecord:
    return RequestRecord(
        number=number, batch=batch, received=100, decoded=110, queued=120, taken=150, gathered=160, executed=260, scattered=265,
        sent=300, model=model, rows=rows,
    )  # fmt: skip


def test_a_version_keeps_its_number_and_another_digest_gets_its_own() -> None:
    ledger = Ledger(Statistics().fold)
    first, other = ledger.register(spec()), ledger.register(spec(digest="e"))
    assert ledger.register(spec()) == first != other
    assert ledger.model(other) == ("m", 1, "e")


def test_a_full_ring_is_folded_not_overwritten() -> None:
    seen: list[Records] = []
    ledger = Ledger(lambda requests, batches: seen.append(requests), capacity=8)
    for number in range(1, 30):
        ledger.write(answered(number))
    ledger.drain()
    assert np.concatenate([part["number"] for part in seen]).tolist() == list(range(1, 30))


def test_writers_from_many_threads_lose_nothing() -> None:
    counted = [0]

    def fold(requests: Records, batches: Records) -> None:
        counted[0] += len(requests)

    ledger = Ledger(fold, capacity=16)
    threads = [threading.Thread(target=lambda: [ledger.write(answered(1)) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.drain()
    assert counted == [4000]


def test_statistics_are_tritons_identities() -> None:
    statistics = Statistics()
    ledger = Ledger(statistics.fold)
    for number, rows in ((1, 2), (2, 3), (3, 0)):
        ledger.write(answered(number, rows=rows))
    ledger.write(answered(4)._replace(outcome=Outcome.FAILED))
    ledger.write(RequestRecord(received=10, sent=15, model=1, outcome=Outcome.REFUSED))
    ledger.write(RequestRecord(received=10, sent=15, model=1, outcome=Outcome.INVALID))
    ledger.write_batch(BatchRecord(1, 150, 160, 260, 265, model=1, rows=5, requests=4, padding=9, failed=1))
    ledger.write_batch(BatchRecord(2, 150, 160, 260, 265, model=1, rows=5, requests=2, padding=7, failed=2))
    ledger.drain()
    totals = statistics.versions[1]
    assert (totals.inference_count, totals.execution_count) == (6, 1), "rows of what succeeded, batches in which something did"
    assert (totals.success.count, totals.success.ns) == (3, 600)
    assert (totals.fail.count, totals.fail.ns) == (2, 205), "invalid requests never reached the model"
    assert (totals.queue.ns, totals.gather.ns, totals.execute.ns, totals.scatter.ns) == (90, 30, 300, 15)
    assert totals.gather.count == totals.execute.count == totals.scatter.count == 3
    assert (totals.batches[5].execute.count, totals.batches[5].execute.ns) == (1, 100)
    assert totals.outcomes[Outcome.INVALID] == 1
    assert totals.padding == 9


def test_totals_of_versions_are_apart() -> None:
    statistics = Statistics()
    ledger = Ledger(statistics.fold)
    ledger.write(answered(1, model=1))
    ledger.write(answered(1, model=2, rows=4))
    ledger.drain()
    assert [statistics.versions[n].inference_count for n in (1, 2)] == [1, 4]
