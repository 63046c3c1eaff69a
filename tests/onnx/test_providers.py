"""What a configuration says of devices, in the words of ONNX Runtime. No GPU is needed for that."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.backends.base import Device
from headrace.backends.installed import usable_gpus
from headrace.backends.onnx import OnnxBackend
from headrace.backends.providers import CPU, CUDA, TENSORRT, check_got, providers_of
from headrace.errors import InvalidRepository
from headrace.models.pbtxt import parse
from tests.build_models import add_model, twice
from tests.oracle import bits, plain, plain_bfloat16, sample

GPU = Device("GPU", 1)


def config(text: str = ""):
    return parse(f'name: "m" {text}', "config.pbtxt")


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def accelerator(kind: str, name: str, **parameters: str) -> str:
    told = " ".join(f'parameters {{ key: "{k}" value: "{v}" }}' for k, v in parameters.items())
    return f'optimization {{ execution_accelerators {{ {kind}_execution_accelerator {{ name: "{name}" {told} }} }} }}'


def test_the_cpu_has_one_provider() -> None:
    assert providers_of(config(), Device()) == [CPU]


def test_a_gpu_runs_cuda_before_the_cpu() -> None:
    assert providers_of(config(), GPU) == [(CUDA, {"device_id": "1"}), CPU]


def test_cuda_parameters_of_a_model() -> None:
    text = parameter("cudnn_conv_algo_search", "1") + parameter("gpu_mem_limit", "1024") + parameter("arena_extend_strategy", "1")
    options = providers_of(config(text + parameter("do_copy_in_default_stream", "0")), GPU)[0][1]
    assert options == {
        "device_id": "1",
        "cudnn_conv_algo_search": "HEURISTIC",
        "gpu_mem_limit": "1024",
        "arena_extend_strategy": "kSameAsRequested",
        "do_copy_in_default_stream": "0",
    }


def test_parameters_of_the_cuda_accelerator_pass_through() -> None:
    assert providers_of(config(accelerator("gpu", "cuda", use_tf32="0")), GPU)[0] == (CUDA, {"device_id": "1", "use_tf32": "0"})


def test_tensorrt_comes_first_and_keeps_its_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    text = accelerator("gpu", "tensorrt", precision_mode="FP16", max_workspace_size_bytes="99", trt_max_partition_iterations="7")
    (name, options), (second, _), last = providers_of(config(text), GPU)
    assert (name, second, last) == (TENSORRT, CUDA, CPU)
    assert options == {
        "device_id": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/cache/headrace/tensorrt/m",
        "trt_timing_cache_enable": "1",
        "trt_fp16_enable": "1",
        "trt_max_workspace_size": "99",
        "trt_max_partition_iterations": "7",
    }


def test_the_configuration_decides_on_the_engine_cache() -> None:
    options = providers_of(config(accelerator("gpu", "tensorrt", trt_engine_cache_enable="0")), GPU)[0][1]
    assert options["trt_engine_cache_enable"] == "0"


@pytest.mark.parametrize(
    ("text", "device", "told"),
    [
        (accelerator("gpu", "mystery"), GPU, "unknown Execution Accelerator 'mystery' is requested"),
        (accelerator("cpu", "openvino"), Device(), "unknown Execution Accelerator 'openvino' is requested"),
        (accelerator("gpu", "tensorrt", precision_mode="FP4"), GPU, "parameter 'precision_mode' is 'FP4'"),
        (parameter("cudnn_conv_algo_search", "9"), GPU, "parameter 'cudnn_conv_algo_search' is '9'; it can be 0, 1, 2"),
        (parameter("gpu_mem_limit", "lots"), GPU, "must be a number of bytes"),
    ],
)
def test_what_has_no_meaning_is_told(text: str, device: Device, told: str) -> None:
    with pytest.raises(InvalidRepository) as caught:
        providers_of(config(text), device)
    assert told in caught.value.message


def test_a_provider_that_did_not_load_is_an_error() -> None:
    wanted = providers_of(config(), GPU)
    check_got(wanted, [CUDA, CPU[0]], config())
    with pytest.raises(InvalidRepository, match="CUDAExecutionProvider, which this ONNX Runtime could not load"):
        check_got(wanted, [CPU[0]], config())


def test_gpus_are_counted_with_the_gpu_build_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert usable_gpus(tmp_path) == 0
    monkeypatch.setattr("headrace.backends.installed.onnxruntime_builds", lambda: {"onnxruntime-gpu": "1"})
    assert usable_gpus(tmp_path) == 2
    assert usable_gpus(tmp_path / "no driver") == 0
    for visible, count in (("", 0), ("-1", 0), ("1", 1), ("0,1", 2), ("0,1,2", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert usable_gpus(tmp_path) == count


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BOOL", "FP16", "BF16"])
def test_bound_memory_gives_the_same_answers(tmp_path: Path, datatype: str) -> None:
    path = add_model(tmp_path, "m", twice(datatype))
    loaded = parse('name: "m" default_model_filename: "model.onnx"', "config.pbtxt")
    session = OnnxBackend().load(path.parent, loaded, Device())
    (name,) = [tensor.name for tensor in session.io.inputs]
    given = sample(datatype, (3, 4))
    names = [tensor.name for tensor in session.io.outputs]
    bound = session.run_bound(names, {name: given}, "cpu")
    if datatype == "BF16":
        expected = plain_bfloat16(path, given, {name: array.shape for name, array in bound.items()})
    else:
        expected = plain(path, {name: given})
    for output, value in expected.items():
        assert bits(bound[output]) == bits(value)
