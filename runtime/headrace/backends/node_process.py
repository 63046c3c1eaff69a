"""A node in a process of its own (`worker.py`). Calls go straight to the process, one at a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from headrace.backends.channel import Regions, lay_out, look, send, unflat, write
from headrace.backends.joining import UNTRACED, Traced, trace_of
from headrace.backends.nodes import Declared, Result, Timeouts
from headrace.backends.process import Keeper, Process, ProcessGone, check_possible, python_of
from headrace.errors import BackendFailed, HeadraceError, InvalidRepository, InvalidRequest
from headrace.node import Context
from headrace.tensor import Tensor

_MODULE = "headrace.backends.worker"


class NodeProcess(Process):
    """One process that runs a node.

    Raises:
        OSError: the system gives no process, or no descriptors.
    """

    def __init__(self, name: str) -> None:
        super().__init__("node", name, *python_of(_MODULE))
        self._regions, self._expected = Regions(), 0
        self._joins = False
        """Whether what runs there may trace."""

    def load(self, where: str, context: Context, seconds: float) -> Declared:
        """Let it load the node.

        Raises:
            InvalidRepository: it cannot, or did not in this time.
        """
        order = {"where": where, "name": context.name, "directory": str(context.directory), "parameters": context.parameters}
        try:
            send(self._socket, order)
            answer, _ = self.next_message(seconds)
        except (ProcessGone, OSError) as error:
            raise InvalidRepository(f"the process of node '{self.name}' {self.how_gone(error)}, while it was loading") from None
        if "error" in answer:
            raise InvalidRepository(answer["error"])
        self._joins = answer["joins"]
        return Declared.of(self.name, answer["loaded"])

    def run(self, tensors: Mapping[str, Tensor], batch: Traced, seconds: float) -> Result:
        """See `NodeRunner.run`.

        Raises:
            ProcessGone: it ended, or took longer than this; then there are no more calls.
        """
        with self._in_use:
            if self._is_closed:
                raise ProcessGone(self._why)
            try:
                return self._run(tensors, trace_of(batch.heads) if self._joins else "", seconds)
            except BrokenPipeError as error:
                raise ProcessGone(self.how_gone(error)) from None

    def _run(self, tensors: Mapping[str, Tensor], trace: str, seconds: float) -> Result:
        values = list(tensors.values())
        places, nbytes = lay_out(values)
        given, taken = self._regions.take(nbytes), self._regions.take(self._expected)
        write(given.memory(), values, places)
        order: dict[str, Any] = {"do": "run", "inputs": tuple(zip(tensors, places, strict=True))}
        if trace:
            order["trace"] = trace
        self._regions.send(self._socket, order, (given.number, taken.number, 0), repeats=not trace)
        memory = self._regions.lend(taken)  # while it runs
        answer, _ = self.next_message(seconds)
        if "needs" in answer:
            taken = self._regions.take(answer["needs"])
            self._regions.send(self._socket, {}, (given.number, taken.number, 0))
            memory = self._regions.lend(taken)
            answer, _ = self.next_message(seconds)
        self._joins = answer["joins"]
        if answer["kept"]:
            self._regions.drop(given)
        else:
            self._regions.give_back(given)
        if "error" in answer:
            raise self._failure(answer)
        self._expected = max(self._expected, answer["nbytes"])
        return unflat(answer, [look(memory, place) for place in answer["places"]])

    def _failure(self, answer: Mapping[str, Any]) -> HeadraceError:
        if answer["is_clients"]:
            return InvalidRequest(answer["error"])
        self.log.error("node '%s' failed: %s\n%s", self.name, answer["error"], answer["trace"].rstrip())
        return BackendFailed(answer["error"])


class ProcessRunner:
    """A node in a process of its own. See `open_node`."""

    def __init__(self, where: str, context: Context, timeouts: Timeouts) -> None:
        _check_possible(context)
        self.name, self._where, self._context, self._timeouts = context.name, where, context, timeouts
        self._turn = threading.Lock()
        self._declared: Declared | None = None
        self._keeper = Keeper("node", context.name, lambda: NodeProcess(context.name), self._load)
        declared = self._declared
        assert declared is not None
        self.inputs, self.outputs = declared.inputs, declared.outputs
        self.rows, self.replayable = declared.rows, declared.replayable

    @property
    def pid(self) -> int | None:
        """The number of its process, while there is one that can be asked."""
        return self._keeper.pid

    def run(self, tensors: Mapping[str, Tensor], batch: Traced = UNTRACED) -> Result:
        """See `NodeRunner.run`.

        Raises:
            BackendFailed: also when the process ends meanwhile, or takes too long.
        """
        with self._turn:
            process = self._keeper.process()
            try:
                result = process.run(tensors, batch, self._timeouts.run)
            except ProcessGone as gone:
                raise self._keeper.failed(gone) from None
            self._keeper.went_well()
            return result

    def close(self) -> None:
        """See `NodeRunner.close`."""
        self._keeper.close()

    def _load(self, process: NodeProcess) -> None:
        declared = process.load(self._where, self._context, self._timeouts.load)
        if self._declared not in (None, declared):
            raise BackendFailed(
                f"node '{self.name}' declares other tensors than when it was loaded: its files have changed; load it again"
            )
        self._declared = declared


def _check_possible(context: Context) -> None:
    check_possible(f"node '{context.name}'")
    try:
        json.dumps(context.parameters)
    except (TypeError, ValueError) as error:
        raise InvalidRepository(
            f"node '{context.name}': its parameters cannot be sent to its process ({error}); "
            "use numbers, texts, lists and mappings by name, or isolation 'thread'"
        ) from None
