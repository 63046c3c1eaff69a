"""A process that works while the answers of the batch before are written, and a batch that has to wait for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from headrace.backends.triton_python.session import TritonSession
from headrace.backends.zeros import Zeros
from headrace.engine.engine import Engine
from tests.transport.serving import Asked, Server, serving, tensor
from tests.triton_python.conftest import write_model
from tests.waiting import until

BEGINS_AND_WAITS = """
value = int(x_of(requests[0])[0])
if value:
    for what, mode in (("began", "w"), ("go", "r")):
        open(f"{PLACE}/{what}{value}", mode).close()
return [response(x_of(request)) for request in requests]
"""
"""Each side of a named pipe waits for the other to open it."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for value in (1, 2):
        for what in ("began", "go"):
            os.mkfifo(tmp_path / f"{what}{value}")
    write_model(tmp_path / "models", "m", BEGINS_AND_WAITS.replace("{PLACE}", str(tmp_path)))
    return tmp_path


@pytest.fixture
def server(transport: str, place: Path) -> Iterator[Server]:
    with serving(transport, place / "models") as server:
        yield server


def ask(server: Server, value: int) -> Asked:
    return Asked(server, "m", [tensor("x", np.array([value], np.int32))])


def value_of(asked: Asked) -> int:
    answer = asked.result().as_numpy("y")
    assert answer is not None
    return int(answer[0])


def begun(place: Path, value: int) -> None:
    (place / f"began{value}").read_bytes()


def let(place: Path, value: int) -> None:
    (place / f"go{value}").write_bytes(b"")


def test_an_answer_leaves_while_the_process_has_the_next_batch(server: Server, place: Path) -> None:
    first = ask(server, 1)
    begun(place, 1)
    second = ask(server, 2)
    until(lambda: server.waiting("m") == 1)
    let(place, 1)
    begun(place, 2)
    assert value_of(first) == 1  # the second is in the process
    let(place, 2)
    assert value_of(second) == 2


class Told(Zeros):
    """Says when it is away."""

    aways = 0

    def away(self) -> None:
        self.aways += 1


@pytest.mark.usefixtures("leaves_nothing")
def test_a_batch_that_waits_for_the_process_keeps_nobody_waiting(place: Path) -> None:
    """Not for the batch of another that the process has: a graph's, or a variant's."""
    with Engine(place / "models") as engine, ThreadPoolExecutor(2) as pool:
        opened = engine.catalog.running()[0].opened
        session, batch = opened.sessions[0][0], Told(opened.spec)
        assert isinstance(session, TritonSession)
        other = pool.submit(engine.infer, "m", {"x": np.int32([1])})
        begun(place, 1)
        waiting = pool.submit(session.run, batch)
        until(lambda: batch.aways == 1)
        assert not waiting.done()
        let(place, 1)
        assert other.result()["y"].tolist() == [1]
        assert waiting.result() is not None
        assert batch.aways == 2, "again, when the process had it"
