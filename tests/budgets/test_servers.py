"""A real server with objectives: where it says the budget went, what outlives it, and what is said of wrong objectives."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from headrace.clock import SECOND
from tests.budgets.making import OPENSLO
from tests.ledger.servers import CONFIG, Served, one, served
from tests.python.conftest import write_node
from tests.transport.serving import TRANSPORTS
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)  # every one of them starts processes, some of them many

THRESHOLD_MS, SLOW_MS = 400, 700
SLEEPS = """
import time
with open({runs!r}, "a") as runs:
    runs.write("|")
time.sleep(float(open({file!r}).read()) / 1000)
return {{"y": x}}
"""


class Model:
    """A model that takes as long as a test says, and its objective."""

    def __init__(self, directory: Path) -> None:
        self._file, self._runs = directory / "sleeps", directory / "runs"
        self.takes(1)
        self.repository = directory / "repository"
        (self.repository / "m" / "1").mkdir(parents=True)
        (self.repository / "slo").mkdir()
        write_node(self.repository / "m" / "1", SLEEPS.format(file=str(self._file), runs=str(self._runs)))
        (self.repository / "m" / "config.pbtxt").write_text(CONFIG.format(rows=1, waiting=0))
        self.promise(OPENSLO.replace("value: 20", f"value: {THRESHOLD_MS}"))

    def takes(self, milliseconds: float) -> None:
        beside = self._file.with_suffix(".new")
        beside.write_text(str(milliseconds))
        beside.rename(self._file)

    @property
    def runs(self) -> int:
        """How many it has begun."""
        return len(self._runs.read_text())

    def queues(self, most: int) -> None:
        file = self.repository / "m" / "config.pbtxt"
        file.write_text(file.read_text().replace("max_queue_size: 0", f"max_queue_size: {most}"))

    def promise(self, text: str) -> None:
        (self.repository / "slo" / "m.yaml").write_text(text)


@pytest.fixture
def model(tmp_path: Path, runtime_directory: Path) -> Model:
    return Model(tmp_path)


def headrace(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def budget(*arguments: str) -> dict[str, Any]:
    done = headrace("budget", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["objectives"][0]


def when(holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The budget, once it is so."""
    seen: list[dict[str, Any]] = []

    def look() -> bool:
        seen.append(budget())
        return holds(seen[-1])

    until(look, 30)
    return seen[-1]


def ask(server: Served, clients: int, each: int, **options: Any) -> None:
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(lambda _: server.infer(each, **options), range(clients)))


def charged(server: Served) -> dict[str, float]:
    stages = ("receive", "queue", "gather", "execute", "scatter", "send", "refused", "failed")
    return {s: server.metric(f'headrace_slo_charged_total{{model="m",objective="m-soon",stage="{s}"}}') for s in stages}


