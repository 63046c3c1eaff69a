"""A real Prometheus scrapes a real server; what it then knows is what the server's own statistics say."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest

from headrace.backends.fake import Gate, Script
from headrace.engine.observed import metrics_of
from headrace.protocol import headrace_pb2 as pb
from headrace.transport.metrics import MetricsEndpoint
from tests.ledger import servers as ledger
from tests.telemetry.conftest import Observe
from tests.telemetry.exporting import HTTP, QUICK, receiving, set_environment
from tests.telemetry.reading import Observed, Series
from tests.telemetry.test_metrics import SMALL, SOON, refuse_the_third
from tests.transport.serving import ECHO, PATIENCE, fill, serving, tensor
from tests.waiting import until

pytestmark = pytest.mark.part("prometheus")

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
global: {{scrape_interval: 200ms, evaluation_interval: 200ms}}
rule_files: [{rules}]
scrape_configs:
  - job_name: headrace
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    """Its HTTP API."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **query: str) -> Any:
        with urlopen(f"http://{self._address}/api/v1/{path}?{urlencode(query)}", timeout=PATIENCE) as response:
            answer = json.load(response)
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, expression: str) -> dict[Series, float]:
        """The samples of an instant query, without the labels that Prometheus adds."""
        found: dict[Series, float] = {}
        for sample in self.get("query", query=expression)["result"]:
            labels = {key: value for key, value in sample["metric"].items() if key not in ("instance", "job")}
            found[labels.pop("__name__", ""), frozenset(labels.items())] = float(sample["value"][1])
        return found

    def value(self, expression: str) -> float | None:
        """The one value, if there is one."""
        return next(iter(self.query(expression).values()), None)


