"""Nodes in files, run in this process and in one of their own."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from textwrap import dedent

import pytest

from headrace.backends.nodes import NodeRunner, Timeouts, open_node
from headrace.node import Context
from tests.waiting import until

Open = Callable[..., NodeRunner]

NODE = """
import os, signal, sys, threading, time
from pathlib import Path
import numpy as np
from headrace.errors import InvalidRequest
from headrace.node import Rows

class Model:
    inputs = {{"x": "FP32[-1]"}}
    outputs = {{"y": "FP32[-1]"}}
    def load(self, context):
        self.context = context
    def run(self, tensors):
        x = tensors["x"]
{body}
"""
"""A module whose class `Model` takes x, and returns y."""


def write_node(directory: Path, text: str, file: str = "model.py") -> None:
    """A file with that text; or, when it has no class, with `NODE` and that text as the body of `run`."""
    text = dedent(text).strip("\n")
    if "class " not in text:
        text = NODE.format(body="\n".join(f"        {line}" for line in text.split("\n")))
    (directory / file).write_text(text)


@pytest.fixture(params=["thread", "process"])
def isolation(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """`opened(text, isolation, parameters, timeouts)`: the node `n` of that text; see `write_node`."""
    with ExitStack() as stack:

        def start(
            text: str, isolation: str, parameters: dict[str, object] | None = None, timeouts: Timeouts | None = None
        ) -> NodeRunner:
            write_node(tmp_path, text)
            runner = open_node("model.py:Model", Context("n", tmp_path, parameters or {}), isolation, timeouts or Timeouts())
            stack.callback(runner.close)
            return runner

        yield start


def descriptors() -> dict[str, str]:
    """The open descriptors of this process, and what each is."""
    found: dict[str, str] = {}
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing itself
            found[link.name] = str(link.readlink())
    return found


def children() -> set[str]:
    """The processes that this one has started and that are still there, dead or alive."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            found.update((task / "children").read_text().split())
    return found


@pytest.fixture
def leaves_nothing(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No descriptors and no processes are left when the test is over. To be asked for before what might leave some."""
    before = descriptors().items() | {(child, "a process") for child in children()}
    yield
    # Errors hold the frames in which they were raised, and those the memory that was in use there.
    caplog.get_records("call").clear()
    gc.collect()

    def left() -> set[tuple[str, str]]:
        return (descriptors().items() | {(child, "a process") for child in children()}) - before

    try:
        until(lambda: not left())
    except AssertionError:
        assert not left()  # and this says what is left
