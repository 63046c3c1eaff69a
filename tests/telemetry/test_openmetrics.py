"""Exemplars: only in OpenMetrics, in the right bucket, of traces that are there."""

from __future__ import annotations

import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from headrace.backends.fake import Script
from headrace.clock import MICROSECOND
from headrace.engine.observed import metrics_of
from headrace.ledger.report import Example, OutsideReport, Report, key_of, read_outside, read_report, write_report
from tests.telemetry.conftest import Observe
from tests.telemetry.reading import Observed
from tests.transport.serving import ECHO

EXAMPLE = Example(15 * MICROSECOND, 1.5e9, "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


def exemplars_of(address: str) -> list[Sample]:
    """The samples of a server that have one."""
    call = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": "application/openmetrics-text"})
    with urllib.request.urlopen(call, timeout=30) as answer:
        return in_page(answer.read())


def in_page(page: bytes) -> list[Sample]:
    families = text_string_to_metric_families(page.decode())
    return [sample for family in families for sample in family.samples if sample.exemplar is not None]


def test_what_the_side_process_tells_is_on_the_page(observe: Observe) -> None:
    seen: Observed = observe({"echo": (ECHO, Script())})
    write_report(seen.root, Report({key_of("request", "echo", 1): {"1": EXAMPLE}, key_of("execute", "gone", 1): {"1": EXAMPLE}}))
    metrics = metrics_of(seen.engine, directory=seen.root)
    (sample,) = in_page(metrics.render("application/openmetrics-text")[0])
    assert (sample.name, sample.labels) == (
        "headrace_request_duration_seconds_bucket",
        {"model": "echo", "version": "1", "le": "2e-05"},
    )
    assert sample.exemplar is not None
    assert sample.exemplar.labels == {"trace_id": EXAMPLE.trace, "span_id": EXAMPLE.span}
    assert (sample.exemplar.value, float(sample.exemplar.timestamp or 0)) == (1.5e-5, 1.5e9)
    assert b"trace_id" not in metrics.render()[0], "the text format has none"


def test_a_report_that_is_broken_or_not_there_says_nothing(observe: Observe) -> None:
    seen: Observed = observe({"echo": (ECHO, Script())})
    assert read_report(seen.root) == Report()
    assert read_outside(seen.root) == OutsideReport()
    for broken in ("", "{", "[]", '{"examples": 3}', '{"examples": {"a": {"1": [1]}}, "left": {}, "positions": {}}'):
        (seen.root / Report.file).write_text(broken)
        assert read_report(seen.root) == Report()
    for broken in ("", "[]", "{}", *(f'{{"durations": {{"network 1 echo": {each}}}}}' for each in ("3", "[[1], 1]", '["x", 1]'))):
        (seen.root / OutsideReport.file).write_text(broken)
        assert read_outside(seen.root).histograms() == {}
    assert in_page(metrics_of(seen.engine, directory=seen.root).render("application/openmetrics-text")[0]) == []
