"""A model for Triton's Python backend as a session: as many processes as the configuration wants instances."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.backends.base import Batch, Device, Inner, Outputs, Piece
from headrace.backends.nodes import Timeouts
from headrace.backends.process import Keeper, ProcessGone, check_possible, python_of
from headrace.backends.triton_python.completing import complete_from, config_json
from headrace.backends.triton_python.counted import Counted
from headrace.backends.triton_python.process import ModelProcess
from headrace.backends.triton_python.talk import Message
from headrace.clock import MICROSECOND
from headrace.errors import InvalidRepository
from headrace.model import GraphIO
from headrace.protocol.headrace_pb2 import ModelConfig, ModelInstanceGroup
from headrace.request import Head
from headrace.series import Series

_MODULE = "headrace.backends.triton_python.worker"
_ENVIRONMENT = "EXECUTION_ENV_PATH"
_DIRECTORY = "$$TRITON_MODEL_DIRECTORY"
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
_IN_ANOTHER = """\
import importlib.util, sys
spec = importlib.util.spec_from_file_location("headrace", {init!r}, submodule_search_locations=[{home!r}])
sys.modules["headrace"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from headrace.backends.triton_python.worker import main
main(int(sys.argv[1]))
"""
"""How an interpreter of another environment comes to this package, and to no other of ours."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says of the processes of a model."""

    timeouts: Timeouts
    memory_limit: int
    """In bytes; 0 is none."""


class TritonSession:
    """See `Session`.

    Args:
        path: of the version.
        config: of the model; what `auto_complete_config` says is written into it.
        device: where it runs, which the model is told.
        settings: of its processes.
        inner: the way into the engine.

    Raises:
        InvalidRepository: it cannot be loaded.
    """

    io = GraphIO((), ())
    """Nothing but its configuration says what a model takes and gives."""
    replayable = False
    stands_zeros = False
    """A model is called for requests only, as with Triton: it may count them."""
    runs_elsewhere = True

    def __init__(self, path: Path, config: ModelConfig, device: Device, settings: Settings, inner: Inner) -> None:
        check_possible(f"model '{config.name}'")
        self._path, self._config, self._device, self._settings, self._inner = path, config, device, settings, inner
        self._name, self._file = config.name, path / (config.default_model_filename or "model.py")
        self._program, self._environment = program_of(path.parent, config)
        self._is_completed = False
        self._counted = Counted(self._name)
        self._keepers: list[Keeper[ModelProcess]] = []
        self._idle: list[Keeper[ModelProcess]] = []
        """The last one used is warm."""
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        """As many as are idle: to wait for one."""
        try:
            for instance in instances_of(config, device):
                keeper = Keeper("model", self._name, lambda name=instance: self._start(name), self._load)
                self._keepers.append(keeper)
                self._put(keeper)
        except BaseException:
            self.close()
            raise
        self._is_decoupled = config.model_transaction_policy.decoupled
        self._outputs = tuple(output.name for output in config.output)

    @property
    def pids(self) -> list[int | None]:
        """The numbers of its processes; None for one that cannot be asked now."""
        return [keeper.pid for keeper in self._keepers]

    def own_series(self) -> list[Series]:
        """See `Counting`."""
        return self._counted.series()

    def run(self, batch: Batch) -> Outputs | Iterator[Piece] | None:
        """See `Session.run`."""
        # Nobody's answers wait for the batch of another, nor for a process that comes up.
        try:
            self._free.get_nowait()
        except queue.Empty:
            batch.away()
            self._free.get()
        keeper = self._idle.pop()
        try:
            process = keeper.running()
            if process is None:
                batch.away()
                process = keeper.process()
            heads = batch.heads
            try:
                result = process.execute(batch, heads, self._order(heads, batch.offsets), is_decoupled=self._is_decoupled)
            except ProcessGone as gone:
                raise keeper.failed(gone) from None
            keeper.went_well()
        finally:
            self._put(keeper)
        return iter(result) if isinstance(result, list) else result

    def close(self) -> None:
        """See `Session.close`."""
        for keeper in self._keepers:
            keeper.close()

    def _put(self, keeper: Keeper[ModelProcess]) -> None:
        self._idle.append(keeper)
        self._free.put(None)

    # Coming up.

    def _start(self, instance: str) -> ModelProcess:
        seconds = self._settings.timeouts.run
        return ModelProcess(self._name, instance, self._program, self._environment, self._inner, self._counted, seconds)

    def _load(self, process: ModelProcess) -> None:
        config, seconds = self._config, self._settings.timeouts.load
        told = process.load(
            {
                "name": self._name,
                "file": str(self._file),
                "directory": str(self._path),
                "config": config_json(config),
                "completes": not self._is_completed,
                "memory_limit": self._settings.memory_limit,
            },
            seconds,
        )
        if not self._is_completed:
            if told is not None:
                complete_from(config, told)
            if not (config.input and config.output):
                raise InvalidRepository(
                    f"model '{self._name}' declares no {'output' if config.input else 'input'}: write it into config.pbtxt, or "
                    "add it in auto_complete_config"
                )
            self._is_completed = True
        arguments = {
            "model_config": config_json(config),
            "model_instance_kind": self._device.kind,
            "model_instance_name": process.instance,
            "model_instance_device_id": str(self._device.index),
            "model_repository": str(self._path.parent),
            "model_version": self._path.name,
            "model_name": self._name,
        }
        process.initialize(
            {
                "arguments": arguments,
                "outputs": [output.name for output in config.output],
                "has_rows": config.max_batch_size > 0,
                "is_decoupled": config.model_transaction_policy.decoupled,
            },
            seconds,
        )

    # What is told of a batch.

    def _order(self, heads: Sequence[Head], offsets: Sequence[int]) -> Message:
        odd: dict[int, Message] = {}
        for place, head in enumerate(heads):
            outputs = head.outputs if len(head.outputs) < len(self._outputs) else None
            if outputs is not None or head.parameters or head.timeout_ns or head.sequence is not None:
                odd[place] = _odd_of(head, outputs)
        return {"ids": tuple([head.id for head in heads]), "odd": odd or None, "offsets": tuple(offsets)}


def _odd_of(request: Head, outputs: tuple[str, ...] | None) -> Message:
    """What most requests do not have."""
    odd: Message = {} if outputs is None else {"outputs": outputs}
    if request.parameters:
        odd["parameters"] = dict(request.parameters)
    if request.timeout_ns:
        odd["timeout"] = request.timeout_ns // MICROSECOND
    if request.sequence is not None:
        odd["correlation_id"] = request.sequence.id
        odd["flags"] = int(request.sequence.start) | int(request.sequence.end) << 1
    return odd


def instances_of(config: ModelConfig, device: Device) -> list[str]:
    """The names of the instances that run on a device."""
    kind = ModelInstanceGroup.KIND_GPU if device.kind == "GPU" else ModelInstanceGroup.KIND_CPU
    names: list[str] = []
    for group in config.instance_group:
        is_here = device.index in group.gpus if group.kind == ModelInstanceGroup.KIND_GPU else device.kind != "GPU"
        if is_here and (group.kind == kind or device.kind != "GPU"):
            names += [f"{group.name}_{number}" for number in range(group.count)]
    return names or [f"{config.name}_0"]


def program_of(directory: Path, config: ModelConfig) -> tuple[list[str], dict[str, str]]:
    """Program and environment of the processes of a model: this interpreter, or the one that EXECUTION_ENV_PATH says.

    Raises:
        InvalidRepository: that is no environment that can be used.
    """
    if _ENVIRONMENT not in config.parameters:
        return python_of(_MODULE)
    said = config.parameters[_ENVIRONMENT].string_value
    who = f"model '{config.name}': {_ENVIRONMENT} is '{said}'"
    path = Path(said.replace(_DIRECTORY, str(directory)))
    if said.endswith(_ARCHIVES):
        raise InvalidRepository(f"{who}, an archive: unpack it, and write the directory instead")
    python = path / "bin" / "python" if path.is_dir() else path
    if not python.is_file():
        raise InvalidRepository(f"{who}; it must be the directory of an environment, with bin/python, or an interpreter")
    home = Path(__file__).parents[2]
    text = _IN_ANOTHER.format(init=str(home / "__init__.py"), home=str(home))
    return [str(python), "-P", "-X", "faulthandler", "-c", text], {"PYTHONPATH": ""}
