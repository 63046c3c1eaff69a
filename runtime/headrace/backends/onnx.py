"""The ONNX Runtime backend: one session a version and device, called by every instance thread.

Defaults are for machines whose cores the front end needs, too: the threads of a session are the cores split over the
instances, and nobody spins. Facts behind each choice: ONNX Runtime's sessions are safe to share and gain nothing from being
copied; its pools spin for milliseconds after each run unless told otherwise; its log is silenced because every error is also
an exception.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort

from headrace.backends.base import Batch, Device, Outputs
from headrace.backends.providers import check_got, providers_of
from headrace.errors import BackendFailed, InvalidRepository, InvalidRequest
from headrace.machine import usable_cpus
from headrace.model import GraphIO, GraphTensor
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.tensor import BytesTensor, Tensor

_DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float": "FP32", "double": "FP64",
    "bfloat16": "BF16", "string": "BYTES",
}  # fmt: skip
_BFLOAT16 = 16
"""ONNX's number of the element type, which numpy has no name for."""

_SHRINK = "memory.enable_memory_arena_shrinkage"
_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def execution_providers() -> list[str]:
    """What the installed ONNX Runtime can run on, best first."""
    return ort.get_available_providers()


class OnnxBackend:
    """Loads `model.onnx`, or whatever `default_model_filename` says."""

    def load(self, path: Path, config: ModelConfig, device: Device) -> OnnxSession:
        """Load the version in directory `path`. See `Backend.load`."""
        file = path / config.default_model_filename
        if file.is_dir():
            file /= "model.onnx"
        if not file.is_file():
            raise InvalidRepository(f"no file {file}: put the model there, or name it in default_model_filename")
        options = session_options(config)
        providers = providers_of(config, device)
        check_got(providers, execution_providers(), config)
        for _, settings in providers:
            if "trt_engine_cache_path" in settings:
                Path(settings["trt_engine_cache_path"]).mkdir(parents=True, exist_ok=True)
        try:
            session = ort.InferenceSession(str(file), options, providers=providers)
        except Exception as error:
            raise InvalidRepository(f"{file} cannot be loaded: {error}") from error
        check_got(providers, session.get_providers(), config)
        return OnnxSession(session, config, device)


class OnnxSession:
    """One `onnxruntime.InferenceSession`."""

    replayable = True

    def __init__(self, session: ort.InferenceSession, config: ModelConfig, device: Device) -> None:
        self.io = _io_of(session)
        self._session: ort.InferenceSession | None = session
        self._device = device
        self._scalars = {tensor.name for tensor in self.io.inputs if not tensor.shape}
        self._has_text = any(tensor.datatype == "BYTES" for tensor in (*self.io.inputs, *self.io.outputs))
        self._has_bfloat16 = any(t.datatype == "BF16" for t in (*self.io.inputs, *self.io.outputs))
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = 4
        if _SHRINK in config.parameters:
            self._run_options.add_run_config_entry(_SHRINK, config.parameters[_SHRINK].string_value)

    def run(self, batch: Batch) -> Outputs:
        """Run the batch. See `Session.run`."""
        assert self._session is not None, "a closed session was asked to run"
        names = list(batch.wanted())
        feed = {
            # Rank 0 is told as [1]: a configuration has no other word for it.
            name: _to_ort(name, tensor.reshape(()) if name in self._scalars else tensor)
            for name, tensor in batch.tensors().items()
        }
        if self._device.kind == "GPU" and not self._has_text:  # strings cannot be bound
            return self.run_bound(names, feed, "cuda")
        if self._has_bfloat16:
            # ONNX Runtime's numpy interface knows no BF16: such tensors go in and out as OrtValues.
            values = {name: _value(array, "cpu", 0) for name, array in feed.items()}
            answers = self._session.run_with_ort_values(names, values, self._run_options)
            return {name: _copied(value) for name, value in zip(names, answers, strict=True)}
        return dict(zip(names, map(_from_ort, self._session.run(names, feed, self._run_options)), strict=True))

    def run_bound(self, names: list[str], feed: dict[str, np.ndarray[Any, Any]], place: str) -> Outputs:
        """Run with inputs and outputs bound to memory of the device `place`: one copy each way, and none between nodes."""
        assert self._session is not None
        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, _value(array, place, self._device.index))
        kinds = {output.name: output.datatype for output in self.io.outputs}
        for name in names:
            # Numpy cannot fetch BF16 from a device: ONNX Runtime copies that itself.
            stays = kinds[name] == "BF16"
            binding.bind_output(name, *(("cpu", 0) if stays else (place, self._device.index)))
        self._session.run_with_iobinding(binding, self._run_options)
        return {name: _copied(value) for name, value in zip(names, binding.get_outputs(), strict=True)}

    def close(self) -> None:
        """Give the weights back."""
        self._session = None


