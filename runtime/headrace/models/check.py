"""What a configuration may not say: of itself, of its inputs and outputs, of the model file.

The messages are Triton's; the few for which Triton has none say where to look.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath

from headrace.errors import InvalidRepository
from headrace.model import GraphIO, GraphTensor
from headrace.models.autocomplete import fed_by_scheduler
from headrace.models.datatypes import config_datatype, type_name
from headrace.models.ensemble import check_ensemble
from headrace.models.fill import ENSEMBLE, PLATFORMS
from headrace.models.padding import made_input
from headrace.protocol.headrace_pb2 import (
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelQueuePolicy,
    ModelSequenceBatching,
)
from headrace.tensor import format_shape

_BACKENDS = frozenset(backend for backend in PLATFORMS.values() if backend)


def check_config(config: ModelConfig, gpus: int) -> None:
    """Check a filled configuration as a whole; `gpus` is how many GPUs can be used.

    Raises:
        InvalidRepository: it contradicts itself or this machine.
    """
    _check_identity(config)
    if config.HasField("dynamic_batching"):
        _check_dynamic_batching(config.dynamic_batching, config)
    if config.HasField("sequence_batching"):
        _check_sequence_batching(config.sequence_batching, config)
    _check_response_cache(config)
    if config.HasField("ensemble_scheduling"):
        check_ensemble(config)
    elif config.platform == ENSEMBLE:
        raise InvalidRepository(f"ensemble scheduling must be set for ensemble {config.name} whose platform is {ENSEMBLE}")
    else:
        for group in config.instance_group:
            _check_instance_group(group, config.name, gpus)


def check_tensors(config: ModelConfig) -> None:
    """Check every input and output by itself.

    Raises:
        InvalidRepository: one is incomplete, or its dims and reshape do not fit.
    """
    for what, tensors in (("input", config.input), ("output", config.output)):
        seen: set[str] = set()
        for tensor in tensors:
            problem = _tensor_problem(tensor, config)
            if problem is None and tensor.name in seen:
                problem = "is specified more than once"
            if problem is not None:
                subject = f"'{tensor.name}' " if tensor.name else ""
                raise InvalidRepository(f"model {what} {subject}{problem} for {config.name}")
            seen.add(tensor.name)


def check_graph(config: ModelConfig, io: GraphIO) -> None:
    """Check the configured inputs and outputs against those of the model file.

    Raises:
        InvalidRepository: they differ in number, name, datatype or shape.
    """
    _check_inputs(config, io)
    outputs = {tensor.name: tensor for tensor in io.outputs}
    exempt = {name for made in config.batch_output for name in made.target_name}
    for output in config.output:
        tensor = _same_tensor(config, "output", output, outputs)
        if output.name not in exempt:
            _check_dims(config, output, tensor, exact=True)


def is_outside(filename: str) -> bool:
    """Whether a relative file name in a configuration leads out of the directory it belongs to."""
    path = PurePath(filename)
    return path.is_absolute() or ".." in path.parts


def reshape_problem(dims: Sequence[int], reshape: Sequence[int]) -> str | None:
    """Why `dims` cannot be reshaped to `reshape`, or None.

    The runs between the variable dimensions must have the same numbers of elements, one by one: [2,4,-1,6] fits [8,-1,1,6].
    """
    have, want = _runs(dims), _runs(reshape)
    if (len(have) == 1) != (len(want) == 1):
        return "has different size for dims and reshape"
    if len(have) != len(want):
        return "has different number of variable-size dimensions for dims and reshape"
    return None if have == want else "has different size for dims and reshape"


def _runs(shape: Sequence[int]) -> list[int]:
    runs = [1]
    for size in shape:
        if size == -1:
            runs.append(1)
        else:
            runs[-1] *= size
    return runs


def _check_identity(config: ModelConfig) -> None:
    name = config.name
    if not name:
        raise InvalidRepository("model configuration must specify 'name'")
    if not (config.platform or config.backend):
        raise InvalidRepository(f"must specify 'platform' or 'backend' for '{name}'")
    # A backend without platforms of its own, python say, goes with no platform and not with a known one.
    if PLATFORMS.get(config.platform, "") != (config.backend if config.backend in _BACKENDS else ""):
        raise InvalidRepository(f"unexpected 'platform' and 'backend' pair, got:{config.platform}, {config.backend}")
    if config.platform and config.platform not in PLATFORMS:
        raise InvalidRepository(f"unexpected platform type '{config.platform}' for {name}")
    if config.max_batch_size < 0:
        raise InvalidRepository(f"'max_batch_size' must be non-negative value for {name}")
    if is_outside(config.default_model_filename):
        raise InvalidRepository(
            f"'default_model_filename' must stay inside the version directory for {name}, got '{config.default_model_filename}'"
        )


def _check_preferred(sizes: Iterable[int], what: str, config: ModelConfig) -> None:
    for size in sizes:
        if size <= 0:
            raise InvalidRepository(f"{what} must be positive for {config.name}")
        if size > config.max_batch_size:
            raise InvalidRepository(f"{what} must be <= max batch size for {config.name}")


def _check_dynamic_batching(batching: ModelDynamicBatching, config: ModelConfig) -> None:
    name, levels = config.name, batching.priority_levels
    _check_preferred(batching.preferred_batch_size, "dynamic batching preferred size", config)
    if levels and not 1 <= batching.default_priority_level <= levels:
        raise InvalidRepository(f"default priority level must be in range [1, {levels}] for {name}")
    if levels and not all(1 <= level <= levels for level in batching.priority_queue_policy):
        raise InvalidRepository(f"priority queue policy must have priority level in range [1, {levels}] for {name}")
    if not batching.preserve_ordering:
        return
    if levels > 1:
        raise InvalidRepository(f"Only one priority level is allowed when 'preserve_ordering' is true for {name}")
    for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values()):
        if policy.default_timeout_microseconds and policy.timeout_action == ModelQueuePolicy.DELAY:
            raise InvalidRepository(
                f"Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for {name}"
            )


def _check_sequence_batching(batching: ModelSequenceBatching, config: ModelConfig) -> None:
    if batching.HasField("oldest"):
        _check_preferred(batching.oldest.preferred_batch_size, "sequence batching preferred batch size", config)
    if batching.HasField("direct") and not 0 <= batching.direct.minimum_slot_utilization <= 1:
        raise InvalidRepository(f"sequence batching minimum slot utilization must be in range (0.0, 1.0] for {config.name}")
    seen: set[str] = set()
    for control in batching.control_input:
        if not control.name:
            raise InvalidRepository(f"sequence batching control tensor must have a name for {config.name}")
        if control.name in seen:
            raise InvalidRepository(
                f"sequence batching control tensor '{control.name}' is specified for multiple control kinds for {config.name}"
            )
        seen.add(control.name)


def _check_response_cache(config: ModelConfig) -> None:
    if not config.response_cache.enable:
        return
    for wanted, what in (
        (config.model_transaction_policy.decoupled, "'decoupled' transaction policy"),
        (config.HasField("sequence_batching"), "'sequence_batching' scheduling choice"),
    ):
        if wanted:
            raise InvalidRepository(
                f"Response Cache does not currently support model {config.name} with {what}. Please disable the response cache."
            )


def _check_instance_group(group: ModelInstanceGroup, model: str, gpus: int) -> None:
    who = f"instance group {group.name} of model {model}"
    kind = ModelInstanceGroup.Kind.Name(group.kind)
    if group.count < 0:
        raise InvalidRepository(f"{who} has count {group.count}, which must be at least 1")
    if group.kind != ModelInstanceGroup.KIND_GPU:
        if group.gpus:
            raise InvalidRepository(f"{who} has kind {kind} but specifies one or more GPUs")
    elif gpus == 0:
        raise InvalidRepository(f"{who} has kind KIND_GPU but server does not support GPUs")
    else:
        for gpu in group.gpus:
            if not 0 <= gpu < gpus:
                usable = ", ".join(map(str, range(gpus)))
                raise InvalidRepository(
                    f"{who} specifies invalid or unsupported gpu id {gpu}. GPUs that can be used are: {usable}"
                )


def _tensor_problem(tensor: ModelInput | ModelOutput, config: ModelConfig) -> str | None:
    reshape = tensor.reshape.shape if tensor.HasField("reshape") else None
    if not tensor.name:
        return "must specify 'name'"
    if not tensor.data_type:
        return "must specify 'data_type'"
    if not tensor.dims:
        return "must specify 'dims'"
    if reshape is not None and not reshape and config.max_batch_size == 0:
        return "cannot have empty reshape for non-batching model as scalar tensors are not supported"
    for what, shape in (("dimension", tensor.dims), ("reshape dimensions", reshape or ())):
        if any(size < 1 and size != -1 for size in shape):
            return f"{what} must be integer >= 1, or -1 to indicate a variable-size dimension"
    return None if reshape is None else reshape_problem(tensor.dims, reshape)


def _check_inputs(config: ModelConfig, io: GraphIO) -> None:
    """An input with a default in the file may be configured, and then does not count. One that we make is never missing."""
    name, made = config.name, made_input(config)
    tensors = {tensor.name: tensor for tensor in io.inputs}
    defaults = {tensor.name for tensor in io.inputs if tensor.initializer}
    counted = [tensor for tensor in config.input if (not tensor.optional or tensor.name == made) and tensor.name not in defaults]
    expected, provided = len(counted) + len(fed_by_scheduler(config)), len(tensors) - len(defaults)
    if expected != provided:
        raise InvalidRepository(
            f"unable to load model '{name}', configuration expects {expected} inputs, model provides {provided}"
        )
    for configured in config.input:
        if configured.optional and configured.name != made and config.max_batch_size > 0:
            raise InvalidRepository(
                f"unable to load model '{name}', optional input '{configured.name}' is not supported for models "
                "that support batching"
            )
        tensor = _same_tensor(config, "input", configured, tensors)
        if configured.allow_ragged_batch:
            _check_ragged(config, configured, tensor)
        else:
            _check_dims(config, configured, tensor, exact=False)


def _same_tensor(
    config: ModelConfig, what: str, configured: ModelInput | ModelOutput, tensors: dict[str, GraphTensor]
) -> GraphTensor:
    """The graph's tensor of the configured name, of the same datatype."""
    tensor = tensors.get(configured.name)
    if tensor is None:
        raise InvalidRepository(
            f"unexpected inference {what} '{configured.name}', allowed {what}s are: {', '.join(sorted(tensors))}"
        )
    provided = config_datatype(tensor.datatype)
    if configured.data_type != provided:
        raise InvalidRepository(
            f"unable to load model '{config.name}', configuration expects datatype {type_name(configured.data_type)} "
            f"for {what} '{configured.name}', model provides {type_name(provided)}"
        )
    return tensor


