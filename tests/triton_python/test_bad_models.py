"""Models that do not come up: each says why, and the others are served."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace.engine.engine import Engine, ModelControl
from headrace.errors import LoadFailed
from tests.triton_python.conftest import HEAD, IO, parameter, write_model

pytestmark = pytest.mark.usefixtures("leaves_nothing")

ECHO = "return [response(x_of(request)) for request in requests]"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Path]]:
    """An engine that serves the model `good`, and its repository."""
    repository = tmp_path_factory.mktemp("repository")
    write_model(repository, "good", ECHO)
    with Engine(repository, control=ModelControl("explicit", ("good",))) as started:
        for _ in range(4):  # so that it has the memory it needs
            started.infer("good", {"x": np.int32([1])})
        yield started, repository


@pytest.fixture
def reason(serving: tuple[Engine, Path]) -> Iterator[Callable[..., str]]:
    """`reason(text, more, config)`: why the model `bad` of this text does not come up, beside one that does."""
    engine, repository = serving

    def told(text: str, more: str = "", config: str = IO) -> str:
        write_model(repository, "bad", text, more, config)
        with pytest.raises(LoadFailed) as caught:
            engine.load("bad")
        assert engine.infer("good", {"x": np.int32([1])})["y"].tolist() == [1]
        return caught.value.message

    yield told
    shutil.rmtree(repository / "bad")


BAD = {
    "it imports what is not there": (
        "import not_there_at_all\nclass TritonPythonModel: pass",
        "model 'bad' could not be loaded: ModuleNotFoundError: No module named 'not_there_at_all'",
    ),
    "it is no Python": (
        "class TritonPythonModel\n",
        "model 'bad' could not be loaded: SyntaxError: expected ':' (model.py, line",
    ),
    "it has no class": ("class Other: pass", "1/model.py has no class TritonPythonModel; a model for Triton's Python backend is"),
    "it raises while it is imported": (
        "raise RuntimeError('no')\nclass TritonPythonModel: pass",
        "model 'bad' could not be loaded: RuntimeError: no\n\nAt:\n",
    ),
    "it exits while it is imported": (
        "os._exit(3)\nclass TritonPythonModel: pass",
        "the process of model 'bad' ended: exit status 3, while it was loading; its last lines are in the log",
    ),
    "initialize raises": (
        "class TritonPythonModel:\n    def initialize(self, args): raise ValueError(args['model_name'])",
        "model 'bad' could not be initialized: ValueError: bad\n\nAt:\n",
    ),
    "initialize calls sys.exit": (
        "class TritonPythonModel:\n    def initialize(self, args): sys.exit(2)",
        "model 'bad' could not be initialized: SystemExit: 2",
    ),
    "initialize is killed": (
        "class TritonPythonModel:\n    def initialize(self, args): os.kill(os.getpid(), 9)",
        "the process of model 'bad' ended: killed by signal 9, while it was loading",
    ),
    "initialize asks a model": (
        "class TritonPythonModel:\n    def initialize(self, args):\n"
        "        pb_utils.InferenceRequest(model_name='good', inputs=[], requested_output_names=['y']).exec()",
        "TritonModelException: BLS is only supported during the 'execute' function.",
    ),
    "the constructor raises": (
        "class TritonPythonModel:\n    def __init__(self): raise KeyError('k')",
        "model 'bad' could not be initialized: KeyError: 'k'",
    ),
    "auto_complete_config raises": (
        "class TritonPythonModel:\n    @staticmethod\n    def auto_complete_config(config):\n"
        "        config.add_input({'name': 'x', 'data_type': 'TYPE_FP32', 'dims': [-1]})",
        "ValueError: unable to load model 'bad', configuration expects datatype TYPE_INT32 for input 'x', model provides TYPE_FP",
    ),
    "auto_complete_config returns nothing": (
        "class TritonPythonModel:\n    @staticmethod\n    def auto_complete_config(config): pass",
        "auto_complete_config function in model 'bad' must return a valid pb.ModelConfig object.",
    ),
    "auto_complete_config makes a datatype up": (
        "class TritonPythonModel:\n    @staticmethod\n    def auto_complete_config(config):\n"
        "        config.add_input({'name': 'z', 'data_type': 'TYPE_ODD', 'dims': [-1]})\n        return config",
        "model 'bad': auto_complete_config returned what is no configuration: ",
    ),
}


@pytest.mark.parametrize(("text", "told"), BAD.values(), ids=BAD)
def test_it_says_why(reason: Callable[..., str], text: str, told: str) -> None:
    assert told in reason(text)


def test_one_that_hangs(reason: Callable[..., str]) -> None:
    text = "class TritonPythonModel:\n    def initialize(self, args): signal.pause()"
    told = "the process of model 'bad' did not answer within 2 s and was ended, while it was loading"
    assert told in reason(text, parameter("load_timeout_s", 2))


def test_one_that_does_not_say_what_it_takes(reason: Callable[..., str]) -> None:
    told = "model 'bad' declares no input: write it into config.pbtxt, or add it in auto_complete_config"
    assert told in reason(ECHO, config='backend: "python"\n')


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("memory_limit_mib", "much", "parameter 'memory_limit_mib' is 'much'; it must be MiB, as in 2048"),
        ("run_timeout_s", "-1", "parameter 'run_timeout_s' is '-1'; it must be seconds, as in 30"),
        (
            "EXECUTION_ENV_PATH",
            "$$TRITON_MODEL_DIRECTORY/env.tar.gz",
            "env.tar.gz', an archive: unpack it, and write the directory",
        ),
        ("EXECUTION_ENV_PATH", "/nowhere", "EXECUTION_ENV_PATH is '/nowhere'; it must be the directory of an environment"),
    ],
)
def test_a_parameter_that_cannot_be(reason: Callable[..., str], key: str, value: str, told: str) -> None:
    assert told in reason(ECHO, parameter(key, value))


def test_finalize_may_raise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace.model")
    finalize = "    def finalize(self): raise ValueError('at the end')"
    text = f"class TritonPythonModel:\n    def execute(self, requests): {ECHO}\n{finalize}"
    write_model(tmp_path, "m", text)
    with Engine(tmp_path) as engine:
        assert engine.infer("m", {"x": np.int32([4])})["y"].tolist() == [4]
    assert "ValueError: at the end" in [record.getMessage() for record in caplog.records]


def test_a_reload_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    write_model(tmp_path, "m", ECHO)
    with Engine(tmp_path) as engine:
        (tmp_path / "m" / "1" / "model.py").write_text(HEAD + "\nclass TritonPythonModel:\n    def initialize(self, args): 1 / 0")
        with pytest.raises(LoadFailed, match="could not be initialized: ZeroDivisionError: division by zero"):
            engine.load("m")
        assert engine.infer("m", {"x": np.int32([4])})["y"].tolist() == [4]


def test_nothing_of_it_runs_in_the_server(tmp_path: Path) -> None:
    text = f"assert os.getpid() != {os.getpid()}\nclass TritonPythonModel:\n    def execute(self, requests): {ECHO}"
    write_model(tmp_path, "m", text)
    with Engine(tmp_path) as engine:
        assert engine.infer("m", {"x": np.int32([4])})["y"].tolist() == [4]
    assert sorted(path.name for path in (tmp_path / "m" / "1").iterdir()) == ["model.py"]
