"""A filled and checked configuration to the `ModelSpec` that queue, validation and engine work with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from headrace.clock import MICROSECOND, MILLISECOND
from headrace.errors import InvalidRepository
from headrace.model import Batching, ModelSpec, QueuePolicy
from headrace.models.check import is_outside
from headrace.models.datatypes import v2_datatype
from headrace.models.padding import padding_of
from headrace.protocol.headrace_pb2 import (
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelQueuePolicy,
)
from headrace.tensor import TensorSpec

_FOREVER = 1 << 62
"""In ns. A configuration's microseconds may exceed what int64 nanoseconds hold."""

_EFFECTIVE: dict[str, str] = {
    "name": "", "platform": "", "backend": "", "max_batch_size": "", "version_policy": "", "parameters": "",
    "default_model_filename": "", "ensemble_scheduling": "", "dynamic_batching": "", "model_transaction_policy": "",
    "input": "name data_type dims reshape optional",
    "output": "name data_type dims reshape label_filename",
    "instance_group": "name kind count gpus",
    "optimization": "graph execution_accelerators input_pinned_memory output_pinned_memory",
}  # fmt: skip
"""The fields that count, by name; where only some of a field's own do, they are named."""

_WORDS = {"shed": ("target", "deadline"), "admission": ("predict", "open"), "split_oversize": ("true", "false")}
"""Parameters that are a choice; the first word is what the field of `_FIELDS` asks."""
_FIELDS = {"shed": "sheds_target", "admission": "predicts", "split_oversize": "splits_oversize"}


def spec_of(config: ModelConfig, version: int, digest: str, directory: Path) -> ModelSpec:
    """The spec of one version of a model; label files are read relative to the model's `directory`.

    Raises:
        InvalidRepository: a label file cannot be read, or a parameter of ours has a value that means nothing.
    """
    batching = Batching()
    if config.HasField("dynamic_batching"):
        batching = _batching(config.dynamic_batching, enabled=config.max_batch_size > 0)
    batching = replace(batching, **_goals(config))
    inputs = tuple(_tensor_spec(tensor, optional=tensor.optional) for tensor in config.input)
    return ModelSpec(
        name=config.name,
        version=version,
        digest=digest,
        backend=config.backend,
        platform=config.platform,
        max_batch_size=config.max_batch_size,
        inputs=inputs,
        outputs=tuple(_tensor_spec(tensor, labels=_labels(tensor, directory)) for tensor in config.output),
        batching=batching,
        decoupled=config.model_transaction_policy.decoupled,
        sequences=config.HasField("sequence_batching"),
        instances=sum(map(_instances, config.instance_group)) or 1,
        padding=padding_of(config, inputs),
    )


def warnings(config: ModelConfig) -> list[str]:
    """One line per field that is set and has no effect in this server."""
    paths = dict.fromkeys(_without_effect(config))
    return [f"'{path}' in the configuration of model '{config.name}' has no effect in this server" for path in paths]


def _without_effect(config: ModelConfig) -> Iterator[str]:
    for field, value in config.ListFields():
        if field.name not in _EFFECTIVE:
            yield field.name
        elif effective := _EFFECTIVE[field.name].split():
            messages: list[Message] = [value] if isinstance(value, Message) else list(value)
            for message in messages:
                yield from (f"{field.name}.{inner.name}" for inner, _ in message.ListFields() if inner.name not in effective)


def _instances(group: ModelInstanceGroup) -> int:
    """`count` is per GPU in a group on GPUs."""
    return group.count * (len(group.gpus) if group.kind == ModelInstanceGroup.KIND_GPU else 1)


def _batching(batching: ModelDynamicBatching, *, enabled: bool) -> Batching:
    return Batching(
        enabled=enabled,
        preferred=tuple(sorted(set(batching.preferred_batch_size))),
        delay_ns=_nanoseconds(batching.max_queue_delay_microseconds),
        preserve_ordering=batching.preserve_ordering,
        priority_levels=batching.priority_levels,
        default_priority=batching.default_priority_level,
        policy=_policy(batching.default_queue_policy),
        level_policies={level: _policy(policy) for level, policy in sorted(batching.priority_queue_policy.items())},
    )


