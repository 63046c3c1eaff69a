"""What the server fills into a configuration before it looks into the model file.

One departure from Triton: an unset instance count is 1 everywhere. Triton runs two instances of an ONNX model on the CPU,
each with a thread pool over all cores. What was measured of a version may change it when that version loads.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from pathlib import Path
from typing import NamedTuple

from headrace.errors import InvalidRepository
from headrace.protocol.headrace_pb2 import ModelConfig, ModelInstanceGroup


class Kind(NamedTuple):
    """A kind of model file: `model<suffix>` is its default name."""

    suffix: str
    backend: str
    platform: str


ONNX = Kind(".onnx", "onnxruntime", "onnxruntime_onnx")
ENSEMBLE = "ensemble"
GRAPH = "headrace_graph"
GRAPHS = (ENSEMBLE, GRAPH)
"""Platforms of what has nodes instead of a model file."""

KINDS = (
    Kind(".savedmodel", "tensorflow", "tensorflow_savedmodel"),
    Kind(".graphdef", "tensorflow", "tensorflow_graphdef"),
    Kind(".plan", "tensorrt", "tensorrt_plan"),
    ONNX,
    Kind(".xml", "openvino", ""),
    Kind(".pt", "pytorch", "pytorch_libtorch"),
    Kind(".py", "python", ""),
)
"""In the order in which a version directory is searched for them."""

PLATFORMS: dict[str, str] = {kind.platform: kind.backend for kind in KINDS if kind.platform} | dict.fromkeys(GRAPHS, "")
"""The backend of every platform."""

_SEQUENCE_IDLE_US = 1_000_000


def fill(config: ModelConfig, name: str, version_paths: Sequence[Path], gpus: int) -> None:
    """Fill and normalise `config` in place for the model in directory `name`.

    `version_paths` are its version directories; the first, in the order of their names, tells the backend when nothing else
    does. `gpus` is how many GPUs can be used.

    Raises:
        InvalidRepository: nothing tells the backend.
    """
    config.name = config.name or name
    if config.WhichOneof("scheduling_choice") == "ensemble_scheduling" and not (config.platform or config.backend):
        config.platform = ENSEMBLE
    if config.platform not in GRAPHS:
        _fill_backend(config, version_paths)
    if config.version_policy.WhichOneof("policy_choice") in (None, "latest"):
        latest = config.version_policy.latest
        latest.num_versions = latest.num_versions or 1
    normalise_batching(config)
    if config.platform not in GRAPHS:
        for memory in ("input_pinned_memory", "output_pinned_memory"):
            if not config.optimization.HasField(memory):
                getattr(config.optimization, memory).enable = True
        _fill_instance_groups(config, gpus)


def normalise_batching(config: ModelConfig) -> None:
    """Fill what the schedulers leave open; to be repeated when the batch size or the scheduler was filled in later."""
    if config.HasField("dynamic_batching"):
        _prefer_full_batches(config, config.dynamic_batching.preferred_batch_size)
    elif config.HasField("sequence_batching"):
        sequences = config.sequence_batching
        sequences.max_sequence_idle_microseconds = sequences.max_sequence_idle_microseconds or _SEQUENCE_IDLE_US
        if sequences.HasField("oldest"):
            _prefer_full_batches(config, sequences.oldest.preferred_batch_size)


def _prefer_full_batches(config: ModelConfig, preferred: MutableSequence[int]) -> None:
    if not preferred and config.max_batch_size > 0:
        preferred.append(config.max_batch_size)


def _fill_backend(config: ModelConfig, version_paths: Sequence[Path]) -> None:
    if not (config.backend or config.platform):
        kind = _kind_of_file(config.default_model_filename) or (
            None if config.default_model_filename else _kind_of_directory(version_paths)
        )
        config.backend = kind.backend if kind else _backend_of_name(config.name)
        config.platform = kind.platform if kind else ""
    config.backend = config.backend or PLATFORMS.get(config.platform, "")
    if config.backend == ONNX.backend:
        config.platform = config.platform or ONNX.platform
        config.default_model_filename = config.default_model_filename or f"model{ONNX.suffix}"


def _kind_of_file(filename: str) -> Kind | None:
    return next((kind for kind in KINDS if filename.endswith(kind.suffix)), None)


def _kind_of_directory(version_paths: Sequence[Path]) -> Kind | None:
    first = min(version_paths, key=lambda path: path.name, default=None)
    # `exists`, because an ONNX or TensorFlow model may be a directory of that name.
    return next((kind for kind in KINDS if first and (first / f"model{kind.suffix}").exists()), None)


def _backend_of_name(name: str) -> str:
    backend = name.rpartition(".")[2] if "." in name else ""
    if not backend:
        raise InvalidRepository(
            f"Invalid model name: Could not determine backend for model '{name}' with no backend in model configuration. "
            "Expected model name of the form 'model.<backend_name>'."
        )
    return backend


def _fill_instance_groups(config: ModelConfig, gpus: int) -> None:
    if not config.instance_group:
        config.instance_group.add(name=config.name)
    for index, group in enumerate(config.instance_group):
        group.name = group.name or f"{config.name}_{index}"
        if group.kind == ModelInstanceGroup.KIND_AUTO:
            on_gpu = gpus > 0 and all(0 <= gpu < gpus for gpu in group.gpus)
            group.kind = ModelInstanceGroup.KIND_GPU if on_gpu else ModelInstanceGroup.KIND_CPU
        group.count = group.count or 1
        if group.kind == ModelInstanceGroup.KIND_GPU and not group.gpus:
            group.gpus.extend(range(gpus))