@pytest.mark.parametrize("clients", [1, 3])
def test_what_a_slow_stage_burns_is_charged_to_it(model: Model, clients: int) -> None:
    """Also where most of the time is spent waiting for others that are slow."""
    with served(model.repository) as server:
        ask(server, clients, 150 // clients)
        before = charged(server)
        model.takes(SLOW_MS)
        ask(server, clients, 6 // clients)
        until(lambda: server.metric('headrace_slo_bad_requests_total{model="m",objective="m-soon"}') >= 6, 30)
        burnt = {stage: share - before[stage] for stage, share in charged(server).items()}
        bad = server.metric('headrace_slo_bad_requests_total{model="m",objective="m-soon"}') - sum(before.values())
        assert sum(burnt.values()) == pytest.approx(bad)
        assert burnt["execute"] / bad >= 0.9, burnt
        ahead = server.metric('headrace_slo_caused_total{model="m",objective="m-soon",reason="ahead"}')
        assert (ahead > 0.2 * bad) == (clients > 1), "others waited for it"


def test_what_is_left_and_for_how_long_is_shown_with_who_spent_it(model: Model) -> None:
    with served(model.repository) as server:
        server.infer(150, headers={"x-headrace-client": "patient"})
        model.takes(SLOW_MS)
        server.infer(1, headers={"x-headrace-client": "unlucky"})
        model.takes(1)
        told = when(lambda told: told["bad"] == 1)
        assert (told["requests"], told["promise"]) == (151, f"99% of the requests for m within {THRESHOLD_MS} ms")
        assert told["left"] == pytest.approx(1 - 1 / 1.51)
        assert told["exhausted_in_s"] == pytest.approx(told["left"] * 30 * 86400 / told["burn"]["1h"])
        assert sum(told["spent"]["hour"]["charges"].values()) == pytest.approx(told["burn"]["1h"])
        (offender,) = told["offenders"]
        assert (offender["requests"], offender["bad"], offender["spoilt"]) == (1, 1, 0)

        shown = headrace("budget").stdout
        assert "33.8% left, exhausted in 15d" in shown
        assert "1 of 151 requests were bad" in shown
        assert f"{offender['client']}  1 of 1 were bad" in shown
        execute = next(line for line in shown.splitlines() if line.strip().startswith("execute"))
        assert "█" in execute, "a bar for the stage that spent it"
        assert server.metric('headrace_slo_budget_left_ratio{model="m",objective="m-soon"}') == pytest.approx(told["left"])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_a_slow_model_makes_others_be_refused_is_charged_to_it(model: Model, transport: str) -> None:
    model.queues(1)
    with served(model.repository, transport=transport) as server:
        server.infer(120)
        model.takes(3 * SLOW_MS)
        # One runs, one waits. The first of them is ahead of those that are refused later, when it is done.
        for _ in range(2):
            with ThreadPoolExecutor(6) as threads:
                before = model.runs
                first = threads.submit(server.infer)
                until(lambda before=before: model.runs > before, 30)
                others = [threads.submit(server.infer) for _ in range(5)]
            assert first.exception() is None
            assert sum(each.exception() is not None for each in others) == 4
        until(lambda: server.metric('headrace_slo_bad_requests_total{model="m",objective="m-soon"}') == 12, 30)
        told = charged(server)
        assert sum(told.values()) == pytest.approx(12)
        assert told["refused"] + told["execute"] > 11
        assert told["execute"] > 5, "that is those that ran, and some of those that came right after a slow one"


def test_a_server_that_hangs_is_told_of(model: Model) -> None:
    with served(model.repository) as server:
        report = server.neighbour.path / "budgets.json"
        server.process.send_signal(signal.SIGSTOP)
        told = json.loads(report.read_text())
        report.write_text(json.dumps(told | {"at_ns": told["at_ns"] - 60 * SECOND}))
        done = headrace("budget")
        assert done.returncode == 0
        assert re.search(r"the server said this 6\d s ago, and nothing since", done.stderr)


def test_watching_goes_on_until_the_server_ends(model: Model) -> None:
    with served(model.repository) as server:
        command = [sys.executable, "-m", "headrace", "budget", "--watch", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            assert json.loads(watching.stdout.readline())["objectives"][0]["requests"] == 0
            server.infer(3)
            # A line a second, until one tells of what came meanwhile.
            until(lambda: json.loads(watching.stdout.readline())["objectives"][0]["requests"] == 3, 30)
            server.stop()
            watching.stdout.read()
            assert watching.wait(30) == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_budget_outlives_the_server(model: Model, tmp_path: Path, transport: str) -> None:
    ledger = tmp_path / "ledger"
    with served(model.repository, "--ledger", ledger, transport=transport) as server:
        server.infer(9)
        server.infer(1, client_timeout=30, headers={"x-headrace-client": "who"})
        with pytest.raises(Exception, match="expected"):
            server.client.infer("m", [one(name="wrong")])
        model.takes(SLOW_MS)
        server.infer(1)
        server.stop()
    model.takes(1)
    with served(model.repository, "--ledger", ledger, transport=transport) as server:
        told = budget()
        assert (told["requests"], told["bad"]) == (11, 1), "what is invalid does not count"
        server.infer(1)
        assert when(lambda told: told["requests"] == 12)["bad"] == 1
        assert server.metric('headrace_slo_requests_total{model="m",objective="m-soon"}') == 1, "a counter is this server's"


def test_a_server_says_which_objectives_are_for_nothing(model: Model) -> None:
    model.promise(OPENSLO.replace("model: m,", "model: mm,"))
    with served(model.repository) as server:
        told = server.stop()
    assert "objective 'm-soon' is for model 'mm', which is not there; did you mean 'm'?" in told
    checked = headrace("slo", "check", "--repository", model.repository)
    assert checked.returncode == 1
    assert checked.stderr.startswith(f"{model.repository}/slo/m.yaml:16: objective 'm-soon' is for model 'mm'")


@pytest.mark.parametrize("arguments", [("serve", "--grpc=127.0.0.1:0", "--http=none", "--metrics=none"), ("slo", "render")])
def test_a_wrong_file_ends_a_command_with_its_line(model: Model, arguments: Sequence[str]) -> None:
    model.promise(OPENSLO.replace("value: 20", "value: -20"))
    done = headrace(*arguments, "--repository", model.repository)
    assert done.returncode == 2
    assert done.stderr == (
        f"headrace: {model.repository}/slo/m.yaml:16: spec.objectives.0.value is -20: input should be greater than 0\n"
    )


def test_check_lists_what_is_right_and_every_line_that_is_wrong(model: Model, tmp_path: Path) -> None:
    right = headrace("slo", "check", "--repository", model.repository)
    assert (right.returncode, right.stderr) == (0, "")
    assert right.stdout.endswith(f"m.yaml:16: m-soon: 99% of the requests for m within {THRESHOLD_MS} ms, over 30d\n")
    model.promise(OPENSLO.replace("value: 20", "value: .nan").replace("30d", "1s"))
    wrong = headrace("slo", "check", "--slo", model.repository / "slo")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (1, 2)
    nothing = headrace("slo", "check", "--repository", tmp_path)
    assert (nothing.returncode, "there are no objectives in" in nothing.stderr) == (1, True)


def test_render_writes_rules_and_a_dashboard(model: Model, tmp_path: Path) -> None:
    files = tmp_path / "rules.yml", tmp_path / "dashboard.json"
    done = headrace("slo", "render", "--repository", model.repository, "--rules", files[0], "--dashboard", files[1])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert headrace("slo", "render", "--slo", model.repository / "slo").stdout == files[0].read_text()
    assert "HeadraceBudgetBurns" in files[0].read_text()
    assert "m-soon" in files[1].read_text()


def test_a_server_without_objectives_says_how_to_give_it_some(model: Model) -> None:
    (model.repository / "slo" / "m.yaml").unlink()
    (model.repository / "slo").rmdir()
    with served(model.repository) as server:
        done = headrace("budget")
        assert done.returncode == 2
        assert "has no objectives: start it with --slo DIR, or put them into slo/ below its repository" in done.stderr
        server.stop()
