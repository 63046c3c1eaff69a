"""The rules that are rendered: read by promtool, and by a Prometheus that scrapes a server which becomes slow."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from headrace.backends.fake import Script
from headrace.budgets.burn import DAY
from headrace.budgets.dashboard import dashboard_text
from headrace.budgets.history import HOUR
from headrace.budgets.reading import read_objectives
from headrace.budgets.rules import rules_text
from headrace.clock import MILLISECOND
from headrace.engine.observed import metrics_of
from headrace.telemetry.names import METRICS
from tests.budgets.making import objective
from tests.telemetry.test_prometheus import Prometheus, endpoint, prometheus, promtool
from tests.transport.serving import ECHO, Server, fill, serving, tensor
from tests.waiting import until

pytestmark = pytest.mark.part("prometheus")

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs/slo"


def test_promtool_finds_nothing_to_mend_in_the_rules_of_the_examples(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(rules_text(read_objectives(CONFIGS)))
    told = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert told.startswith("0: "), told
    assert "30 rules found" in told


@pytest.mark.parametrize("file", ["rules_test.yml", "rules_days_test.yml"])
def test_the_alerts_fire_and_keep_quiet(tmp_path: Path, file: str) -> None:
    (tmp_path / "rules.yml").write_text(rules_text([objective(service="files")]))
    shutil.copy(HERE / file, tmp_path)
    told = promtool("test", "rules", str(tmp_path / file))
    assert told.startswith("0: "), told


def test_another_window_is_the_same_rules_with_all_windows_in_proportion() -> None:
    month, hours = (rules_text([objective(window_ns=window)]) for window in (30 * DAY, 2 * HOUR))
    names = {"5m": "833ms", "30m": "5s", "1h": "10s", "2h": "20s", "6h": "1m", "1d": "4m", "3d": "12m", "30d": "2h"}
    word = re.compile("|".join(rf"(?<=\[){old}(?=\])|(?<=rate){old}\b|(?<=within ){old}\b|(?<=of ){old}\b" for old in names))
    assert word.sub(lambda found: names[found[0]], month) == hours


def test_the_rules_and_the_dashboard_ask_for_metrics_that_exist() -> None:
    objectives = read_objectives(CONFIGS)
    rules, dashboard = rules_text(objectives), dashboard_text(objectives)
    recorded = set(re.findall(r"record: (\S+)", rules))
    for text in (rules, dashboard):
        asked = set(re.findall(r"(?<![:\w])headrace_\w+", text))
        assert asked
        assert asked <= set(METRICS)
        assert set(re.findall(r"objective:headrace_\w+:\w+", text)) <= recorded
    assert set(re.findall(r"objective:headrace_\w+:\w+", dashboard)) == recorded


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    """Its own check is in its server, which is not here: what it relies on is looked at by hand."""
    dashboard = json.loads(dashboard_text(read_objectives(CONFIGS)))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == 3 * 5
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    (source,) = dashboard["templating"]["list"]
    asked = {panel["datasource"]["uid"] for panel in panels if "targets" in panel}
    assert asked == {f"${{{source['name']}}}"}


@contextmanager
def asking(server: Server) -> Iterator[None]:
    """Some ask, each one request after the other."""
    stop = Event()

    def ask() -> None:
        while not stop.is_set():
            server.client.infer("echo", [tensor("x", np.ones((1, 3)))])

    askers = [Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        yield
    finally:
        stop.set()
        for asker in askers:
            asker.join()


@pytest.mark.timeout(120)
def test_the_alert_fires_while_a_server_is_slow_and_clears_afterwards(tmp_path: Path) -> None:
    """As long as 30 days take, all windows are shortened by the same factor: the objective's is two hours."""
    promised = objective(name="echo-soon", model="echo", threshold_ns=300 * MILLISECOND, window_ns=2 * HOUR)
    rules = tmp_path / "rules.yml"
    rules.write_text(rules_text([promised]))
    script = Script()
    backend = fill(tmp_path / "repository", {"echo": (ECHO, script)})
    with (
        serving("portable", tmp_path / "repository", {"fake": backend}, objectives=[promised]) as server,
        endpoint(metrics_of(server.engine).render) as address,
        prometheus(tmp_path, address, rules) as watcher,
        asking(server),
    ):
        healthy = 'objective:headrace_slo_burn:rate5s{objective="echo-soon"} == 0'
        until(lambda: watcher.value(healthy) is not None, 30)
        assert "page" not in firing(watcher)
        script.execute_ns = 500 * MILLISECOND
        until(lambda: "page" in firing(watcher), 30)
        script.execute_ns = 0
        until(lambda: "page" not in firing(watcher) and watcher.value(healthy) is not None, 30)
        # What a dashboard asks can be asked.
        for query in set(re.findall(r'"expr": "(.+)"', dashboard_text([promised]))):
            watcher.query(json.loads(f'"{query}"').replace("$__rate_interval", "10s"))


def firing(watcher: Prometheus) -> set[str]:
    """Severities of alerts that fire."""
    return {alert["labels"]["severity"] for alert in watcher.get("alerts")["alerts"] if alert["state"] == "firing"}
