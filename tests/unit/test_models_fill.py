"""What the server and the model file fill in: Triton's golden cases and the rules behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import InvalidRepository
from headrace.model import GraphIO, GraphTensor
from headrace.models.autocomplete import complete
from headrace.models.check import check_config, check_graph, check_tensors
from headrace.models.fill import fill
from headrace.models.pbtxt import parse
from headrace.protocol.headrace_pb2 import ModelConfig, ModelInstanceGroup

BATCHED = GraphIO(
    inputs=(GraphTensor("INPUT0", "INT32", (-1, 16)), GraphTensor("INPUT1", "INT32", (-1, 16))),
    outputs=(GraphTensor("OUTPUT0", "INT8", (-1, 16)), GraphTensor("OUTPUT1", "INT8", (-1, 16))),
)
UNBATCHED = GraphIO(
    inputs=tuple(GraphTensor(t.name, t.datatype, (16,)) for t in BATCHED.inputs),
    outputs=tuple(GraphTensor(t.name, t.datatype, (16,)) for t in BATCHED.outputs),
)


def version_with(tmp_path: Path, *files: str) -> list[Path]:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return [path for path in tmp_path.iterdir() if path.is_dir()]


def loaded(tmp_path: Path, name: str, text: str, io: GraphIO, gpus: int = 0) -> ModelConfig:
    """All of a load that needs no backend."""
    config = parse(text, "config.pbtxt")
    fill(config, name, version_with(tmp_path, "1/model.onnx"), gpus)
    check_config(config, gpus)
    complete(config, io)
    check_tensors(config)
    check_graph(config, io)
    return config


EXPECTED_NO_CONFIG = """
name: "no_config" platform: "onnxruntime_onnx" backend: "onnxruntime" default_model_filename: "model.onnx"
version_policy { latest { num_versions: 1 } }
max_batch_size: 4
input [ { name: "INPUT0" data_type: TYPE_INT32 dims: 16 }, { name: "INPUT1" data_type: TYPE_INT32 dims: 16 } ]
output [ { name: "OUTPUT0" data_type: TYPE_INT8 dims: 16 }, { name: "OUTPUT1" data_type: TYPE_INT8 dims: 16 } ]
optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }
dynamic_batching { preferred_batch_size: 4 }
instance_group { name: "no_config" count: 1 kind: KIND_CPU }
"""


@pytest.mark.parametrize("text", ["", "# nothing\n", 'name: "no_config"', "max_batch_size: 0"])
def test_golden_no_config(tmp_path: Path, text: str) -> None:
    assert loaded(tmp_path, "no_config", text, BATCHED) == parse(EXPECTED_NO_CONFIG, "expected")


def test_golden_no_config_no_batch(tmp_path: Path) -> None:
    config = loaded(tmp_path, "no_config_no_batch", "instance_group [{ kind: KIND_CPU }]", UNBATCHED)
    assert config.max_batch_size == 0
    assert config.WhichOneof("scheduling_choice") is None
    (group,) = config.instance_group
    assert (group.name, group.count, group.kind) == ("no_config_no_batch_0", 1, ModelInstanceGroup.KIND_CPU)


def test_golden_cpu_instance_is_left_alone_but_for_the_count(tmp_path: Path) -> None:
    text = """max_batch_size: 8 input { name: "I" data_type: TYPE_FP16 dims: [ -1, -1 ] }
    output { name: "O" data_type: TYPE_FP16 dims: [ -1, -1 ] } instance_group { name: "cpu_instance" kind: KIND_CPU }"""
    shape = (-1, -1, -1)
    io = GraphIO((GraphTensor("I", "FP16", shape),), (GraphTensor("O", "FP16", shape),))
    config = loaded(tmp_path, "cpu_instance", text, io)
    assert config.WhichOneof("scheduling_choice") is None
    assert config.max_batch_size == 8
    assert (config.instance_group[0].name, config.instance_group[0].count) == ("cpu_instance", 1)


IN2 = 'input [ { name: "INPUT0" data_type: TYPE_INT32 dims: %s }, { name: "%s" data_type: TYPE_INT32 dims: 16 } ] '
OUT2 = 'output [ { name: "OUTPUT0" data_type: TYPE_INT8 dims: 16 }, { name: "%s" data_type: TYPE_INT8 dims: %s } ] '
ONE_IN = 'input { name: "INPUT0" data_type: TYPE_INT32 dims: 16 } '
GOOD_IN, GOOD_OUT = IN2 % ("16", "INPUT1"), OUT2 % ("OUTPUT1", "16")
FULL_SHAPE = "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making complete shape"


@pytest.mark.parametrize(
    ("text", "io", "message"),
    [
        (
            "max_batch_size: 1 " + IN2 % ("[16, 1]", "INPUT1") + GOOD_OUT,
            BATCHED,
            "model 'm', tensor 'INPUT0': the model expects 2 dimensions (shape [-1,16]) but the model configuration specifies "
            f"3 dimensions ({FULL_SHAPE} [-1,16,1])",
        ),
        (
            "max_batch_size: 1 " + GOOD_IN + OUT2 % ("OUTPUT1", "1"),
            BATCHED,
            "model 'm', tensor 'OUTPUT1': the model expects 2 dimensions (shape [-1,16]) but the model configuration specifies "
            f"2 dimensions ({FULL_SHAPE} [-1,1])",
        ),
        (
            "max_batch_size: 1 " + GOOD_IN,
            UNBATCHED,
            "autofill failed for model 'm': model does not support batching while non-zero max_batch_size is specified",
        ),
        (
            "max_batch_size: 1 " + ONE_IN + GOOD_OUT,
            BATCHED,
            "unable to load model 'm', configuration expects 1 inputs, model provides 2",
        ),
        (
            "max_batch_size: 1 " + GOOD_IN + 'input { name: "X" data_type: TYPE_INT32 dims: 16 } ' + GOOD_OUT,
            BATCHED,
            "unable to load model 'm', configuration expects 3 inputs, model provides 2",
        ),
        (
            "max_batch_size: 1 " + IN2 % ("16", "INPUT_UNKNOWN") + GOOD_OUT,
            BATCHED,
            "unexpected inference input 'INPUT_UNKNOWN', allowed inputs are: INPUT0, INPUT1",
        ),
        (
            "max_batch_size: 1 " + GOOD_IN + OUT2 % ("OUTPUT_UNKNOWN", "16"),
            BATCHED,
            "unexpected inference output 'OUTPUT_UNKNOWN', allowed outputs are: OUTPUT0, OUTPUT1",
        ),
    ],
    ids=["bad_input_dims", "bad_output_dims", "bad_max_batch_size", "too_few", "too_many", "unknown_input", "unknown_output"],
)
def test_golden_refusals(tmp_path: Path, text: str, io: GraphIO, message: str) -> None:
    with pytest.raises(InvalidRepository) as caught:
        loaded(tmp_path, "m", text, io)
    assert str(caught.value) == message


def test_each_thing_filled_in_is_one_line() -> None:
    config = parse('backend: "onnxruntime"', "")
    assert complete(config, BATCHED) == [
        "max_batch_size: 4",
        "dynamic_batching",
        "input 'INPUT0': TYPE_INT32 [16]",
        "input 'INPUT1': TYPE_INT32 [16]",
        "output 'OUTPUT0': TYPE_INT8 [16]",
        "output 'OUTPUT1': TYPE_INT8 [16]",
    ]


def test_one_missing_side_is_filled_and_a_batch_size_of_one_adds_no_scheduler() -> None:
    config = parse("max_batch_size: 1 " + GOOD_IN, "")
    assert complete(config, BATCHED) == ["output 'OUTPUT0': TYPE_INT8 [16]", "output 'OUTPUT1': TYPE_INT8 [16]"]
    assert config.WhichOneof("scheduling_choice") is None


def test_an_empty_dynamic_batching_prefers_the_batch_size_that_is_filled_in() -> None:
    config = parse("dynamic_batching {}", "")
    complete(config, BATCHED)
    assert list(config.dynamic_batching.preferred_batch_size) == [4]


def test_scalars_per_row_and_scalars() -> None:
    io = GraphIO((GraphTensor("x", "FP32", (-1,)),), (GraphTensor("y", "BYTES", (-1,)),))
    config = parse("", "")
    complete(config, io)
    assert (list(config.input[0].dims), config.input[0].HasField("reshape")) == ([1], True)
    assert list(config.output[0].reshape.shape) == []
    io = GraphIO((GraphTensor("x", "FP32", ()),), (GraphTensor("y", "FP32", ()),))
    config = parse("", "")
    complete(config, io)
    assert (list(config.input[0].dims), config.input[0].HasField("reshape"), config.max_batch_size) == ([1], False, 0)


def test_defaults_in_the_file_and_what_the_scheduler_feeds_are_not_declared() -> None:
    io = GraphIO(
        (
            GraphTensor("x", "FP32", (-1, 2)),
            GraphTensor("w", "FP32", (2,), initializer=True),
            GraphTensor("START", "INT32", (-1, 1)),
        ),
        (GraphTensor("y", "FP32", (-1, 2)),),
    )
    config = parse('sequence_batching { control_input { name: "START" } }', "")
    complete(config, io)
    assert [tensor.name for tensor in config.input] == ["x"]
    check_graph(config, io)


@pytest.mark.parametrize(
    ("files", "text", "backend", "platform"),
    [
        (["1/model.onnx"], "", "onnxruntime", "onnxruntime_onnx"),
        (["1/model.onnx/model.onnx"], "", "onnxruntime", "onnxruntime_onnx"),
        (["1/model.plan", "1/model.onnx"], "", "tensorrt", "tensorrt_plan"),
        (["1/model.py"], "", "python", ""),
        (["1/model.pt", "1/model.py"], "", "pytorch", "pytorch_libtorch"),
        # The first in the order of names, which is not the order of numbers.
        (["10/model.onnx", "9/model.py"], "", "onnxruntime", "onnxruntime_onnx"),
        (["1/model.py"], 'platform: "onnxruntime_onnx"', "onnxruntime", "onnxruntime_onnx"),
        (["1/model.py"], 'backend: "onnxruntime"', "onnxruntime", "onnxruntime_onnx"),
        (["1/model.py"], 'default_model_filename: "faces.onnx"', "onnxruntime", "onnxruntime_onnx"),
        (["1/model.onnx"], 'backend: "fake"', "fake", ""),
        (["1/x"], 'ensemble_scheduling { step { model_name: "a" } }', "", "ensemble"),
    ],
)
def test_what_tells_the_backend(tmp_path: Path, files: list[str], text: str, backend: str, platform: str) -> None:
    config = parse(text, "")
    fill(config, "m", version_with(tmp_path, *files), 0)
    assert (config.backend, config.platform) == (backend, platform)


def test_a_name_may_tell_the_backend_and_something_must(tmp_path: Path) -> None:
    config = ModelConfig()
    fill(config, "m.fake", version_with(tmp_path, "1/x"), 0)
    assert config.backend == "fake"
    with pytest.raises(InvalidRepository) as caught:
        fill(ModelConfig(), "m", version_with(tmp_path, "1/x"), 0)
    assert str(caught.value) == (
        "Invalid model name: Could not determine backend for model 'm' with no backend in model configuration. "
        "Expected model name of the form 'model.<backend_name>'."
    )


@pytest.mark.parametrize(
    ("groups", "gpus", "filled"),
    [
        ("", 0, [("m", "KIND_CPU", 1, [])]),
        ("", 2, [("m", "KIND_GPU", 1, [0, 1])]),
        ("instance_group { count: 3 } instance_group { name: 'b' }", 0, [("m_0", "KIND_CPU", 3, []), ("b", "KIND_CPU", 1, [])]),
        ("instance_group { gpus: [ 1 ] }", 2, [("m_0", "KIND_GPU", 1, [1])]),
        ("instance_group { gpus: [ 2 ] }", 2, [("m_0", "KIND_CPU", 1, [2])]),
        ("instance_group { kind: KIND_GPU }", 0, [("m_0", "KIND_GPU", 1, [])]),
        ("instance_group { kind: KIND_MODEL }", 2, [("m_0", "KIND_MODEL", 1, [])]),
    ],
)
def test_instance_groups(groups: str, gpus: int, filled: list[tuple[str, str, int, list[int]]]) -> None:
    config = parse(f"backend: 'fake' {groups}", "")
    fill(config, "m", [], gpus)
    kind = ModelInstanceGroup.Kind.Name
    assert [(group.name, kind(group.kind), group.count, list(group.gpus)) for group in config.instance_group] == filled


def test_schedulers_and_policies_are_normalised() -> None:
    config = parse("backend: 'fake' max_batch_size: 8 sequence_batching { oldest {} } version_policy { latest {} }", "")
    fill(config, "m", [], 0)
    assert config.sequence_batching.max_sequence_idle_microseconds == 1_000_000
    assert list(config.sequence_batching.oldest.preferred_batch_size) == [8]
    assert config.version_policy.latest.num_versions == 1
    config = parse("backend: 'fake' dynamic_batching {} version_policy { all {} } optimization { input_pinned_memory {} }", "")
    fill(config, "m", [], 0)
    assert list(config.dynamic_batching.preferred_batch_size) == []
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    assert (config.optimization.input_pinned_memory.enable, config.optimization.output_pinned_memory.enable) == (False, True)


def test_an_ensemble_gets_no_instances_and_no_optimization() -> None:
    config = parse("platform: 'ensemble'", "")
    fill(config, "m", [], 0)
    assert not config.instance_group
    assert not config.HasField("optimization")
