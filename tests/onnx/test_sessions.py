"""One request at a time: shapes of every kind, what a configuration says about a session, and models that misbehave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnxruntime import ExecutionMode, GraphOptimizationLevel

from headrace.backends.base import Device
from headrace.backends.onnx import OnnxBackend, session_options
from headrace.engine.engine import Engine
from headrace.errors import BackendFailed, InvalidRepository, InvalidRequest
from headrace.model import State
from headrace.models.pbtxt import parse_json
from headrace.protocol.headrace_pb2 import ModelConfig
from tests.build_models import add_model, drops_rows, fixed, mlp, nonzero, optional_bias, scalar, sums
from tests.onnx.conftest import Start
from tests.oracle import bits, plain

OPTIONAL = """
input { name: "x" data_type: TYPE_FP32 dims: 3 }
input { name: "bias" data_type: TYPE_FP32 dims: 3 optional: true }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
"""


def config(parameters: dict[str, str] | None = None, **fields: object) -> ModelConfig:
    made = ModelConfig(name="m", default_model_filename="model.onnx", **fields)  # type: ignore[arg-type]
    for key, value in (parameters or {}).items():
        made.parameters[key].string_value = value
    return made


@pytest.mark.parametrize("rows", [0, 1, 3, 8])
def test_rows(start: Start, rows: int) -> None:
    started = start(mlp(), "max_batch_size: 8")
    x = np.random.default_rng(rows).standard_normal((rows, 32), np.float32)
    assert bits(started.engine.infer("m", {"x": x})["y"]) == bits(plain(started.path, {"x": x})["y"])


def test_an_input_with_a_default(start: Start) -> None:
    engine = start(optional_bias(), OPTIONAL).engine
    x = np.float32([1, 1, 1])
    assert engine.infer("m", {"x": x})["y"].tolist() == [2, 3, 4]
    assert engine.infer("m", {"x": x, "bias": np.float32([10, 20, 30])})["y"].tolist() == [11, 21, 31]
    with pytest.raises(InvalidRequest, match=r"expected number of inputs between 1 and 2 but got 1 inputs .* \['x'\]"):
        engine.infer("m", {"bias": x})


def test_a_default_that_is_not_configured_is_used(start: Start) -> None:
    engine = start(optional_bias()).engine
    assert engine.infer("m", {"x": np.float32([0, 0, 0])})["y"].tolist() == [1, 2, 3]
    with pytest.raises(InvalidRequest, match="expected 1 inputs but got 2 inputs for model 'm'"):
        engine.infer("m", {"x": np.float32([0, 0, 0]), "bias": np.float32([0, 0, 0])})


def test_a_first_dimension_that_is_no_batch(start: Start) -> None:
    engine = start(fixed()).engine
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    assert engine.infer("m", {"x": x})["y"].tolist() == (-x).tolist()
    with pytest.raises(InvalidRequest, match=r"Expected \[4,2\], got \[3,2\]. $"):
        engine.infer("m", {"x": x[:3]})


def test_a_model_that_cannot_batch_and_should(tmp_path: Path) -> None:
    add_model(tmp_path, "m", fixed(), "max_batch_size: 2")
    with Engine(tmp_path) as engine:
        (status,) = engine.statuses()
        assert status.state is State.UNAVAILABLE
        assert status.reason == (
            "autofill failed for model 'm': model does not support batching while non-zero max_batch_size is specified"
        )


@pytest.mark.parametrize("values", [[0, 0, 0], [1, 0, 2], []], ids=str)
def test_a_shape_that_depends_on_the_data(start: Start, values: list[float]) -> None:
    engine = start(nonzero()).engine
    where = engine.infer("m", {"x": np.float32(values)})["where"]
    assert bits(where) == bits(np.int64([[i for i, value in enumerate(values) if value]]).reshape(1, -1))


def test_a_wrong_shape_fails_the_request_and_not_the_server(start: Start) -> None:
    engine = start(drops_rows(), "max_batch_size: 4").engine
    for values, kept in (([1, -1, 1], 2), ([-1], 0)):
        told = rf"model 'm' version 1, output 'y': the model returned shape \[{kept},1\], expected is \[{len(values)},1\]"
        with pytest.raises(BackendFailed, match=told):
            engine.infer("m", {"x": np.float32(values).reshape(-1, 1)})
        assert engine.infer("m", {"x": np.float32([[5]])})["y"].tolist() == [[5]]


def test_inputs_that_only_the_model_finds_unfit(start: Start) -> None:
    """Each width is fine by itself; together ONNX Runtime cannot add them, and says so."""
    engine = start(sums(), "max_batch_size: 4").engine
    with pytest.raises(BackendFailed, match="Non-zero status code returned while running"):
        engine.infer("m", {"a": np.zeros((1, 2), np.float32), "b": np.zeros((1, 3), np.float32)})
    one = np.float32([[1]])
    assert engine.infer("m", {"a": one, "b": one}, outputs=["difference"])["difference"].tolist() == [[0]]


def test_only_what_is_wanted_is_computed(start: Start) -> None:
    one = np.float32([[1, 2]])
    assert list(start(sums(), "max_batch_size: 4").engine.infer("m", {"a": one, "b": one}, outputs=["difference"])) == [
        "difference"
    ]


def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    add_model(tmp_path, "m", mlp())
    with pytest.raises(
        InvalidRepository, match="model 'm' is to run on CUDAExecutionProvider, which this ONNX Runtime could not load"
    ):
        OnnxBackend().load(tmp_path / "m/1", config(), Device("GPU", 0))


def test_what_the_file_has(tmp_path: Path) -> None:
    add_model(tmp_path, "m", optional_bias())
    session = OnnxBackend().load(tmp_path / "m/1", config(), Device())
    assert [(t.name, t.datatype, t.shape, t.initializer) for t in session.io.inputs] == [
        ("x", "FP32", (3,), False),
        ("bias", "FP32", (3,), True),
    ]
    assert [(t.name, t.datatype, t.shape) for t in session.io.outputs] == [("y", "FP32", (3,))]
    add_model(tmp_path, "s", scalar("BF16"))
    session = OnnxBackend().load(tmp_path / "s/1", config(), Device())
    assert [(t.name, t.datatype, t.shape) for t in session.io.outputs] == [("same", "BF16", ()), ("rank", "INT64", ())]


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = add_model(tmp_path, "m", mlp())
    content = path.read_bytes()
    for broken in (b"", b"not a model", content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(InvalidRepository, match=r"model\.onnx cannot be loaded: "):
            OnnxBackend().load(path.parent, config(), Device())
    path.unlink()
    with pytest.raises(InvalidRepository, match=r"no file .*model\.onnx: put the model there, or name it in default_"):
        OnnxBackend().load(path.parent, config(), Device())


def test_a_model_in_a_directory_of_its_own(tmp_path: Path) -> None:
    path = add_model(tmp_path, "m", mlp())
    folder = path.with_name("net.onnx")
    folder.mkdir()
    path.rename(folder / "model.onnx")
    named = config()
    named.default_model_filename = "net.onnx"
    assert OnnxBackend().load(path.parent, named, Device()).io.inputs[0].name == "x"


def test_threads_are_shared_out_and_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.backends.onnx.usable_cpus", lambda: 8)
    made = config()
    made.instance_group.add(count=3)
    made.instance_group.add()
    options = session_options(made)
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.inter_op.allow_spinning") == "0"
    assert session_options(config()).intra_op_num_threads == 8


def test_what_a_configuration_says_about_a_session() -> None:
    options = session_options(
        config(
            {
                "intra_op_thread_count": "3",
                "inter_op_thread_count": "2",
                "execution_mode": "1",
                "enable_mem_arena": "0",
                "enable_mem_pattern": "false",
                "session.intra_op.allow_spinning": "1",
            }
        )
    )
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ExecutionMode.ORT_PARALLEL
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.graph_optimization_level == GraphOptimizationLevel.ORT_ENABLE_ALL
    slow = parse_json('{"name": "m", "optimization": {"graph": {"level": 2}}}')
    assert session_options(slow).graph_optimization_level == GraphOptimizationLevel.ORT_DISABLE_ALL


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("intra_op_thread_count", "many", "parameter 'intra_op_thread_count' is 'many'; it must be a number of threads"),
        ("execution_mode", "2", "Expected values for  execution_mode are 0 or 1 but got 2 ."),
        ("enable_mem_arena", "maybe", "parameter 'enable_mem_arena' is 'maybe'; it must be 0, 1, true or false"),
    ],
)
def test_values_without_a_meaning(key: str, value: str, told: str) -> None:
    with pytest.raises(InvalidRepository) as caught:
        session_options(config({key: value}))
    assert told in caught.value.message


def test_the_arena_can_be_shrunk_after_each_run(start: Start) -> None:
    key = "memory.enable_memory_arena_shrinkage"
    engine = start(mlp(), f'parameters {{ key: "{key}" value {{ string_value: "cpu:0" }} }}').engine
    assert engine.infer("m", {"x": np.zeros((1, 32), np.float32)})["y"].shape == (1, 8)
