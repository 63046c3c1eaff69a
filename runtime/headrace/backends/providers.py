"""Which of ONNX Runtime's execution providers a session gets, and with which options.

What a configuration says of devices (`execution_accelerators`, CUDA parameters) in the words of ONNX Runtime. Pure: nothing here
asks the machine, so that the options of a GPU can be tested without one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from headrace.backends.base import Device
from headrace.errors import InvalidRepository
from headrace.protocol.headrace_pb2 import ModelConfig

Provider: TypeAlias = tuple[str, dict[str, str]]
"""Its name, and its options."""

CPU: Provider = ("CPUExecutionProvider", {})
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_CUDA_CHOICES: Mapping[str, Mapping[str, str]] = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "do_copy_in_default_stream": {"0": "0", "1": "1", "false": "0", "true": "1"},
}
_TENSORRT_NAMES = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
_PRECISIONS: Mapping[str, Mapping[str, str]] = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}


def providers_of(config: ModelConfig, device: Device) -> list[Provider]:
    """The providers for a session on `device`, best first; what the first ones cannot run falls to the next.

    Raises:
        InvalidRepository: an accelerator that this backend does not have, or an option without a meaning.
    """
    accelerators = config.optimization.execution_accelerators
    if device.kind == "CPU":
        for accelerator in accelerators.cpu_execution_accelerator:
            raise InvalidRepository(_unknown(config, accelerator.name, "none for the CPU"))
        return [CPU]
    providers: list[Provider] = []
    cuda: dict[str, str] = {}
    for accelerator in accelerators.gpu_execution_accelerator:
        if accelerator.name == "tensorrt":
            providers.append((TENSORRT, _tensorrt(config, device, accelerator.parameters)))
        elif accelerator.name == "cuda":
            cuda = dict(accelerator.parameters)
        else:
            raise InvalidRepository(_unknown(config, accelerator.name, "tensorrt and cuda"))
    return [*providers, (CUDA, {"device_id": str(device.index), **_cuda(config), **cuda}), CPU]


def check_got(wanted: list[Provider], got: Sequence[str], config: ModelConfig) -> None:
    """ONNX Runtime warns and goes on without a provider that it cannot load. Here that is an error.

    Raises:
        InvalidRepository: a provider that was asked for is missing.
    """
    missing = [name for name, _ in wanted if name not in got]
    if missing:
        raise InvalidRepository(
            f"model '{config.name}' is to run on {' and '.join(missing)}, which this ONNX Runtime could not load: install "
            "headrace[gpu] and the libraries it needs, or use KIND_CPU in the model's instance_group"
        )


def _unknown(config: ModelConfig, name: str, known: str) -> str:
    return f"unknown Execution Accelerator '{name}' is requested by model '{config.name}'; this server has {known}"


def _cuda(config: ModelConfig) -> dict[str, str]:
    """The parameters of a model that are CUDA options in Triton's older form."""
    options: dict[str, str] = {}
    for key, meanings in _CUDA_CHOICES.items():
        if key in config.parameters:
            options[key] = _choice(key, config.parameters[key].string_value, meanings)
    if "gpu_mem_limit" in config.parameters:
        limit = config.parameters["gpu_mem_limit"].string_value
        if not limit.isdecimal():
            raise InvalidRepository(f"parameter 'gpu_mem_limit' is '{limit}'; it must be a number of bytes")
        options["gpu_mem_limit"] = limit
    return options


def _tensorrt(config: ModelConfig, device: Device, parameters: Mapping[str, str]) -> dict[str, str]:
    # Building an engine takes minutes: it is kept unless the configuration says otherwise.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace" / "tensorrt" / config.name
    options = {
        "device_id": str(device.index),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
    }
    for key, value in parameters.items():
        if key == "precision_mode":
            if value not in _PRECISIONS:
                raise InvalidRepository(f"parameter 'precision_mode' is '{value}'; it can be {', '.join(_PRECISIONS)}")
            options |= _PRECISIONS[value]
        else:
            options[_TENSORRT_NAMES.get(key, key)] = value
    return options


def _choice(key: str, value: str, meanings: Mapping[str, str]) -> str:
    if value not in meanings:
        raise InvalidRepository(f"parameter '{key}' is '{value}'; it can be {', '.join(meanings)}")
    return meanings[value]
