"""The near side: a repository whose models run on a Triton, and what serves it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from onnx import TensorProto, helper

from headrace.backends.triton.portable import PortableChannel
from headrace.backends.triton.session import TritonSession
from headrace.engine.engine import Engine
from tests.build_models import add_model
from tests.transport.serving import Server, serving
from tests.triton.far import Triton
from tests.waiting import until

FORWARD = {"header_forward_pattern": "^tracestate$"}


def parameters(**values: object) -> str:
    """Parameters of a configuration."""
    return "\n".join(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in values.items())


def doubling() -> onnx.ModelProto:
    """The model `doubles`, for ONNX Runtime."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubles", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Here:
    """A repository, and what runs of it until the test is over."""

    def __init__(self, repository: Path, stack: ExitStack, far: Triton) -> None:
        self.repository, self.stack, self._far = repository, stack, far
        repository.mkdir()

    def add(self, name: str, url: str, config: str = "", **settings: object) -> None:
        """A model that runs at `url`, in an empty version directory."""
        if self._far.is_running:
            self._far.load(str(settings.get("model", name)))
        add_model(self.repository, name, None, f'backend: "triton"\n{config}\n{parameters(url=url, **settings)}')

    def add_several(self, url: str, backends: str, model: onnx.ModelProto | None, **settings: object) -> None:
        """The model `doubles` on several backends."""
        config = f'backend: "several"\n{parameters(url=url, backends=backends, **settings)}'
        add_model(self.repository, "doubles", model, config)

    def serve(self, transport: str, **options: Any) -> Server:
        """A server of them, on a transport."""
        return self.stack.enter_context(serving(transport, self.repository, transport_options=FORWARD, **options))

    def engine(self, **options: Any) -> Engine:
        """They in this process."""
        return self.stack.enter_context(Engine(self.repository, **options))


def session_of(engine: Engine, model: str) -> TritonSession:
    found = next(each for each in engine.catalog.running() if each.opened.spec.name == model)
    session = found.opened.sessions[0][0]
    assert isinstance(session, TritonSession)
    return session


def wait_until_gone(session: TritonSession) -> None:
    """Wait until a session that is idle can know that its server is gone: at the next request, for the kernels ask then."""
    (line,) = session._client._free
    if isinstance(line.channel, PortableChannel):
        states: list[grpc.ChannelConnectivity] = []
        line.channel._channel.subscribe(states.append)
        until(lambda: bool(states) and states[-1] is not grpc.ChannelConnectivity.READY)
        line.channel._channel.unsubscribe(states.append)


def named_memory(process: int = 0) -> set[str]:
    """The shared memory that this process, or another one, has made for a Triton and that still has a name."""
    return {file.name for file in Path("/dev/shm").glob(f"headrace-{process or os.getpid()}-*")}


def reason_of(engine: Engine, model: str) -> str:
    """Why a model is not ready."""
    (status,) = [status for status in engine.statuses() if status.model == model]
    return status.reason


def rows(*firsts: float) -> np.ndarray[Any, Any]:
    """A row for each of these first numbers, for `doubles`."""
    return np.array([[first, 1, 2, 3] for first in firsts], np.float32)
