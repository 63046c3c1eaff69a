"""The Python backend: models that are a node (see `headrace.node`), in the server's process or in one of their own.

Parameters of a configuration: `class` (`model.py:Model`), `isolation` (`thread` or `process`), and for a process
`run_timeout_s` (300) and `load_timeout_s` (60). All the others are for the node, as texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from headrace.backends.base import Batch, Device, Outputs
from headrace.backends.nodes import NodeRunner, Timeouts, open_node
from headrace.errors import BackendFailed, InvalidRepository
from headrace.model import GraphIO, GraphTensor
from headrace.node import SAME, Context, Rows
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.tensor import Tensor, TensorSpec, format_shape

_FILE, _CLASS = "model.py", "Model"


class PythonBackend:
    """Loads the class that a version directory has."""

    def load(self, path: Path, config: ModelConfig, device: Device) -> PythonSession:
        """Load the version in directory `path`. See `Backend.load`."""
        given = {key: value.string_value for key, value in config.parameters.items()}
        where = given.pop("class", f"{config.default_model_filename or _FILE}:{_CLASS}")
        isolation = given.pop("isolation", "thread")
        usual = Timeouts()
        timeouts = Timeouts(_seconds(given, "load_timeout_s", usual.load), _seconds(given, "run_timeout_s", usual.run))
        runner = open_node(where, Context(config.name, path, given), isolation, timeouts)
        try:
            return PythonSession(runner, config)
        except BaseException:
            runner.close()
            raise


class PythonSession:
    """A node as a model.

    A node always sees rows. Where the configuration leaves inputs or outputs open, the model batches, and
    `models.autocomplete` says how far; where it has them all and `max_batch_size` is 0, every request is one row.
    """

    def __init__(self, runner: NodeRunner, config: ModelConfig) -> None:
        if runner.rows != SAME:
            raise InvalidRepository(
                f"model '{config.name}': the rows of its class are '{runner.rows}', which only a node of a graph can be; "
                f"return as many rows as come in, and leave rows at '{SAME}'"
            )
        self._runner, self._name = runner, config.name
        self._batches = config.max_batch_size > 0 or not (config.input and config.output)
        self.io = GraphIO(self._declared(runner.inputs), self._declared(runner.outputs))
        self.replayable = runner.replayable

    def run(self, batch: Batch) -> Outputs:
        """See `Session.run`."""
        tensors = batch.tensors()
        if not self._batches:
            tensors = {name: tensor.reshape((1, *tensor.shape)) for name, tensor in tensors.items()}
        result = self._runner.run(tensors)
        assert not isinstance(result, Rows)
        return result if self._batches else {name: self._only_row(name, tensor) for name, tensor in result.items()}

    def close(self) -> None:
        """See `Session.close`."""
        self._runner.close()

    def _declared(self, specs: Mapping[str, TensorSpec]) -> tuple[GraphTensor, ...]:
        rows = (-1,) if self._batches else ()
        return tuple(GraphTensor(spec.name, spec.datatype, (*rows, *spec.dims)) for spec in specs.values())

    def _only_row(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.shape[:1] != (1,):
            raise BackendFailed(
                f"model '{self._name}', output '{name}': the class returned shape {format_shape(tensor.shape)} for one row; "
                "the first dimension is the rows"
            )
        return tensor.reshape(tensor.shape[1:])


def _seconds(parameters: dict[str, str], key: str, default: float) -> float:
    text = parameters.pop(key, None)
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise InvalidRepository(f"parameter '{key}' is '{text}'; it must be seconds, as in 30")
    return seconds
