"""The distributions that the ledger adds up to."""

from __future__ import annotations

import time

import numpy as np

from headrace.ledger.histograms import DURATION_EDGES, ROWS_EDGES, SPANS, STAGES, Histogram, Histograms, VersionHistograms
from headrace.ledger.ledger import Ledger, in_turn
from headrace.ledger.records import BATCH, REQUEST, BatchRecord, Outcome, RequestRecord
from headrace.ledger.views import Statistics

MOMENTS = ("received", "queued", "taken", "gathered", "executed", "scattered", "sent")


def answered(model: int = 1, at: int = 1000, step: int = 100) -> RequestRecord:
    stamps = {name: at + step * place for place, name in enumerate(MOMENTS)}
    return RequestRecord(**stamps, first=stamps["executed"] + 1, model=model, rows=1)


def test_an_edge_ends_its_bucket() -> None:
    histogram = Histogram(np.array([1, 2, 4]))
    histogram.add(np.array([0, 1, 2, 3, 4, 5, 100]))
    assert histogram.counts.tolist() == [2, 1, 2, 2]
    assert histogram.total == 115


def test_sums_do_not_overflow() -> None:
    histogram = Histogram(DURATION_EDGES)
    for _ in range(4):
        histogram.add(np.array([1 << 62]))
    assert histogram.total == 1 << 64
    assert histogram.counts[-1] == 4


def test_edges_are_1_2_5_from_10_us_to_50_s_and_powers_of_two() -> None:
    assert (DURATION_EDGES / 1e9).tolist()[:4] == [1e-5, 2e-5, 5e-5, 1e-4]
    assert DURATION_EDGES[-1] == 50 * 10**9
    assert ROWS_EDGES.tolist()[:4] == [1, 2, 4, 8]


def test_stages_follow_each_other_without_a_gap() -> None:
    stages = list(STAGES.values())
    assert [begin for begin, _ in stages[1:]] == [end for _, end in stages[:-1]]
    assert (stages[0][0], stages[-1][1]) == SPANS["request"]


def test_versions_are_apart_and_only_answered_requests_count() -> None:
    histograms = Histograms()
    ledger = Ledger(in_turn(Statistics().fold, histograms.fold))
    ledger.write(answered(1))
    ledger.write(answered(2, step=1_000_000))
    ledger.write(answered(2, step=1_000_000))
    ledger.write(answered(1)._replace(outcome=Outcome.FAILED))
    ledger.write(RequestRecord(received=5, sent=9, model=3, outcome=Outcome.REFUSED))
    ledger.write_batch(BatchRecord(1, 1, 2, 3, 4, model=1, rows=5, requests=2, failed=1))
    ledger.write_batch(BatchRecord(2, 1, 2, 3, 4, model=1, rows=700, requests=2, failed=2))
    ledger.drain()
    one, two = histograms.versions[1], histograms.versions[2]
    assert set(histograms.versions) == {1, 2}
    assert (one.spans["queue"].counts[0], one.spans["queue"].total) == (1, 100)
    assert (two.spans["queue"].counts.sum(), two.spans["queue"].total) == (2, 2_000_000)
    assert (one.spans["request"].total, one.spans["first_response"].total) == (600, 401)
    assert (int(one.rows.counts.sum()), one.rows.total) == (1, 5), "a batch that failed as a whole has no rows to speak of"
    together = VersionHistograms.sum_of([one, two])
    assert together.spans["request"].counts.sum() == 3
    assert one.spans["request"].counts.sum() == 1, "the sum is a copy"


def test_reading_sees_all_that_was_written_and_no_record_meanwhile() -> None:
    histograms = Histograms()
    ledger = Ledger(histograms.fold)
    ledger.write(answered())
    assert ledger.read(lambda: int(histograms.versions[1].spans["request"].counts.sum())) == 1
    assert ledger.written == (1, 0)


def test_folding_costs_little_for_a_request() -> None:
    """Far below the 2 µs that all accounting of a request may take."""
    records = np.zeros(1 << 14, REQUEST)
    records["model"] = np.arange(len(records)) % 4
    for place, name in enumerate((*MOMENTS, "first"), 1):
        records[name] = place * 1000
    fold, batches, best = Histograms().fold, np.zeros(0, BATCH), float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        fold(records, batches)
        best = min(best, time.perf_counter() - begun)
    assert best / len(records) < 1e-6, f"{best / len(records) * 1e9:.0f} ns a record"