def session_options(config: ModelConfig) -> ort.SessionOptions:
    """The options of a session: our defaults, then what the configuration says.

    Raises:
        InvalidRepository: a parameter has a value that ONNX Runtime has no meaning for.
    """
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = _level(config)
    instances = sum(max(1, group.count) for group in config.instance_group) or 1
    options.intra_op_num_threads = _count(parameters, "intra_op_thread_count") or max(1, usable_cpus() // instances)
    options.inter_op_num_threads = _count(parameters, "inter_op_thread_count")
    mode = parameters.get("execution_mode", "0")
    if mode not in ("0", "1"):
        raise InvalidRepository(
            f"Invalid configuration value provided. Expected values for  execution_mode are 0 or 1 but got {mode} ."
        )
    if mode == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = _flag(parameters, "enable_mem_arena")
    options.enable_mem_pattern = _flag(parameters, "enable_mem_pattern")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    for key, value in parameters.items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    for library in config.model_operations.op_library_filename:
        options.register_custom_ops_library(library)
    return options


def _level(config: ModelConfig) -> ort.GraphOptimizationLevel:
    level = config.optimization.graph.level
    if level not in _LEVELS:
        raise InvalidRepository(f"model '{config.name}': optimization.graph.level is {level}; it can be -1, 0, 1 or 2")
    return _LEVELS[level]


def _count(parameters: dict[str, str], key: str) -> int:
    text = parameters.get(key, "0")
    if not text.strip().isdecimal():
        raise InvalidRepository(f"parameter '{key}' is '{text}'; it must be a number of threads, 0 for the default")
    return int(text)


def _flag(parameters: dict[str, str], key: str) -> bool:
    text = parameters.get(key, "1").strip().lower()
    if text not in ("0", "1", "false", "true"):
        raise InvalidRepository(f"parameter '{key}' is '{text}'; it must be 0, 1, true or false")
    return text in ("1", "true")


def _io_of(session: ort.InferenceSession) -> GraphIO:
    inputs = [
        *((node, False) for node in session.get_inputs()),
        *((node, True) for node in session.get_overridable_initializers()),
    ]
    return GraphIO(
        tuple(_graph_tensor(node, initializer=extra) for node, extra in inputs),
        tuple(_graph_tensor(node) for node in session.get_outputs()),
    )


def _graph_tensor(node: Any, *, initializer: bool = False) -> GraphTensor:
    datatype = _DATATYPES.get(node.type.removeprefix("tensor(").removesuffix(")"), "")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return GraphTensor(node.name, datatype, shape, initializer)


def _to_ort(name: str, tensor: Tensor) -> np.ndarray[Any, Any]:
    if not isinstance(tensor, BytesTensor):
        return tensor
    try:
        # Text, for ONNX Runtime would store the repr of bytes.
        texts = [element.decode() for element in tensor.objects().flat]
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"input '{name}' holds bytes that are no UTF-8 text, which is all that ONNX strings can be: {error}"
        ) from None
    array = np.empty(len(texts), np.object_)
    array[:] = texts
    return array.reshape(tensor.shape)


def _from_ort(value: Any) -> Tensor:
    if not isinstance(value, np.ndarray):
        raise BackendFailed(f"the model returned a {type(value).__name__}, and only tensors can be sent")
    array: np.ndarray[Any, Any] = value.reshape(1) if value.ndim == 0 else value
    if array.dtype.kind == "O":
        return BytesTensor.of(array.reshape(-1).tolist(), array.shape)
    return array


def _value(array: np.ndarray[Any, Any], place: str, index: int) -> ort.OrtValue:
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array, place, index)


def _copied(value: ort.OrtValue) -> Tensor:
    if value.element_type() != _BFLOAT16:
        return _from_ort(value.numpy())
    shape = tuple(value.shape()) or (1,)
    count = int(np.prod(shape, dtype=np.int64))
    bits = np.zeros(count, np.uint16)
    if count:
        ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
    return bits.view(ml_dtypes.bfloat16).reshape(shape)
