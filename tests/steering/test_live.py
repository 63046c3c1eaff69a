"""A server with an objective, and a model that becomes slow: the server does something about it, says so, and goes back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.budgets.decisions import FILE
from tests.ledger.servers import Served, one, served
from tests.python.conftest import write_node
from tests.waiting import until

SLOW, QUICK = "0.06", "0"
MODEL = """
import time
time.sleep(float(open({pace!r}).read()))
return {{"y": {sign}x}}
"""
CONFIG = """
max_batch_size: 8
input {{ name: "x" data_type: TYPE_FP32 dims: -1 }}
output {{ name: "y" data_type: TYPE_FP32 dims: -1 }}
instance_group {{ count: 1 kind: KIND_CPU }}
dynamic_batching {{}}
parameters {{ key: "isolation" value {{ string_value: "thread" }} }}
{more}
"""
VARIANT = 'parameters { key: "variant" value { string_value: "cheap" } }'
OBJECTIVE = """
apiVersion: openslo/v1
kind: SLO
metadata: {name: soon}
spec:
  service: tests
  indicator:
    metadata: {name: duration}
    spec: {thresholdMetric: {metricSource: {type: headrace, spec: {model: m, unit: ms}}}}
  timeWindow: [{duration: 1h, isRolling: true}]
  budgetingMethod: Occurrences
  objectives: [{op: lte, value: 50, target: 0.6}]
"""


@contextmanager
def asking(server: Served) -> Iterator[set[float]]:
    """Two clients who ask one after the other for as long as the context lasts; the signs of what they were answered."""
    signs, is_over = set[float](), threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            signs.add(float(server.client.infer("m", [one()]).as_numpy("y")[0, 0]))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield signs
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_model_that_becomes_slow_is_helped_out_and_the_help_is_withdrawn(tmp_path: Path) -> None:
    pace, quick = tmp_path / "pace", tmp_path / "quick"
    pace.write_text(QUICK)
    quick.write_text(QUICK)
    repository = tmp_path / "models"
    for name, path, sign, more in (("m", pace, "", VARIANT), ("cheap", quick, "-", "")):
        (repository / name / "1").mkdir(parents=True)
        write_node(repository / name / "1", MODEL.format(pace=str(path), sign=sign))
        (repository / name / "config.pbtxt").write_text(CONFIG.format(more=more))
    (repository / "slo").mkdir()
    (repository / "slo" / "soon.yaml").write_text(OBJECTIVE)
    ratio = 'headrace_steering_variant_ratio{model="m",version="1"}'
    with served(repository) as server:

        def levers() -> list[float]:
            told = json.loads((server.neighbour.path / FILE).read_text())["decisions"]
            return [each["levers"]["variant"] for each in told]

        until((server.neighbour.path / FILE).exists, 60)
        with asking(server) as signs:
            until(lambda: signs == {1.0}, 60)
            set_pace(pace, SLOW)
            until(lambda: max(levers(), default=0) > 0.2, 60)
            until(lambda: -1.0 in signs, 60)
            assert server.metric(ratio) > 0
            until(lambda: server.metric('headrace_variant_batches_total{model="m",variant="cheap",version="1"}') > 0, 10)
            explained = explain(server)
            assert any("the budget burns: more goes to the variant" in line and "'soon' burns" in line for line in explained)
            set_pace(pace, QUICK)
            until(lambda: levers()[-1] == 0, 150)
            signs.clear()
            until(lambda: 1.0 in signs, 60)
            assert server.metric(ratio) == 0
        assert any("gives back: the budget is calm: less to the variant" in line for line in explain(server))
        config = server.client.get_model_config("m", as_json=True)["config"]
        assert config["parameters"]["variant"]["string_value"] == "cheap"
        assert config["parameters"]["objective_ms"]["string_value"] == "50"


def set_pace(file: Path, seconds: str) -> None:
    """Whole at any moment: the model reads it while it is written."""
    new = file.with_suffix(".new")
    new.write_text(seconds)
    new.replace(file)


def explain(server: Served) -> list[str]:
    command = [sys.executable, "-m", "headrace", "budget", "--explain", f"--of={server.process.pid}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
