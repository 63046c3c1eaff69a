"""The process of a node: `python -m headrace.backends.worker DESCRIPTOR`, started by `headrace.backends.node_process`.

It does what the messages on that socket say, one after the other, and ends when the socket does.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import socket
import sys
import traceback
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.backends.channel import Mapped, Memory, flat, lay_out, look, receive, send, write
from headrace.backends.joining import joins
from headrace.backends.nodes import LocalRunner, failure_of
from headrace.errors import InvalidRepository, InvalidRequest
from headrace.node import Context
from headrace.tensor import Tensor

_PR_SET_PDEATHSIG = 1


def serve(sock: socket.socket) -> None:
    """Load the node, then run batches until there are no more."""
    try:
        order, _ = receive(sock)
        runner = _load(order, sock)
        if runner is None:
            return
        mapped = Mapped()
        while True:
            order, descriptors = receive(sock)
            if order["do"] == "close":
                runner.close()
                return
            mapped.learn(order, descriptors)
            answer, inputs = _run(runner, mapped, order, sock)
            # What the node has kept of its inputs must not be written over.
            answer["kept"], answer["joins"] = inputs() is not None, joins()
            send(sock, answer, repeats="names" in answer)
    except (EOFError, BrokenPipeError):
        return  # so is the server


def _load(order: Mapping[str, Any], sock: socket.socket) -> LocalRunner | None:
    try:
        runner = LocalRunner(order["where"], Context(order["name"], Path(order["directory"]), order["parameters"]))
    except InvalidRepository as error:
        send(sock, {"error": error.message})
        return None
    written = {**runner.written, "inputs": dict(runner.written["inputs"]), "outputs": dict(runner.written["outputs"])}
    send(sock, {"loaded": written, "joins": joins()})
    return runner


def _run(
    runner: LocalRunner, mapped: Mapped, order: Mapping[str, Any], sock: socket.socket
) -> tuple[dict[str, Any], weakref.ref[Memory]]:
    """The answer, and what tells whether the inputs are still looked at."""
    given, taken, _ = order["numbers"]
    memory = mapped.readable(given)
    inputs = weakref.ref(memory)
    rows: dict[str, Tensor] = {name: look(memory, place) for name, place in order["inputs"]}
    try:
        message, tensors = flat(runner.call(rows, order.get("trace", "")))
    except Exception as error:
        return _failed(error), inputs
    places, nbytes = lay_out(tensors)
    into = mapped.writable(taken)
    if into.nbytes < nbytes:
        send(sock, {"needs": nbytes})
        order, descriptors = receive(sock)
        mapped.learn(order, descriptors)
        into = mapped.writable(order["numbers"][1])
    write(into, tensors, places)
    return {**message, "places": places, "nbytes": nbytes}, inputs


def _failed(error: Exception) -> dict[str, Any]:
    # Not in `_run`: its frame would then hold the error that holds the frame, and with it the inputs.
    told = failure_of(error)
    is_clients = isinstance(told, InvalidRequest)
    trace = "" if is_clients else "".join(traceback.format_exception(error))
    return {"error": told.message, "is_clients": is_clients, "trace": trace}


def _end_with_server() -> None:
    """Be killed when the thread that started this process ends, even in the middle of something that never looks up."""
    with contextlib.suppress(OSError, AttributeError):  # not everywhere
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    _end_with_server()
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        connection.set_inheritable(False)
        serve(connection)
