"""Engines with the real ONNX Runtime behind a gate, so that a test decides what shares a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import pytest

from headrace.backends.base import Batch, Device, Outputs, Session
from headrace.backends.fake import Gate
from headrace.backends.onnx import OnnxBackend
from headrace.engine.engine import Engine
from headrace.model import GraphIO
from headrace.protocol.headrace_pb2 import ModelConfig
from tests.build_models import add_model


@dataclass
class Gated:
    """The real session, behind a gate once there is one."""

    session: Session
    owner: GatedBackend

    @property
    def io(self) -> GraphIO:
        return self.session.io

    @property
    def replayable(self) -> bool:
        return self.session.replayable

    def run(self, batch: Batch) -> Outputs:
        self.owner.batches.append(batch.rows)
        if self.owner.gate is not None:
            self.owner.gate.enter()
        outputs = self.session.run(batch)
        assert isinstance(outputs, dict)
        return outputs

    def close(self) -> None:
        self.session.close()


@dataclass
class GatedBackend:
    """`OnnxBackend`; `batches` has the rows of every batch that ran."""

    gate: Gate | None = None
    batches: list[int] = field(default_factory=list)

    def load(self, path: Path, config: ModelConfig, device: Device) -> Session:
        return Gated(OnnxBackend().load(path, config, device), self)


@dataclass
class Started:
    """An engine that serves model `m` from `path`."""

    engine: Engine
    backend: GatedBackend
    path: Path


Start = Callable[..., Started]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(model, config)`."""
    with ExitStack() as stack:

        def serve(model: onnx.ModelProto | Path, config: str = "") -> Started:
            built = onnx.load(model) if isinstance(model, Path) else model
            path = add_model(tmp_path, "m", built, config)
            backend = GatedBackend()
            engine = stack.enter_context(Engine(tmp_path, backends={"onnxruntime": backend}))
            assert engine.ready, engine.statuses()
            backend.batches.clear()
            return Started(engine, backend, path)

        yield serve
