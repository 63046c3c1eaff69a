"""Models in Python through an engine, and through the servers: configurations, batches, failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from headrace import Engine
from headrace.errors import BackendFailed, HeadraceError, InvalidRequest, LoadFailed
from headrace.model import State
from tests.python.conftest import write_node

pytestmark = pytest.mark.usefixtures("leaves_nothing")

ONE = np.float32([[1, 2]])
DECLARED = """
input { name: "x" data_type: TYPE_FP32 dims: -1 }
output { name: "y" data_type: TYPE_FP32 dims: -1 }
"""
BATCHES = f"max_batch_size: 8\n{DECLARED}\ndynamic_batching {{}}\n"


def parameters(**given: str) -> str:
    return "".join(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in given.items())


def add(repository: Path, text: str, config: str, name: str = "m", file: str = "model.py") -> None:
    (repository / name / "1").mkdir(parents=True, exist_ok=True)
    write_node(repository / name / "1", text, file)
    if config:
        (repository / name / "config.pbtxt").write_text(config)


Start = Callable[..., Engine]


@pytest.fixture
def start(tmp_path: Path, isolation: str) -> Iterator[Start]:
    """`start(text, config, **parameters)`: an engine with the model `m`, in both isolations."""
    with ExitStack() as stack:

        def serve(text: str, config: str = BATCHES, **given: str) -> Engine:
            add(tmp_path, text, config + parameters(isolation=isolation, **given))
            return stack.enter_context(Engine(tmp_path))

        yield serve


def reason(engine: Engine) -> str:
    (status,) = engine.statuses()
    assert status.state is State.UNAVAILABLE
    return status.reason


def test_rows(start: Start) -> None:
    engine = start("return {'y': x * 2}")
    for rows in (0, 1, 3, 8):
        x = np.random.default_rng(rows).standard_normal((rows, 5), np.float32)
        assert np.array_equal(engine.infer("m", {"x": x})["y"], x * 2)
    x = np.random.default_rng(0).standard_normal((8, 250_000), np.float32)
    assert np.array_equal(engine.infer("m", {"x": x})["y"], x * 2)


def test_answers_do_not_change_when_the_next_ones_come(start: Start) -> None:
    engine = start("return {'y': x * 2}")
    answers = [engine.infer("m", {"x": ONE * number})["y"] for number in range(30)]
    assert all(np.array_equal(answer, ONE * number * 2) for number, answer in enumerate(answers))


TEXT = """
class Model:
    inputs, outputs = {"text": "BYTES[1]"}, {"shout": "BYTES[1]"}
    def load(self, context): ...
    def run(self, tensors): return {"shout": [[text.decode().upper()] for text, in tensors["text"]]}
