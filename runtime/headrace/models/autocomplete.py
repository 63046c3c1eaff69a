"""What the model file itself tells, filled into a configuration that leaves it open."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from headrace.errors import InvalidRepository
from headrace.model import GraphIO, GraphTensor
from headrace.models.datatypes import config_datatype, type_name
from headrace.models.fill import normalise_batching
from headrace.protocol.headrace_pb2 import ModelConfig, ModelInput, ModelOutput
from headrace.tensor import format_shape

DEFAULT_MAX_BATCH_SIZE = 4
"""For a model that can batch and does not say how far; Triton's value."""


def complete(config: ModelConfig, io: GraphIO) -> list[str]:
    """Fill `max_batch_size`, `dynamic_batching`, `input` and `output` in place from the model's own inputs and outputs.

    Nothing is filled when both `input` and `output` are configured; an explicit `max_batch_size: 0` cannot be told from a
    missing one, so a model that can batch gets one then.

    Returns:
        One line for a person per thing filled in.

    Raises:
        InvalidRepository: the configuration wants batching, the model cannot.
    """
    if (config.input or config.batch_input) and config.output:
        return []
    lines: list[str] = []
    if _can_batch(io):
        if config.max_batch_size == 0:
            config.max_batch_size = io.max_batch_size or DEFAULT_MAX_BATCH_SIZE
            lines.append(f"max_batch_size: {config.max_batch_size}")
        if config.max_batch_size > 1 and config.WhichOneof("scheduling_choice") is None:
            config.dynamic_batching.SetInParent()
            lines.append("dynamic_batching")
        normalise_batching(config)
    elif config.max_batch_size != 0:
        raise InvalidRepository(
            f"autofill failed for model '{config.name}': model does not support batching while non-zero max_batch_size "
            "is specified"
        )
    if not (config.input or config.batch_input):
        fed = fed_by_scheduler(config)
        lines += _declare("input", config.input.add, (t for t in io.inputs if not t.initializer and t.name not in fed), config)
    if not config.output:
        lines += _declare("output", config.output.add, io.outputs, config)
    return lines


def fed_by_scheduler(config: ModelConfig) -> list[str]:
    """The graph's inputs that no client sends: batch inputs, controls and states of sequences."""
    names = [name for made in config.batch_input for name in made.target_name]
    if config.HasField("sequence_batching"):
        names += [control.name for control in config.sequence_batching.control_input]
        names += [state.input_name for state in config.sequence_batching.state]
    return names


def _can_batch(io: GraphIO) -> bool:
    if io.max_batch_size is not None:
        return io.max_batch_size > 0
    inputs = [tensor for tensor in io.inputs if not tensor.initializer]
    # Without an input nothing would say how many rows a request has.
    return bool(inputs) and all(tensor.shape[:1] == (-1,) for tensor in (*inputs, *io.outputs))


def _declare(
    what: str, add: Callable[..., ModelInput | ModelOutput], tensors: Iterable[GraphTensor], config: ModelConfig
) -> list[str]:
    batched = config.max_batch_size > 0
    lines: list[str] = []
    for tensor in tensors:
        dims = tensor.shape[1:] if batched else tensor.shape
        new = add(name=tensor.name, data_type=config_datatype(tensor.datatype), dims=dims or (1,))
        if batched and not dims:
            new.reshape.SetInParent()
        lines.append(f"{what} '{tensor.name}': {type_name(new.data_type)} {format_shape(new.dims)}")
    return lines
