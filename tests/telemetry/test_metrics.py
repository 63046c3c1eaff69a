"""What is on the page, against what happened."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from headrace.backends.base import Batch
from headrace.backends.fake import Gate, Script
from headrace.budgets.slo import Objective
from headrace.clock import MILLISECOND
from headrace.errors import BackendFailed, Code, Draining, HeadraceError, InvalidRequest, ModelNotFound, QueueClosed, QueueFull
from headrace.ledger.histograms import DURATION_EDGES
from headrace.ledger.records import Outcome, Refusal
from headrace.ledger.report import OutsideReport, key_of, write_report
from headrace.protocol import headrace_pb2 as pb
from headrace.request import Request
from headrace.scheduling.entry import Answer, Entry, refusal_of
from headrace.telemetry.names import METRICS
from headrace.transport.control import Control
from tests.build_models import add_model
from tests.settling import wait_settled
from tests.telemetry.conftest import Observe
from tests.telemetry.reading import Observed
from tests.transport.asking import BROKEN
from tests.transport.serving import ECHO, PATIENCE
from tests.waiting import until

VERSION = {"model": "echo", "version": "1"}
SMALL = ECHO.replace("dynamic_batching {}", "dynamic_batching { default_queue_policy { max_queue_size: 2 } }")
SUFFIXES = ("_bucket", "_count", "_sum", "_info")


def refuse_the_third(seen: Observed, gate: Gate) -> list[int]:
    """One request of 1 row runs, two of 2 and 3 rows wait, the next is refused. Returns nothing that waits any more."""
    waiting = [seen.ask_later(rows=1)]
    gate.wait_for(1)
    for rows in (2, 3):
        waiting.append(seen.ask_later(rows=rows))
        until(lambda: seen.engine.routes.resolve("echo").queue.depth().requests == len(waiting) - 1)
    with pytest.raises(QueueFull):
        seen.ask()
    depth = [int(seen.value(f"headrace_queue_{what}", **VERSION)) for what in ("requests", "rows", "bytes")]
    depth.append(int(seen.value("nv_inference_pending_request_count", **VERSION)))
    gate.open()
    for each in waiting:
        each.result(PATIENCE)
    return depth


@pytest.fixture
def gated(observe: Observe) -> tuple[Observed, Gate]:
    gate = Gate()
    script = Script()
    seen = observe({"echo": (SMALL, script)})
    script.gate = gate  # after the warm-up
    return seen, gate


SOON = Objective("echo-soon", "echo", 20 * MILLISECOND, 0.99)
STEERED = {
    "echo": (
        ECHO.replace("dynamic_batching {}", "dynamic_batching { priority_levels: 2 default_priority_level: 1 }")
        + 'parameters { key: "variant" value { string_value: "cheap" } }',
        Script(),
    ),
    "cheap": (ECHO, Script()),
}
"""One with all there is to say of it, once the slow loop has made a step."""
CLIENTS_TOLD = OutsideReport(durations={key_of("network", "echo", 1): ([3, *[0] * len(DURATION_EDGES)], 12_000)})


def test_every_name_is_registered_and_every_registered_name_is_emitted(observe: Observe, tmp_path: Path) -> None:
    seen = observe(STEERED, objectives=[SOON])
    write_report(tmp_path, CLIENTS_TOLD)
    seen.ask()
    seen.engine.steering.step()
    page, _ = seen.metrics.render()
    emitted: dict[str, set[str]] = {}
    for line in page.decode().splitlines():
        if line.startswith("#"):
            continue
        sample, labels = line.partition("{")[0].split()[0], re.findall(r'(\w+)="', line)
        name = next((sample.removesuffix(s) for s in SUFFIXES if sample.removesuffix(s) in METRICS), sample)
        emitted.setdefault(name, set()).update(labels)
    assert set(emitted) == set(METRICS)
    for name, labels in emitted.items():
        assert labels - {"le"} == set(METRICS[name].labels), name


def test_types_are_those_of_the_registry_and_tritons_counters_are_counters(observe: Observe, tmp_path: Path) -> None:
    seen = observe(STEERED, objectives=[SOON])
    write_report(tmp_path, CLIENTS_TOLD)
    seen.engine.steering.step()
    page, _ = seen.metrics.render()
    types = dict(line.split()[2:] for line in page.decode().splitlines() if line.startswith("# TYPE"))
    expected = {"info": "gauge", "unknown": "counter"}
    for name in METRICS.values():
        shown = f"{name.name}_info" if name.kind == "info" else name.name
        assert types.pop(shown) == expected.get(name.kind, name.kind), shown
    assert not types


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=0.0.4", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text,*/*;q=0.1", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ],
)  # fmt: skip
def test_the_format_follows_the_accept_header(observe: Observe, accept: str, content_type: str) -> None:
    seen = observe({"echo": (ECHO, Script())})
    page, told = seen.metrics.render(accept)
    assert told == content_type
    assert page.endswith(b"# EOF\n") == ("openmetrics" in content_type)


def test_both_formats_say_the_same(observe: Observe) -> None:
    seen = observe({"echo": (ECHO, Script())})
    seen.ask(rows=3)
    open_page = parse_openmetrics(seen.metrics.render("application/openmetrics-text")[0].decode())
    samples = {
        (sample.name, frozenset((k, v) for k, v in sample.labels.items() if v)): sample.value
        for family in open_page
        for sample in family.samples
    }
    assert samples == seen.page()


def test_stages_add_up_to_the_request(observe: Observe) -> None:
    seen = observe({"echo": (ECHO, Script(execute_ns=300_000))})
    for rows in (1, 2, 3):
        seen.ask(rows=rows)
    stages = seen.values("headrace_stage_duration_seconds_sum", "stage", **VERSION)
    assert list(stages) == ["receive", "queue", "gather", "execute", "scatter", "send"]
    assert sum(stages.values()) == pytest.approx(seen.value("headrace_request_duration_seconds_sum", **VERSION), abs=1e-9)
    assert set(seen.values("headrace_stage_duration_seconds_count", "stage", **VERSION).values()) == {3}
    assert stages["execute"] >= 3 * 0.0003
    below = seen.values("headrace_stage_duration_seconds_bucket", "le", **VERSION, stage="execute")
    assert "0.0002" not in below, "nothing ran that fast"
    assert below["+Inf"] == 3


def test_tritons_names_say_what_model_statistics_says(observe: Observe) -> None:
    seen = observe({"echo": (ECHO, Script())})
    for rows in (1, 5, 2):
        seen.ask(rows=rows)
    wait_settled(seen.engine, "echo")
    method = "/inference.GRPCInferenceService/ModelStatistics"
    answer = Control(seen.engine).handle(method, pb.ModelStatisticsRequest().SerializeToString())
    told = pb.ModelStatisticsResponse.FromString(answer).model_stats[0]
    stats = told.inference_stats
    expected = {
        "nv_inference_request_success": stats.success.count,
        "nv_inference_count": told.inference_count,
        "nv_inference_exec_count": told.execution_count,
        "nv_inference_request_duration_us": stats.success.ns // 1000,
        "nv_inference_queue_duration_us": stats.queue.ns // 1000,
        "nv_inference_compute_input_duration_us": stats.compute_input.ns // 1000,
        "nv_inference_compute_infer_duration_us": stats.compute_infer.ns // 1000,
        "nv_inference_compute_output_duration_us": stats.compute_output.ns // 1000,
    }
    assert {name: seen.value(name, **VERSION) for name in expected} == expected
    assert (stats.success.count, told.inference_count) == (3, 8)
    assert seen.value("headrace_batch_rows_sum", **VERSION) == 8
    assert seen.value("headrace_batch_rows_count", **VERSION) == told.execution_count


def test_what_was_padded(observe: Observe) -> None:
    """Rows of `ask` have three elements each, and wait for a longer one that is there first."""
    parameters = {"padding": "x=0", "padding_buckets": "2 8"}
    said = "".join(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items())
    script = Script()
    seen = observe({"echo": (ECHO + said, script)})
    script.gate = gate = Gate()
    asked = [seen.ask_later()]
    gate.wait_for(1)
    asked += [seen.ask_later(rows=rows) for rows in (1, 2)]
    asked.append(seen.ask_later(width=5))
    queue = seen.engine.routes.resolve("echo").queue
    until(lambda: queue.depth().requests == 3)
    gate.open()
    for each in asked:
        each.result(PATIENCE)
    wait_settled(seen.engine, "echo")
    assert seen.value("headrace_batch_padding_total", **VERSION) == 3 * (5 - 3)


def test_what_waits_and_what_is_refused(gated: tuple[Observed, Gate]) -> None:
    seen, gate = gated
    assert refuse_the_third(seen, gate) == [2, 5, 5 * 12, 2]
    assert seen.values("headrace_requests_total", "outcome", **VERSION) == {"answered": 3, "refused": 1}
    assert seen.values("headrace_refusals_total", "reason", **VERSION) == {"queue_full": 1}
    assert seen.values("nv_inference_request_failure", "reason", **VERSION) == {"REJECTED": 1}
    assert seen.value("headrace_queue_requests", **VERSION) == 0


def test_who_still_waits_when_a_queue_is_abandoned_is_refused_for_that_reason(gated: tuple[Observed, Gate]) -> None:
    seen, gate = gated
    queue = seen.engine.routes.resolve("echo").queue
    runs = seen.ask_later()
    gate.wait_for(1)
    waits = seen.ask_later()
    until(lambda: queue.depth().requests == 1)
    queue.abandon()
    with pytest.raises(QueueClosed):
        waits.result(PATIENCE)
    gate.open()
    runs.result(PATIENCE)
    assert seen.values("headrace_refusals_total", "reason", **VERSION) == {"queue_closed": 1}
    assert seen.values("headrace_requests_total", "outcome", **VERSION) == {"answered": 1, "refused": 1}


def test_failures_by_tritons_reasons(observe: Observe) -> None:
    def fail(batch: Batch) -> None:
        raise RuntimeError("broken")

    gate = Gate()
    failing, slow = Script(), Script()
    seen = observe({"failing": (ECHO, failing), "slow": (ECHO, slow)})
    failing.fail, slow.gate = fail, gate
    with pytest.raises(BackendFailed):
        seen.ask("failing")
    with pytest.raises(InvalidRequest):
        seen.engine.infer("failing", {"nonsense": np.zeros((1, 3), np.int32)})
    running = seen.ask_later("slow")
    gate.wait_for(1)
    with pytest.raises(HeadraceError, match="deadline"):
        seen.ask("slow", timeout=0.001)
    gate.open()
    running.result(PATIENCE)
    failing_one, slow_one = {"model": "failing", "version": "1"}, {"model": "slow", "version": "1"}
    assert seen.values("nv_inference_request_failure", "reason", **failing_one) == {"BACKEND": 1}, "invalid ones do not count"
    assert seen.values("headrace_requests_total", "outcome", **failing_one) == {"failed": 1, "invalid": 1}
    assert seen.values("nv_inference_request_failure", "reason", **slow_one) == {"REJECTED": 1}
    assert seen.values("headrace_requests_total", "outcome", **slow_one) == {"answered": 1, "expired": 1}


def test_rows_that_ran_for_nobody_are_wasted(observe: Observe) -> None:
    gate, script = Gate(), Script()
    seen = observe({"echo": (ECHO, script)})
    script.gate = gate
    now = seen.engine.clock.now()
    sink, entries = _Collects(), list[Entry]()
    for rows in (1, 3, 2):
        request = Request("echo", {"x": np.zeros((rows, 3), np.int32)}, received=now, decoded=now)
        entries.append(seen.engine.routes.push(request, sink))
    entries[0].wake()
    gate.wait_for(1)
    never_ran = seen.engine.routes.push(Request("echo", {"x": np.zeros((5, 3), np.int32)}, received=now, decoded=now), sink)
    entries[1].cancel()
    never_ran.cancel()
    gate.open()
    wait_settled(seen.engine, "echo")
    assert seen.values("headrace_requests_total", "outcome", **VERSION) == {"answered": 2, "cancelled": 2}
    assert seen.value("headrace_wasted_rows_total", **VERSION) == 3
    assert seen.value("headrace_batch_rows_sum", **VERSION) == 6


def test_names_that_clients_invent_are_no_labels(observe: Observe) -> None:
    seen = observe({"echo": (ECHO, Script())})
    before = set(seen.page())
    for number in range(20):
        request = Request(f"invented-{number}", {}, received=seen.engine.clock.now())
        with pytest.raises(ModelNotFound):
            seen.engine.routes.push(request, _Collects())
    assert set(seen.page()) == before
    assert seen.values("headrace_requests_total", "outcome") == {"invalid": 20}


def test_what_is_refused_by_a_server_that_stops_has_no_model(observe: Observe) -> None:
    seen = observe({"echo": (ECHO, Script())})
    seen.engine.close()
    with pytest.raises(Draining):
        seen.engine.routes.push(Request("echo", {}, received=seen.engine.clock.now()), _Collects())
    assert seen.values("headrace_refusals_total", "reason") == {"draining": 1}
    assert seen.value("headrace_ready") == 0


def test_an_unloaded_version_disappears_and_goes_on_where_it_was(observe: Observe) -> None:
    seen = observe({"echo": (ECHO, Script()), "other": (ECHO, Script())})
    seen.ask()
    seen.engine.unload("echo")
    until(lambda: not any(dict(labels).get("model") == "echo" for _, labels in seen.page()))
    assert seen.value("nv_inference_request_success", model="other", version="1") == 0
    assert seen.values("headrace_model_versions", "state") == {"ready": 1}, "what was unloaded on purpose is not unavailable"
    seen.engine.load("echo")
    seen.ask()
    assert seen.value("nv_inference_request_success", **VERSION) == 2


def test_a_reload_does_not_set_counters_back(observe: Observe) -> None:
    seen = observe({"echo": (ECHO, Script())})
    seen.ask()
    place = seen.engine.routes.resolve("echo").queue
    (seen.root / "echo/1/weights").write_text("others")
    seen.engine.load("echo")
    seen.ask()
    assert seen.engine.routes.resolve("echo").queue.model_number != place.model_number, "another digest"
    assert seen.value("nv_inference_request_success", **VERSION) == 2
    assert seen.value("headrace_request_duration_seconds_count", **VERSION) == 2


def test_states_instances_transport_build_and_load_time(observe: Observe) -> None:
    seen = observe({"echo": (ECHO + "instance_group { count: 3 kind: KIND_CPU }", Script(execute_ns=2_000_000))})
    add_model(seen.root, "broken", None, BROKEN)
    with pytest.raises(HeadraceError):
        seen.engine.load("broken")
    assert seen.values("headrace_model_versions", "state") == {"ready": 1, "unavailable": 1}
    assert not any(dict(labels).get("model") == "broken" for _, labels in seen.page())
    assert seen.value("headrace_model_instances", **VERSION) == 3
    assert seen.value("headrace_transport_info", transport="portable") == 1
    assert seen.value("nv_model_load_duration_secs", **VERSION) >= 0.002, "the warm-up is in it"
    assert seen.value("nv_model_load_duration_secs", **VERSION) == seen.value("headrace_model_load_seconds", **VERSION)
    assert seen.value("headrace_ready") == 0, "one model is not"


def test_the_first_response_of_several(observe: Observe) -> None:
    seen = observe({"echo": (ECHO + "model_transaction_policy { decoupled: true }", Script(answers=3))})
    sink = _Collects()
    now = seen.engine.clock.now()
    request = Request("echo", {"x": np.zeros((1, 3), np.int32)}, received=now, decoded=now)
    seen.engine.routes.push(request, sink).wake()
    wait_settled(seen.engine, "echo")
    assert len(sink.answers) == 3
    # The second answer was scattered after the first had been delivered.
    assert 0 < seen.value("nv_inference_first_response_histogram_ms_sum", **VERSION) <= (sink.delivered[0] - now) / 1e6
    assert seen.values("nv_inference_first_response_histogram_ms_bucket", "le", **VERSION) == {
        "100.0": 1, "500.0": 1, "2000.0": 1, "5000.0": 1, "+Inf": 1,
    }  # fmt: skip


def test_every_way_to_be_refused_has_its_reason() -> None:
    assert refusal_of(QueueFull("")) is Refusal.QUEUE_FULL
    assert refusal_of(Draining()) is Refusal.DRAINING
    assert refusal_of(ModelNotFound("m")) is Refusal.NONE
    assert refusal_of(_NewWayToRefuse("")) is Refusal.OTHER


class _NewWayToRefuse(QueueFull):
    pass


class _Collects:
    """A sink."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.delivered: list[int] = []

    def deliver(self, answers: Sequence[Answer]) -> None:
        self.delivered.append(time.monotonic_ns())
        for answer in answers:
            self.answers.append(answer)
            if answer.is_final:
                assert answer.entry.settle(Outcome.ANSWERED, Code.OK, answer.entry.stamps.scattered)


def test_how_a_version_is_steered(observe: Observe) -> None:
    seen = observe(STEERED, objectives=[SOON])
    seen.engine.steering.step()
    assert seen.value("headrace_steering_quantile", **VERSION) == 0.75
    for level in "12":
        assert seen.value("headrace_steering_shed_ratio", level=level, **VERSION) == 0
    assert seen.value("headrace_steering_variant_ratio", **VERSION) == 0
    assert seen.value("headrace_variant_batches_total", variant="cheap", **VERSION) == 0
    assert seen.values("headrace_steering_decisions_total", "move", **VERSION).keys() == {"none"}
