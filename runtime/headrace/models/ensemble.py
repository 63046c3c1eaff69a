"""The rules of an ensemble's configuration: its steps over named tensors form a graph without cycles or loose ends."""

from __future__ import annotations

from headrace.errors import InvalidRepository
from headrace.models.fill import ENSEMBLE
from headrace.protocol.headrace_pb2 import ModelConfig, ModelEnsembling


def check_ensemble(config: ModelConfig) -> None:
    """Check a configuration with `ensemble_scheduling`.

    Raises:
        InvalidRepository: it cannot be run as an ensemble.
    """
    name, steps = config.name, config.ensemble_scheduling.step
    for wrong, problem in (
        (config.platform != ENSEMBLE, f"ensemble scheduling cannot be set for model '{name}' whose platform is not {ENSEMBLE}"),
        (config.instance_group, f"instance group should not be specified for ensemble '{name}'"),
        (config.HasField("optimization"), f"optimization should not be specified for ensemble '{name}'"),
        (config.model_warmup, f"model_warmup can not be specified for ensemble '{name}'"),
        (
            any(tensor.HasField("reshape") for tensor in (*config.input, *config.output)),
            f"reshape can not be specified for ensemble '{name}': declare its tensors as its steps have them",
        ),
        (not steps, f"must specify 'step' for ensemble '{name}'"),
    ):
        if wrong:
            raise InvalidRepository(problem)
    written: dict[str, ModelEnsembling.Step] = {}
    read: set[str] = set()
    for index, step in enumerate(steps):
        for field in ("model_name", "input_map", "output_map"):
            if not getattr(step, field):
                raise InvalidRepository(f"must specify '{field}' in step {index} of ensemble '{name}'")
        for tensor in step.output_map.values():
            if tensor in written:
                raise InvalidRepository(
                    f"ensemble tensor '{tensor}' can appear in an output map only once for ensemble '{name}' step {index}"
                )
            written[tensor] = step
        read.update(step.input_map.values())
    _check_flow(config, written, read)


def _check_flow(config: ModelConfig, written: dict[str, ModelEnsembling.Step], read: set[str]) -> None:
    """Follow the data from the inputs; a tensor in a cycle, or behind one, never becomes ready."""
    name = config.name
    for tensor in config.input:
        if tensor.name not in read:
            raise InvalidRepository(f"ensemble input '{tensor.name}' for ensemble {name}' is not used")
    ready = {tensor.name for tensor in config.input}
    waiting = dict(written)
    while runnable := [t for t, step in waiting.items() if ready.issuperset(step.input_map.values())]:
        ready.update(runnable)
        for tensor in runnable:
            del waiting[tensor]
    outputs = {tensor.name for tensor in config.output}
    for tensor in config.output:
        if tensor.name in ready:
            continue
        problem = f"output '{tensor.name}' for ensemble '{name}' is not written"
        if tensor.name in waiting:
            lost = sorted(t for t in waiting[tensor.name].input_map.values() if t not in ready)[0]
            problem += f": at least one of its depending tensors, '{lost}', is not connected"
        raise InvalidRepository(problem)
    for tensor in sorted((read | set(written)) - outputs):
        if tensor not in ready or tensor not in read:
            raise InvalidRepository(f"ensemble tensor '{tensor}' is unused in ensemble '{name}'")
