"""Objectives: what files may say, what is said of wrong ones, and which requests miss them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace.budgets.reading import parse_objectives, read_objectives
from headrace.budgets.slo import unserved
from headrace.clock import MILLISECOND, SECOND
from headrace.errors import Code, InvalidObjective
from headrace.ledger.records import Outcome
from headrace.models.repository import Repository
from tests.budgets.making import OPENSLO, objective, request, requests

CONFIGS = Path(__file__).parent.parent.parent / "configs/slo"
DAY = 24 * 3600 * SECOND
WITH_BUDGET = "name: m-soon\n  annotations: {{headrace/budget.queue: {}}}"


def test_an_objective_is_what_its_file_says() -> None:
    (found,) = parse_objectives({"m.yaml": OPENSLO})
    assert (found.name, found.model, found.version, found.classes) == ("m-soon", "m", 0, ())
    assert (found.threshold_ns, found.target, found.window_ns) == (20 * MILLISECOND, 0.99, 30 * DAY)
    assert found.where == "m.yaml:16"


def test_the_examples_load() -> None:
    found = {each.name: each for each in read_objectives(CONFIGS)}
    assert {each.model for each in found.values()} == {"magika", "embed"}
    assert found["magika-interactive"].stages == {"queue": 5 * MILLISECOND}
    assert (found["embed-soon"].target, found["embed-soon"].threshold_ns) == (0.95, 50 * MILLISECOND)
    assert found["embed-at-all"].window_ns == 28 * DAY


def test_what_else_a_file_may_say() -> None:
    text = OPENSLO.replace("{model: m, unit: ms}", "{model: m, unit: s, version: 2, classes: [3, 1]}").replace("30d", "1w")
    (found,) = parse_objectives({"m.yaml": text.replace("target: 0.99", "targetPercent: 99.5") + "---\nkind: AlertPolicy\n"})
    assert (found.version, found.classes, found.threshold_ns) == (2, (1, 3), 20 * SECOND)
    assert (found.target, found.window_ns) == (pytest.approx(0.995), 7 * DAY)


@pytest.mark.parametrize(
    ("there", "instead", "told"),
    [
        ("value: 20", "value: -1", "m.yaml:16: spec.objectives.0.value is -1: input should be greater than 0"),
        ("value: 20", "value: 0", "m.yaml:16: spec.objectives.0.value is 0: input should be greater than 0"),
        ("value: 20", "value: .nan", "m.yaml:16: spec.objectives.0.value is nan: input should be a finite number"),
        ("value: 20", "value: .inf", "m.yaml:16: spec.objectives.0.value is inf: input should be a finite number"),
        ("value: 20, ", "", "m.yaml:16: key 'spec.objectives.0.value' is missing"),
        ("target: 0.99", "target: 1", "m.yaml:16: spec.objectives.0.target is 1: input should be less than 1"),
        ("target: 0.99", "target: .nan", "m.yaml:16: spec.objectives.0.target is nan"),
        ("target: 0.99", "target: 0.9, targetPercent: 90", "m.yaml:16: spec.objectives.0: expected either `target`"),
        ("op: lte", "op: gte", "m.yaml:16: spec.objectives.0.op is 'gte': input should be 'lte'"),
        ("30d", "30m", "m.yaml:14: the window is 30m: give one between 1h and 366d"),
        ("30d", "2000d", "m.yaml:14: the window is 2000d"),
        ("30d", "a month", "m.yaml:14: spec.timeWindow.0.duration is 'a month'"),
        ("isRolling: true}", "isRolling: true}, {duration: 1d, isRolling: true}", "m.yaml:14: spec.timeWindow: tuple"),
        ("isRolling: true", "isRolling: false", "m.yaml:14: spec.timeWindow.0.isRolling is False: input should be True"),
        ("Occurrences", "Timeslices", "m.yaml:15: spec.budgetingMethod is 'Timeslices': input should be 'Occurrences'"),
        ("budgetingMethod", "budgetMethod", "m.yaml:15: key 'spec.budgetMethod' is unknown; did you mean 'budgetingMethod'?"),
        ("openslo/v1", "openslo/v1alpha", "m.yaml:2: apiVersion is 'openslo/v1alpha': input should be 'openslo/v1'"),
        ("kind: SLO", "kind: Slo", "m.yaml:3: kind is 'Slo': expected SLO, SLI"),
        ("name: m-soon", "name: M soon", "m.yaml:5: metadata.name is 'M soon'"),
        ("unit: ms", "unit: us", "m.yaml:13: spec.indicator.spec.thresholdMetric.metricSource.spec.unit is 'us'"),
        ("unit: ms", "unit: ms, classes: [0]", "spec.classes.0 is 0: input should be greater than or equal to 1"),
        ("type: headrace", "type: prometheus", "m.yaml:12: spec.indicator.spec.thresholdMetric.metricSource.type is"),
        ("name: m-soon", "name: m-soon\n  name: other", "m.yaml:6: key 'name' is there twice"),
        ("name: m-soon", "name: m-soon\n  annotations: {headrace/wait: 1ms}", "m.yaml:6: annotation 'headrace/wait' is unknown"),
        ("name: m-soon", WITH_BUDGET.format("-1ms"), "m.yaml:6: annotation 'headrace/budget.queue' is '-1ms'"),
        ("name: m-soon", WITH_BUDGET.format("21ms"), "may take 21 ms together, more than the 20 ms"),
        ("kind: SLO", "kind: [SLO", "this is no YAML"),
        (OPENSLO, "- a\n", "m.yaml:1: kind is None"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_with_its_line(there: str, instead: str, told: str) -> None:
    assert there in OPENSLO
    with pytest.raises(InvalidObjective) as raised:
        parse_objectives({"m.yaml": OPENSLO.replace(there, instead)})
    assert any(told in problem for problem in raised.value.problems), raised.value.problems


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(OPENSLO.replace("value: 20", "value: -1").replace("30d", "x"))
    (tmp_path / "b.yaml").write_text(OPENSLO)
    (tmp_path / "c.yaml").write_text(OPENSLO + "---" + OPENSLO.replace("  indicator:\n", "  indicatorRef: gone\n  indicatr:\n"))
    with pytest.raises(InvalidObjective) as raised:
        read_objectives(tmp_path)
    lines = [problem.removeprefix(f"{tmp_path}/").partition(": ")[0] for problem in raised.value.problems]
    assert lines == ["a.yaml:14", "a.yaml:16", "c.yaml:24", "c.yaml:16"]
    assert "is there twice, also at" in raised.value.problems[-1]


def test_an_indicator_that_is_nowhere_is_named() -> None:
    text = OPENSLO.partition("  indicator:")[0] + "  indicatorRef: gone\n" + OPENSLO.partition("ms}\n")[2]
    with pytest.raises(InvalidObjective, match=r"m\.yaml:7: there is no SLI 'gone' in these files"):
        parse_objectives({"m.yaml": text})


def test_a_bomb_of_aliases_goes_off_in_no_time() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
    with pytest.raises(InvalidObjective, match="kind is None"):
        parse_objectives({"m.yaml": bomb})


@pytest.mark.parametrize("directory", ["absent", "empty"])
def test_a_directory_without_objectives_is_an_error(tmp_path: Path, directory: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidObjective, match=directory):
        read_objectives(tmp_path / directory)


def test_late_refused_expired_and_failed_are_bad_and_what_the_client_did_does_not_count() -> None:
    def failed(code: Code) -> dict[str, int]:
        return request(outcome=Outcome.FAILED) | {"code": code.value}

    told = {
        "good": request(execute=20),
        "late": request(execute=20.001),
        "refused": request(outcome=Outcome.REFUSED) | {"code": Code.UNAVAILABLE.value},
        "expired": request(outcome=Outcome.EXPIRED) | {"code": Code.DEADLINE_EXCEEDED.value},
        "failed": failed(Code.INTERNAL),
        "unavailable": failed(Code.UNAVAILABLE),
        "model's word that it is wrong": failed(Code.INVALID_ARGUMENT),
        "not found": failed(Code.NOT_FOUND),
        "invalid": request(outcome=Outcome.INVALID) | {"code": Code.INVALID_ARGUMENT.value},
        "cancelled": request(outcome=Outcome.CANCELLED, execute=99) | {"code": Code.CANCELLED.value},
    }
    counts, bad = objective().judge(requests(*told.values()))
    names = np.array(list(told))
    assert names[counts].tolist() == ["good", "late", "refused", "expired", "failed", "unavailable"]
    assert names[bad].tolist() == ["late", "refused", "expired", "failed", "unavailable"]


def test_only_its_classes_count() -> None:
    counts, bad = objective(classes=(1, 3)).judge(requests(*(request(execute=99) | {"level": level} for level in range(5))))
    assert counts.tolist() == bad.tolist() == [False, True, False, True, False]


def test_only_its_versions_count() -> None:
    assert [objective().covers("m", 7), objective().covers("n", 7)] == [True, False]
    assert [objective(version=2).covers("m", version) for version in (1, 2)] == [False, True]


def test_objectives_of_models_versions_and_classes_that_are_not_there() -> None:
    asked = [
        objective(where="x:1"),
        objective(model="mm", where="x:2"),
        objective(version=3, where="x:3"),
        objective(classes=(1, 3), where="x:4"),
        objective(version=2, classes=(3,), where="x:5"),
    ]
    told = unserved(asked, {"m": {1: 2, 2: 3}, "n": {}})
    assert told == [
        "x:2: objective 'm-soon' is for model 'mm', which is not there; did you mean 'm'?",
        "x:3: objective 'm-soon' is for version 3 of model 'm', which is not there; versions: 1, 2",
    ]
    assert unserved([objective(classes=(1, 3), where="x:4")], {"m": {1: 2}}) == [
        "x:4: objective 'm-soon' is for class 3 of model 'm', which has 2 priority levels"
    ]
    assert unserved([objective(version=3, classes=(9,))], {"m": {}}) == [], "where nobody knows, nothing is said"


def test_the_objectives_below_a_repository_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    repository = Repository(tmp_path)
    assert repository.objectives is None
    (tmp_path / "slo").mkdir()
    assert (repository.objectives, repository.names()) == (None, ["m", "slo"]), "an empty model is one, if a broken one"
    (tmp_path / "slo/m.yaml").write_text(OPENSLO)
    assert (repository.objectives, repository.names()) == (tmp_path / "slo", ["m"])
    (tmp_path / "slo/1").mkdir()
    assert (repository.objectives, repository.names()) == (None, ["m", "slo"]), "a model may be called so"
