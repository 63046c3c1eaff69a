"""The process of a model: `python -m headrace.backends.triton_python.worker DESCRIPTOR`, started by `process.py` beside it.

It imports `model.py`, completes its configuration, initializes it, and executes batches until the server is gone. Its main
thread is the one that executes, as with Triton.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.backends.channel import lay_out, receive, send, write
from headrace.backends.joining import joins, within
from headrace.backends.triton_python import api
from headrace.backends.triton_python.execution import Wrong, answers_of, check_returned, requests_of, words_of
from headrace.backends.triton_python.link import Link
from headrace.backends.triton_python.model_config import ModelConfig
from headrace.backends.triton_python.requests import InferenceRequest, InferenceResponse, Server, TritonError
from headrace.backends.triton_python.talk import Message, Over

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

_CLASS = "TritonPythonModel"
_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = 70
"""The exit status of a process that has met its limit."""


def serve(sock: socket.socket) -> None:
    """Load the model, then execute batches until there are no more."""
    try:
        order, _ = receive(sock)
        limit = order["memory_limit"]
        if limit:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        loaded = _load(order)
        send(sock, loaded[1])
        if loaded[0] is None:
            return
        Server.link = link = Link(sock)
        worker = Worker(loaded[0], order["name"], link, has_limit=bool(limit))
        while (order := link.next_order())["do"] != "close":
            worker.obey(order)
        worker.finalize()
    except (EOFError, BrokenPipeError, ConnectionResetError, Over):
        return  # so is the server


def _load(order: Mapping[str, Any]) -> tuple[type[Any] | None, Message]:
    """The class, and what to tell of it."""
    path = Path(order["file"])
    try:
        cls = _import(path, order["directory"])
        completing = getattr(cls, "auto_complete_config", None)
        if not (order["completes"] and callable(completing)):
            return cls, {"config": None}
        completed = completing(ModelConfig(order["config"]))
        if not isinstance(completed, ModelConfig):
            model = order["name"]
            raise Wrong(f"auto_complete_config function in model '{model}' must return a valid pb.ModelConfig object.")
        return cls, {"config": completed.as_dict()}
    except (Exception, SystemExit) as error:
        _print(error)
        return None, {"error": words_of(error)}


def _import(path: Path, directory: str) -> type[Any]:
    """The class of a `model.py`. It is a module of a package that is named as its version, as with Triton."""
    sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils", api.__doc__)
    given = {name: getattr(api, name) for name in api.__all__}
    vars(sys.modules["triton_python_backend_utils"]).update(given)
    for value in given.values():
        if isinstance(value, type):
            value.__module__ = "c_python_backend_utils"  # as messages name them
    api.model_dir = directory
    sys.path += [str(Path(directory).parent), directory]
    # Nothing is left in the repository.
    sys.dont_write_bytecode = True
    package = types.ModuleType(Path(directory).name)
    package.__path__ = [directory]
    sys.modules[package.__name__] = package
    module = types.ModuleType(f"{package.__name__}.{path.stem}")
    module.__file__, module.__package__ = str(path), package.__name__
    sys.modules[module.__name__] = module
    exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), vars(module))
    cls = getattr(module, _CLASS, None)
    if not isinstance(cls, type):
        raise Wrong(f"{path} has no class {_CLASS}; a model for Triton's Python backend is a class of that name")
    return cls


class Worker:
    """A model in its process."""

    def __init__(self, cls: type[Any], name: str, link: Link, *, has_limit: bool) -> None:
        self._class, self._name, self._link, self._has_limit = cls, name, link, has_limit
        self._model: Any = None
        self._outputs: frozenset[str] = frozenset()
        self._has_rows = self._is_decoupled = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def obey(self, order: Message) -> None:
        """Do what the server says."""
        if order["do"] == "initialize":
            self._initialize(order)
        else:
            self._execute(order)

    def finalize(self) -> None:
        """Let the model end. What it raises is for the log."""
        self._link.is_executing = False
        finalize = getattr(self._model, "finalize", None)
        if callable(finalize):
            try:
                finalize()
            except (Exception, SystemExit) as error:
                _print(error)

    def _initialize(self, order: Message) -> None:
        self._outputs = frozenset(order["outputs"])
        self._has_rows, self._is_decoupled = order["has_rows"], order["is_decoupled"]
        try:
            self._model = self._class()
            if callable(initialize := getattr(self._model, "initialize", None)):
                initialize(order["arguments"])
        except (Exception, SystemExit) as error:
            _print(error)
            self._link.send({"do": "ready", "error": words_of(error)})
            return
        # What is there now stays: no collection needs to look at it.
        gc.freeze()
        self._link.send({"do": "ready", "joins": joins()})

    # A batch.

    def _execute(self, order: Message) -> None:
        number, given, _ = order["numbers"]
        memory = self._link.region(given)
        inputs = weakref.ref(memory)
        requests = requests_of(order, memory, self._outputs, has_rows=self._has_rows, is_decoupled=self._is_decoupled)
        del memory
        told, error = self._called(order, requests)
        is_short = self._has_limit and isinstance(error, MemoryError)
        del error
        owing: list[int] = []
        if "names" not in told:  # which is an answer to each of them
            owing = [place for place, request in enumerate(requests) if request.get_response_sender().is_owing]
        if owing and "error" not in told:
            told["open"] = owing
            self._link.report_lost()
        elif "error" in told:
            for request in requests:
                request.settle()
        del requests
        self._link.is_executing = self._is_decoupled or "open" in told
        if is_short:
            told["ends"] = True
        # What the model has kept of its inputs must not be written over.
        told["do"], told["kept"], told["joins"] = "executed", inputs() is not None, joins()
        self._link.send(told, number, repeats="names" in told)
        if is_short:
            print(
                f"model '{self._name}' has met the limit of its memory: its process ends, and is started again", file=sys.stderr
            )
            os._exit(_OUT_OF_MEMORY)

    def _called(self, order: Message, requests: list[InferenceRequest]) -> tuple[Message, BaseException | None]:
        """What to tell of a call."""
        self._link.is_executing, self._link.executes = True, order["numbers"][0]
        try:
            with within(order.get("trace", "")):
                returned = self._run(requests)
            check_returned(returned, self._name, requests, is_decoupled=self._is_decoupled)
            if returned is None:
                return {}, None
            message, tensors = answers_of(order, requests, returned)
            places, nbytes = lay_out(tensors)
        except (Exception, SystemExit) as error:
            _print(error)
            return {"error": words_of(error)}, error
        number, _, taken = order["numbers"]
        into = self._link.region(taken)
        if into.nbytes < nbytes:
            into = self._link.region(self._link.ask("room", id=number, nbytes=nbytes)["to"])
        write(into, tensors, places)
        return {**message, "places": places, "nbytes": nbytes}, None

    def _run(self, requests: list[InferenceRequest]) -> list[InferenceResponse | None] | None:
        execute = getattr(self._model, "execute", None)
        if not callable(execute):
            raise Wrong(f"Python model {api.model_dir} does not implement `execute` method.")
        returned: Any = execute(requests)
        if not isinstance(returned, types.CoroutineType):
            return returned
        import asyncio  # which takes its time, and most models do without it

        if not self._is_decoupled:
            return asyncio.run(returned)
        self._run_in_background(returned, requests)
        return None

    def _run_in_background(self, coroutine: Coroutine[Any, Any, Any], requests: list[InferenceRequest]) -> None:
        """Of a decoupled model: the next batch need not wait for it."""
        import asyncio

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="headrace-coroutines", daemon=True).start()
        senders = [request.get_response_sender() for request in requests]

        def ended(done: Future[Any]) -> None:
            error = done.exception()
            if error is None:
                return
            _print(error)
            for sender in senders:
                if sender.is_owing:
                    sender.send(InferenceResponse(error=TritonError(words_of(error))), 1)

        asyncio.run_coroutine_threadsafe(coroutine, self._loop).add_done_callback(ended)


def _print(error: BaseException) -> None:
    """For the log of the server. The lines that are ours are of no use there."""
    if not isinstance(error, Wrong):
        traceback.print_exception(error)


def _end_with_server() -> None:
    """Be killed when the thread that started this process ends, even in the middle of something that never looks up."""
    with contextlib.suppress(OSError, AttributeError):  # not everywhere
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(descriptor: int) -> None:
    """Serve on the socket of this descriptor."""
    _end_with_server()
    with socket.socket(fileno=descriptor) as connection:
        connection.set_inheritable(False)
        serve(connection)


if __name__ == "__main__":
    main(int(sys.argv[1]))
