"""A run of a job is a trace, if somebody wants one."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from headrace.errors import JobFailed
from headrace.telemetry import span_names
from tests.jobs.conftest import Run, write_vectors
from tests.jobs.files import write
from tests.jobs.test_formats import ROWS
from tests.telemetry.exporting import GRPC, HTTP, attributes, receiving, set_environment
from tests.waiting import until


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_a_run_is_a_trace_with_a_span_for_each_split(
    protocol: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving(tmp_path) as receiver:
        set_environment(monkeypatch, receiver.environment(protocol))
        run("mlp", write_vectors(tmp_path / "in", [1200, 30]))
        bad = write(
            tmp_path / "bad.parquet", ROWS.append_column("far", ROWS["i"]).set_column(0, "i", [[n * 100 for n in range(300)]])
        )
        with pytest.raises(JobFailed):
            run("lookup", bad, "failed", most_rejected=5)
        until(lambda: len(receiver.named("job lookup")) == 1)
        (job,), splits = receiver.named("job mlp"), receiver.named("split mlp")
        (failed,) = receiver.named("job lookup")
        spans = receiver.spans
    assert {(span.trace_id, span.parent_span_id) for span in splits} == {(job.trace_id, job.span_id)}
    assert all(
        job.start_time_unix_nano <= span.start_time_unix_nano < span.end_time_unix_nano <= job.end_time_unix_nano
        for span in splits
    )
    about = attributes(job)
    assert (about[span_names.REQUEST_ROWS], about[span_names.JOB_REJECTED], about[span_names.MODEL]) == (1230, 0, "mlp")
    told = [attributes(span) for span in sorted(splits, key=lambda span: span.start_time_unix_nano)]
    assert [each[span_names.JOB_SPLIT] for each in told] == list(range(len(splits)))
    assert sum(each[span_names.REQUEST_ROWS] for each in told) == 1230
    assert all((tmp_path / "out" / each[span_names.JOB_PART]).stat().st_size == each[span_names.BYTES_OUT] for each in told)
    assert attributes(failed)[span_names.ERROR_TYPE] == "INTERNAL"
    assert "rows were rejected" in failed.status.message
    assert failed.trace_id != job.trace_id
    assert {name for span in spans for name in attributes(span)} == span_names.JOB_ATTRIBUTES
    assert {span.name.partition(" ")[0] for span in spans} == {span_names.JOB, span_names.SPLIT}


def test_a_dead_endpoint_does_not_stop_a_job(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.telemetry.job_spans._FLUSH_SECONDS", 0.2)
    set_environment(monkeypatch, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"})
    assert list(run("mlp", write_vectors(tmp_path / "in", [30])).glob("*.parquet"))
    for thread in threading.enumerate():
        if thread.name == "headrace-flush":  # it tries again at random, which Hypothesis does not want in its tests
            thread.join(30)


def test_without_a_wish_nothing_of_it_is_imported() -> None:
    heavy = "('opentelemetry', 'openlineage')"
    script = f"import sys; from headrace.jobs import job; assert not [n for n in sys.modules if n.startswith({heavy})]"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_documentation_names_every_attribute() -> None:
    text = (Path(__file__).parent.parent.parent / "docs/jobs.md").read_text()
    assert set(re.findall(r"`((?:headrace|error)\.[a-z_.]+[a-z])`", text)) == span_names.JOB_ATTRIBUTES