@contextmanager
def prometheus(folder: Path, target: str, rules: Path = ROOT / "configs/prometheus/rules.yml") -> Iterator[Prometheus]:
    """A Prometheus of the machine that scrapes `target`."""
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(target=target, rules=rules))
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--enable-feature=exemplar-storage",
    ]
    process = subprocess.Popen(
        [*command, "--web.listen-address=127.0.0.1:0", "--log.format=logfmt"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    rest = threading.Thread(target=process.stderr.read, daemon=True)
    try:
        seen: list[str] = []
        address = ""
        for line in process.stderr:
            seen.append(line)
            if found := re.search(r'msg="Listening on" address=(\S+)', line):
                address = found[1]
            if "Server is ready" in line:
                break
        assert address, "".join(seen)
        # Whoever does not read lets the other side block.
        rest.start()
        yield Prometheus(address)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        if rest.ident is not None:
            rest.join(PATIENCE)
        process.stderr.close()


@contextmanager
def endpoint(render: Callable[[str], tuple[bytes, str]]) -> Iterator[str]:
    started = MetricsEndpoint("127.0.0.1:0", render)
    started.start()
    try:
        yield started.address
    finally:
        started.close()


def test_prometheus_knows_what_the_server_knows(tmp_path: Path) -> None:
    gate, script = Gate(), Script()
    backend = fill(tmp_path / "repository", {"echo": (SMALL, script), "other": (ECHO, Script())})
    with serving("portable", tmp_path / "repository", {"fake": backend}) as server:
        script.gate = gate
        metrics = metrics_of(server.engine, "portable")
        accepted: list[str] = []

        def render(accept: str) -> tuple[bytes, str]:
            accepted.append(accept)
            return metrics.render(accept)

        with endpoint(render) as address, prometheus(tmp_path, address) as watcher:
            seen = Observed(server.engine, tmp_path)
            assert refuse_the_third(seen, gate) == [2, 5, 60, 2]
            for rows in (1, 4, 8):
                server.client.infer("echo", [tensor("x", np.ones((rows, 3)))])
            server.wait_settled("echo")
            until(lambda: watcher.value('nv_inference_request_success{model="echo"}') == 6)
            until(lambda: watcher.value('nv_inference_exec_count{model="echo"}') == seen.value(
                "nv_inference_exec_count", model="echo", version="1"))  # fmt: skip

            # Everything there is, sample by sample.
            assert watcher.query('{__name__=~"(headrace|nv)_.+"}') == seen.page()

            # And that is what the server says to those who ask it otherwise.
            stats = server.client.get_inference_statistics("echo").model_stats[0]
            check_statistics(watcher, stats)
            assert watcher.query('headrace_refusals_total{model="echo"} > 0') == {
                ("headrace_refusals_total", frozenset({"model": "echo", "version": "1", "reason": "queue_full"}.items())): 1
            }
            assert watcher.value('headrace_batch_rows_sum{model="echo"}') == 6 + 13
            assert any("openmetrics" in accept for accept in accepted), "the format that Prometheus likes best"

            # The example rules evaluate.
            until(lambda: all(rule["health"] == "ok" for rule in rules_of(watcher)))
            assert not [rule["name"] for rule in rules_of(watcher) if rule.get("lastError")]
            until(lambda: watcher.value('model_version:headrace_batch_rows:mean_5m{model="echo"}') is not None)

            # What is unloaded disappears from there, too.
            server.engine.unload("other")
            until(lambda: watcher.value('headrace_queue_requests{model="other"}') is None)


def rules_of(watcher: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in watcher.get("rules")["groups"] for rule in group["rules"]]


def check_statistics(watcher: Prometheus, stats: pb.ModelStatistics) -> None:
    spans = stats.inference_stats
    expected = {
        "nv_inference_request_success": spans.success.count,
        'nv_inference_request_failure{reason="REJECTED"}': spans.fail.count,
        "nv_inference_count": stats.inference_count,
        "nv_inference_exec_count": stats.execution_count,
        "nv_inference_request_duration_us": spans.success.ns // 1000,
        "nv_inference_queue_duration_us": spans.queue.ns // 1000,
        "nv_inference_compute_input_duration_us": spans.compute_input.ns // 1000,
        "nv_inference_compute_infer_duration_us": spans.compute_infer.ns // 1000,
        "nv_inference_compute_output_duration_us": spans.compute_output.ns // 1000,
        "headrace_request_duration_seconds_count": spans.success.count,
    }
    assert {name: watcher.value(_of_echo(name)) for name in expected} == expected
    for stage, total in (("queue", spans.queue), ("execute", spans.compute_infer)):
        told = watcher.value(_of_echo(f'headrace_stage_duration_seconds_sum{{stage="{stage}"}}'))
        assert told == pytest.approx(total.ns / 1e9, abs=1e-9)


def _of_echo(name: str) -> str:
    return f'{name[:-1]},model="echo"}}' if name.endswith("}") else f'{name}{{model="echo"}}'


def promtool(*arguments: str, page: bytes = b"") -> str:
    done = subprocess.run(["promtool", *arguments], input=page, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return f"{done.returncode}: {done.stdout.decode()}"


def test_promtool_finds_nothing_to_mend(observe: Observe) -> None:
    seen = observe({"echo": (ECHO, Script())}, objectives=[SOON])
    seen.ask()
    page, _ = seen.metrics.render()
    # Triton's names break the rules (abbreviated units, counters without _total): they are what its dashboards look for.
    ours = b"".join(line for line in page.splitlines(keepends=True) if b"nv_" not in line)
    assert promtool("check", "metrics", page=ours) == "0: "
    complaints = promtool("check", "metrics", page=page).removeprefix("3: ").splitlines()
    assert complaints
    assert all(line.startswith("nv_") for line in complaints), "it is all well-formed, and all with help"
    assert promtool("check", "metrics", page=b"bad_metric_ms 1\n") != "0: ", "this check can fail"


def test_the_example_configuration_loads() -> None:
    told = promtool("check", "config", str(ROOT / "configs/prometheus/prometheus.yml"))
    assert told.startswith("0: ")
    assert "7 rules found" in told


def test_the_example_alerts_fire_and_keep_quiet() -> None:
    assert promtool("test", "rules", str(ROOT / "tests/telemetry/rules_test.yml")).startswith("0: ")


def test_the_example_rules_ask_for_metrics_that_exist(observe: Observe) -> None:
    known = {name for name, _ in observe({"echo": (ECHO, Script())}).page()} | {"up"}
    rules = (ROOT / "configs/prometheus/rules.yml").read_text()
    # A recorded name has a colon before it.
    asked = set(re.findall(r"(?<![:\w])headrace_\w+", rules))
    assert asked
    assert asked <= known


@pytest.fixture
def gated_model(tmp_path: Path) -> Iterator[None]:
    gate = ledger.Gate(tmp_path)
    gate.add_model(tmp_path / "models")
    yield
    gate.end()


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("gated_model")
def test_exemplars_lead_to_traces_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the requests are traced by who calls; the others are dull, and no exemplar leads to them."""
    with receiving(tmp_path) as receiver:
        sampling = {"OTEL_TRACES_SAMPLER": "parentbased_always_off"}
        set_environment(monkeypatch, receiver.environment(HTTP, **QUICK, **sampling))
        with ledger.served(tmp_path / "models") as server, prometheus(tmp_path, server.metrics) as watcher:
            for number in range(1, 21):
                flags = number % 2
                server.infer(headers={"traceparent": f"00-{number:032x}-{number:016x}-{flags:02x}"})

            def exemplars() -> list[Any]:
                found = watcher.get("query_exemplars", query='{__name__=~"headrace_.+_bucket"}', start="0", end="99999999999")
                return [(each["seriesLabels"], one) for each in found for one in each["exemplars"]]

            until(lambda: {labels["__name__"] for labels, _ in exemplars()} == {
                "headrace_request_duration_seconds_bucket", "headrace_stage_duration_seconds_bucket"})  # fmt: skip
            there = {(span.trace_id.hex(), span.span_id.hex()) for span in receiver.spans}
            kept = {trace for trace, _ in there}
            assert kept > {f"{number:032x}" for number in range(1, 21, 2)}
            assert not kept > {f"{number:032x}" for number in range(2, 21, 2)}, "but for what took longer than was foretold"
            for labels, one in exemplars():
                assert (one["labels"]["trace_id"], one["labels"]["span_id"]) in there
                assert float(one["value"]) <= float(labels["le"].replace("+Inf", "inf"))
            assert server.metric("headrace_spans_sent_total") == len(receiver.spans)