def _check_ragged(config: ModelConfig, configured: ModelInput, tensor: GraphTensor) -> None:
    wanted = f"unable to load model '{config.name}', configuration expects model provides input with shape [-1] "
    if configured.optional:
        raise InvalidRepository(f"{wanted}for ragged input '{configured.name}', which is not supported for optional input")
    if tensor.shape != (-1,):
        raise InvalidRepository(f"{wanted} for ragged input '{configured.name}', model provides {format_shape(tensor.shape)}")


def _check_dims(config: ModelConfig, configured: ModelInput | ModelOutput, tensor: GraphTensor, *, exact: bool) -> None:
    """Compare shapes; unless `exact`, a variable dimension of the graph takes any size."""
    dims = tuple(configured.reshape.shape if configured.HasField("reshape") else configured.dims)
    who = f"model '{config.name}', tensor '{tensor.name}': "
    batched = config.max_batch_size > 0
    if batched and tensor.shape[:1] != (-1,):
        raise InvalidRepository(
            f"{who}for the model to support batching the shape should have at least 1 dimension and the first dimension "
            f"must be -1; but shape expected by the model is {format_shape(tensor.shape)}"
        )
    if not tensor.shape:
        if any(size != 1 for size in dims):
            raise InvalidRepository(
                f"unable to load model '{config.name}', scalar tensor '{tensor.name}', should only provide 1 in the model "
                f"configuration when the model doesn't support batching. Model configuration provided: {format_shape(dims)}."
            )
        return
    shape = (-1, *dims) if batched else dims
    if len(shape) == len(tensor.shape) and all(
        theirs == ours or (theirs == -1 and not exact) for theirs, ours in zip(tensor.shape, shape, strict=True)
    ):
        return
    said = (
        "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, "
        f"making complete shape {format_shape(shape)}"
        if batched
        else f"shape {format_shape(shape)}"
    )
    raise InvalidRepository(
        f"{who}the model expects {len(tensor.shape)} dimensions (shape {format_shape(tensor.shape)}) "
        f"but the model configuration specifies {len(shape)} dimensions ({said})"
    )
