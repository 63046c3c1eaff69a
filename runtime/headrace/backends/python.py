"""The Python backend: models that are a node (see `headrace.node`), in the server's process or in one of their own.

Parameters of a configuration: `class` (`model.py:Model`), `isolation` (`thread` or `process`), and for a process
`run_timeout_s` (300) and `load_timeout_s` (60). All the others are for the node, as texts.

A `model.py` that is written for Triton's Python backend is found out by its text, and goes to `triton_python/`, always in
processes of its own. Its parameters are the two times and `memory_limit_mib`; it sees all of them.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from headrace.backends.base import Batch, Device, Inner, Outputs, Session
from headrace.backends.nodes import NodeRunner, Timeouts, open_node
from headrace.errors import BackendFailed, HeadraceError, InvalidRepository, ModelNotFound, NotAllowed
from headrace.model import GraphIO, GraphTensor
from headrace.node import SAME, Context, Rows
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.request import Request, Response
from headrace.tensor import Tensor, TensorSpec, format_shape

_FILE, _CLASS = "model.py", "Model"
_TRITON_CLASS, _TRITON_MODULE = "TritonPythonModel", "triton_python_backend_utils"


class PythonBackend:
    """Loads the class that a version directory has."""

    def __init__(self) -> None:
        self._inner: Inner | None = None

    def connect(self, inner: Inner) -> None:
        """See `Calling.connect`."""
        self._inner = inner

    def load(self, path: Path, config: ModelConfig, device: Device) -> Session:
        """Load the version in directory `path`. See `Backend.load`."""
        given = {key: value.string_value for key, value in config.parameters.items()}
        if "class" not in given and is_for_triton(path / (config.default_model_filename or _FILE)):
            return self._load_for_triton(path, config, device, given)
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

    def _load_for_triton(self, path: Path, config: ModelConfig, device: Device, given: dict[str, str]) -> Session:
        from headrace.backends.triton_python.session import Settings, TritonSession  # which is Linux's

        usual = Timeouts()
        limit = _number(given, "memory_limit_mib", 0.0, "MiB, as in 2048")
        timeouts = Timeouts(_seconds(given, "load_timeout_s", usual.load), _seconds(given, "run_timeout_s", usual.run))
        return TritonSession(path, config, device, Settings(timeouts, int(limit * 2**20)), self._inner or NoInner())


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
        result = self._runner.run(tensors, batch)
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
    return _number(parameters, key, default, "seconds, as in 30")


def _number(parameters: dict[str, str], key: str, default: float, wanted: str) -> float:
    text = parameters.pop(key, None)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise InvalidRepository(f"parameter '{key}' is '{text}'; it must be {wanted}")
    return number


def is_for_triton(file: Path) -> bool:
    """Whether a file is written for Triton's Python backend, by its text: it has a class, or a name, TritonPythonModel.

    Nothing of it is executed. What is no Python belongs to Triton if it speaks of it, so that its own process says what is wrong.
    """
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return False
    if _TRITON_CLASS not in text and _TRITON_MODULE not in text:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError):
        return True
    return any(_names_triton(node) for node in nodes)


def _names_triton(node: ast.AST) -> bool:
    match node:
        case ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
            return name == _TRITON_CLASS
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            known = {alias.asname or alias.name for alias in names} | {getattr(node, "module", None)}
            return bool(known & {_TRITON_CLASS, _TRITON_MODULE}) or any(alias.name == _TRITON_MODULE for alias in names)
        case _:
            return False


class NoInner:
    """Where there is no engine around a backend: no model can be asked."""

    def call(self, request: Request, receive: Callable[[Response | HeadraceError], None]) -> Callable[[], None]:
        """See `Inner.call`."""
        raise ModelNotFound(request.model)

    def is_ready(self, model: str, version: int) -> bool:
        """See `Inner.is_ready`."""
        return False

    def is_decoupled(self, model: str, version: int) -> bool:
        """See `Inner.is_decoupled`."""
        return False

    def load(self, model: str, config: str | None, files: Mapping[str, bytes]) -> None:
        """See `Inner.load`."""
        raise NotAllowed("models are loaded on request by an engine, and here is none")

    def unload(self, model: str, *, dependents: bool) -> None:
        """See `Inner.unload`."""
        raise NotAllowed("models are unloaded on request by an engine, and here is none")