"""


def test_a_configuration_that_leaves_it_all_open(start: Start) -> None:
    engine = start(TEXT, "")
    (status,) = engine.statuses()
    assert status.state is State.READY, status.reason
    assert status.filled == (
        "max_batch_size: 4", "dynamic_batching", "input 'text': TYPE_STRING [1]", "output 'shout': TYPE_STRING [1]",
    )  # fmt: skip
    assert engine.infer("m", {"text": [["stra\N{LATIN SMALL LETTER SHARP S}e"], [""]]})["shout"].tolist() == [[b"STRASSE"], [b""]]


def test_no_configuration_at_all(tmp_path: Path) -> None:
    add(tmp_path, TEXT, "")
    with Engine(tmp_path) as engine:
        (status,) = engine.statuses()
        assert (status.spec.backend, status.spec.max_batch_size) == ("python", 4)  # type: ignore[union-attr]
        assert engine.infer("m", {"text": [["a"]]})["shout"].tolist() == [[b"A"]]
    assert [path.name for path in (tmp_path / "m/1").iterdir()] == ["model.py"]


def test_a_model_that_does_not_batch_sees_one_row(start: Start) -> None:
    engine = start("return {'y': np.float32([[len(x), x.ndim, x.sum()]])}", f'backend: "python"\n{DECLARED}')
    assert engine.infer("m", {"x": np.float32([3, 4])})["y"].tolist() == [1, 2, 7]


def test_the_class_and_its_parameters(start: Start, tmp_path: Path) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    write_node(tmp_path / "m/1", "return {'y': x + float(self.context.parameters['add'])}", "other.py")
    engine = start("", f'backend: "python"\n{BATCHES}', **{"class": "other.py:Model", "add": "0.5", "run_timeout_s": "20"})
    assert engine.infer("m", {"x": ONE})["y"].tolist() == [[1.5, 2.5]]


@pytest.mark.parametrize(
    ("config", "given", "told"),
    [
        (BATCHES, {"class": "model.py:Other"}, "'model.py:Other' is no class; the classes there are: Model"),
        (BATCHES, {"load_timeout_s": "soon"}, "parameter 'load_timeout_s' is 'soon'; it must be seconds, as in 30"),
        (BATCHES, {"run_timeout_s": "-1"}, "parameter 'run_timeout_s' is '-1'; it must be seconds, as in 30"),
        (BATCHES.replace('"x"', '"z"'), {}, "unexpected inference input 'z', allowed inputs are: x"),
        (BATCHES.replace("dims: -1", "dims: [ 2, 2 ]"), {}, "the model expects 2 dimensions (shape [-1,-1])"),
        (BATCHES.replace("TYPE_FP32", "TYPE_INT8"), {}, "configuration expects datatype TYPE_INT8 for input 'x', model provides"),
    ],
)
def test_configurations_that_do_not_fit(start: Start, config: str, given: dict[str, str], told: str) -> None:
    assert told in reason(start("return {'y': x}", f'backend: "python"\n{config}', **given))


def test_rows_that_are_for_graphs(start: Start) -> None:
    told = reason(
        start("class Model:\n rows = 'many'\n inputs = outputs = {'x': 'FP32[1]'}\n def load(self, c): ...\n run = load")
    )
    assert "model 'm': the rows of its class are 'many', which only a node of a graph can be" in told


def test_what_is_said_of_a_model_that_does_not_load(tmp_path: Path, isolation: str) -> None:
    add(tmp_path, "import not_to_be_had\nclass Model: ...", parameters(isolation=isolation))
    command = [sys.executable, "-m", "headrace", "models", "-r", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "m 1 is broken:" in done.stdout
    assert "model.py imports 'not_to_be_had', which is not installed; install the package it is in for " in done.stdout


def test_an_isolation_that_there_is_not(tmp_path: Path) -> None:
    add(tmp_path, "return {'y': x}", BATCHES + parameters(isolation="jail"))
    with Engine(tmp_path) as engine:
        assert "isolation is 'jail'; it can be 'thread' or 'process'" in reason(engine)


@pytest.mark.parametrize(
    ("body", "error", "told"),
    [
        ("raise ValueError('no')", BackendFailed, "^ValueError: no$"),
        ("raise InvalidRequest('too small')", InvalidRequest, "^too small$"),
        ("return {'y': x[:0]}", BackendFailed, r"output 'y': the model returned shape \[0,2\], expected is \[1,-1\]"),
        ("return {'y': x.astype(np.float64)}", BackendFailed, "the model returned datatype FP64, declared is FP32"),
        ("return {}", BackendFailed, "output 'y': the model did not return it"),
        ("return 3", BackendFailed, "node 'm' returned a int; it must return arrays by output name"),
        (
            "sys.exit(3)",
            BackendFailed,
            r"the node called sys\.exit\(3\), which fails a batch and|ended: exit status 3; it is being",
        ),
    ],
)
def test_what_goes_wrong_fails_its_request_and_no_other(start: Start, body: str, error: type[HeadraceError], told: str) -> None:
    engine = start(f"if (x < 0).any():\n    {body}\nreturn {{'y': x}}")
    with pytest.raises(error, match=told) as caught:
        engine.infer("m", {"x": -ONE})
    assert type(caught.value) is error
    with ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(engine.infer, "m", {"x": ONE + number}) for number in range(8)]
        assert [one.result()["y"].tolist() for one in asked] == [(ONE + number).tolist() for number in range(8)]


def test_a_process_that_is_killed_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "began")
    began = f"Path({str(tmp_path / 'began')!r}).write_text(str(os.getpid()))"
    body = f"if x[0, 0] < 0:\n    {began}\n    signal.pause()\nreturn {{'y': x}}"
    add(tmp_path / "models", body, BATCHES + parameters(isolation="process"))
    with Engine(tmp_path / "models") as engine, ThreadPoolExecutor(9) as pool:
        bad = pool.submit(engine.infer, "m", {"x": -ONE})
        pid = int((tmp_path / "began").read_text())
        others = [pool.submit(engine.infer, "m", {"x": ONE + number}) for number in range(8)]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BackendFailed, match=r"^the process of node 'm' ended: killed by signal 9; it is being restarted$"):
            bad.result()
        assert [other.result()["y"].tolist() for other in others] == [(ONE + number).tolist() for number in range(8)]


def test_a_reload_runs_the_new_text(start: Start, tmp_path: Path) -> None:
    engine = start("return {'y': x + 1}")
    assert engine.infer("m", {"x": ONE})["y"].tolist() == [[2, 3]]
    write_node(tmp_path / "m/1", "return {'y': x + 9}")
    engine.load("m")
    assert engine.infer("m", {"x": ONE})["y"].tolist() == [[10, 11]]
    write_node(tmp_path / "m/1", "return {'y': x + 9}\nthis is no Python")
    with pytest.raises(LoadFailed, match=r"model\.py is no Python: "):
        engine.load("m")
    assert engine.infer("m", {"x": ONE})["y"].tolist() == [[10, 11]]