def _goals(config: ModelConfig) -> dict[str, Any]:
    """The parameters that are Headrace's own words: `objective_ms`, `shed`, `admission`, `split_oversize`."""
    given = {key: value.string_value for key, value in config.parameters.items()}
    goals: dict[str, Any] = {}
    if "objective_ms" in given:
        try:
            objective = int(float(given["objective_ms"]) * MILLISECOND)
        except (ValueError, OverflowError):
            objective = 0
        if not 0 < objective <= _FOREVER:
            raise _unknown(config, "objective_ms", given["objective_ms"], "milliseconds, as in 20")
        goals["objective_ns"] = objective
    for key, words in _WORDS.items():
        if key in given:
            if given[key] not in words:
                raise _unknown(config, key, given[key], " or ".join(words))
            goals[_FIELDS[key]] = given[key] == words[0]
    if goals.get("splits_oversize"):
        _check_can_split(config)
    return goals


def with_target(config: ModelConfig, target_ns: int | None) -> ModelConfig:
    """A configuration with this as its `objective_ms`, in ns, unless it names one itself."""
    if target_ns is None or "objective_ms" in config.parameters:
        return config
    filled = ModelConfig()
    filled.CopyFrom(config)
    filled.parameters["objective_ms"].string_value = f"{target_ns / MILLISECOND:g}"
    return filled


def _check_can_split(config: ModelConfig) -> None:
    """Rows can run apart only where they are rows, each has one answer, and none depends on what ran before."""
    wrong = (
        "max_batch_size is 0"
        if config.max_batch_size <= 0
        else "the model is decoupled"
        if config.model_transaction_policy.decoupled
        else "sequence_batching is set"
        if config.HasField("sequence_batching")
        else ""
    )
    if wrong:
        raise InvalidRepository(
            f"model '{config.name}': parameter 'split_oversize' is 'true', but {wrong}; it needs a max_batch_size above 0, and "
            "a model that is neither decoupled nor batched by sequence. Leave the parameter out"
        )


def _unknown(config: ModelConfig, key: str, value: str, expected: str) -> InvalidRepository:
    return InvalidRepository(f"model '{config.name}': parameter '{key}' is '{value}', expected {expected}")


def _policy(policy: ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        timeout_ns=_nanoseconds(policy.default_timeout_microseconds),
        allow_override=policy.allow_timeout_override,
        delay=policy.timeout_action == ModelQueuePolicy.DELAY,
        max_requests=policy.max_queue_size,
    )


def _nanoseconds(microseconds: int) -> int:
    return min(microseconds * MICROSECOND, _FOREVER)


def _tensor_spec(tensor: ModelInput | ModelOutput, *, optional: bool = False, labels: tuple[str, ...] = ()) -> TensorSpec:
    dims = tuple(tensor.dims)
    reshape = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else dims
    return TensorSpec(
        name=tensor.name,
        datatype=v2_datatype(tensor.data_type),
        dims=dims,
        reshape=None if reshape == dims else reshape,
        optional=optional,
        labels=labels,
    )


def _labels(output: ModelOutput, directory: Path) -> tuple[str, ...]:
    """One label a line; the line's number is the class."""
    filename = output.label_filename
    if not filename:
        return ()
    who = f"label_filename '{filename}' of output '{output.name}'"
    # A load request may bring the configuration: it must not be able to read files elsewhere.
    if is_outside(filename):
        raise InvalidRepository(f"{who} must stay inside the model directory {directory}")
    try:
        text = (directory / filename).read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InvalidRepository(f"{who} cannot be read: {error}; put a UTF-8 text file with one label a line there") from error
    return tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")) if text else ()
