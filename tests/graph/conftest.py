"""Servers of graphs: fake models, classes beside a `graph.yaml`, and both transports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from headrace.backends.fake import FakeBackend, Script
from tests.transport.serving import TRANSPORTS, Server, serving

MODEL = """
backend: "fake"
max_batch_size: {rows}
input {{ name: "x" data_type: TYPE_FP32 dims: {dims} }}
output {{ name: "y" data_type: TYPE_FP32 dims: {dims} }}
dynamic_batching {{ }}
{more}
"""

NODES = """
import numpy as np

from headrace.node import Rows


class Node:
    def load(self, context):
        self.context = context


"""

Serve: TypeAlias = Callable[..., Server]


class Home:
    """A repository of graphs and of fake models that they run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.scripts: dict[str, Script] = {}

    def model(self, name: str, script: Script | None = None, *, rows: int = 8, dims: str = "[ 3 ]", more: str = "") -> None:
        self.config(name, MODEL.format(rows=rows, dims=dims, more=more))
        self.scripts[name] = script or Script()

    def config(self, name: str, text: str) -> None:
        place = self.root / name
        (place / "1").mkdir(parents=True, exist_ok=True)
        (place / "config.pbtxt").write_text(text)

    def graph(self, name: str, text: str, nodes: str = "") -> None:
        place = self.root / name
        place.mkdir(parents=True, exist_ok=True)
        if nodes:
            (place / "nodes.py").write_text(NODES + nodes)
        (place / "graph.yaml").write_text(text)


def statistics(server: Server, name: str = "") -> Any:
    """What the server says of a model, and of what is within it."""
    told: Any = server.client.get_inference_statistics(name)
    return told.model_stats


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """The way in, by name."""
    return request.param


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "models")


@pytest.fixture
def serve(transport: str, home: Home) -> Iterator[Serve]:
    """Starts a server of `home`; what warmed it up is not in the scripts."""
    with ExitStack() as stack:

        def start(**options: Any) -> Server:
            scripts: Mapping[str, Script] = home.scripts
            server = stack.enter_context(serving(transport, home.root, {"fake": FakeBackend(scripts)}, **options))
            for script in scripts.values():
                script.batches.clear()
            return server

        yield start
