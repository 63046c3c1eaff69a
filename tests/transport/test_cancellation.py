"""Whoever gives up costs no run any more, or a run that is accounted as wasted: the ledger says so, and so do the backend's rows.

More of the same is where the ways to ask are tested: unary calls in test_waiting, streams in test_streams_bounds, REST in
tests/rest/test_connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest
import tritonclient.grpc as triton

from headrace.backends.fake import Gate, Script
from headrace.ledger.records import Outcome
from tests.transport.serving import ECHO, Asked, Serve, Server, tensor
from tests.transport.streaming import Raw, ended, one
from tests.transport.test_connections import DATA, HELLO, MESSAGE, call, connect, frame
from tests.waiting import until

SEQUENCES = ECHO.replace("dynamic_batching {}", "sequence_batching {}")


@dataclass
class Held:
    """A server whose one instance stands at the gate with a first request of one row."""

    server: Server
    script: Script
    gate: Gate
    first: Asked

    def ask(self, rows: int = 1, **options: object) -> Asked:
        """Ask, and return when it waits."""
        before = self.server.waiting("m")
        asked = Asked(self.server, "m", [tensor("x", np.zeros((rows, 1), np.int32))], **options)
        until(lambda: self.server.waiting("m") == before + 1)
        return asked

    def ends(self, **counts: int) -> bool:
        """Let everything run; whether it ended so."""
        self.gate.open()
        return ended(self.server, "m", **counts)

    def wasted(self) -> int:
        self.server.engine.ledger.drain()
        return sum(version.wasted_rows for version in self.server.engine.statistics.versions.values())


Hold = Callable[..., Held]


@pytest.fixture
def hold(serve: Serve) -> Iterator[Hold]:
    with ExitStack() as stack:

        def start(config: str = ECHO, **options: object) -> Held:
            script = Script()
            server = serve({"m": (config, script)})
            script.gate = gate = Gate()
            stack.callback(gate.open)
            first = Asked(server, "m", [tensor("x", [[0]])], **options)
            gate.wait_for(1)
            return Held(server, script, gate, first)

        yield start


def give_up(asked: Asked) -> None:
    asked.call.cancel()
    with pytest.raises(triton.InferenceServerException):
        asked.result()


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_a_connection_that_is_cut_takes_its_requests_along(hold: Hold, method: str) -> None:
    """They came complete, and the client is gone, without a word, before they could be answered."""
    held = hold()
    with ExitStack() as sockets:
        cut = connect(held.server, sockets)
        ends = int(method == "ModelInfer")
        cut.sendall(HELLO + call(f"/inference.GRPCInferenceService/{method}") + frame(DATA, ends, 1, MESSAGE))
        until(lambda: held.server.waiting("m") == 1)
    until(lambda: held.server.waiting("m") == 0)
    assert held.ends(ANSWERED=1, CANCELLED=1)
    assert (sum(held.script.batches), held.wasted()) == (1, 0)


def test_a_channel_that_is_closed_ends_its_stream(hold: Hold) -> None:
    held = hold()
    with Raw(held.server) as raw:
        raw.ask(*(one(value) for value in range(3)))
        until(lambda: held.server.waiting("m") == 3)
        raw._channel.close()
        until(lambda: held.server.waiting("m") == 0)
    assert held.ends(ANSWERED=1, CANCELLED=3)
    assert (sum(held.script.batches), held.wasted()) == (1, 0)


def test_one_that_stands_behind_another_of_its_sequence(hold: Hold) -> None:
    """It is in no order yet, and leaves all the same; who stands behind it comes up."""
    held = hold(SEQUENCES, sequence_id=7, sequence_start=True)
    behind, last = held.ask(rows=2, sequence_id=7), held.ask(rows=4, sequence_id=7, sequence_end=True)
    give_up(behind)
    until(lambda: held.server.waiting("m") == 1)
    assert held.ends(ANSWERED=2, CANCELLED=1)
    assert last.result().as_numpy("y").shape == (4, 1)
    assert (held.script.batches, held.wasted()) == ([1, 4], 0)


def test_one_of_a_batch_that_runs_is_wasted_and_the_others_are_answered(hold: Hold) -> None:
    held = hold()
    asked = [held.ask(rows) for rows in (1, 3, 2)]
    held.gate.let()
    held.gate.wait_for(2)
    give_up(asked[1])
    # The cancellation has come when a later one on the same connection has.
    give_up(held.ask(rows=5))
    until(lambda: held.server.waiting("m") == 0)
    assert held.ends(ANSWERED=3, CANCELLED=2)
    assert [asked[index].result().as_numpy("y").shape for index in (0, 2)] == [(1, 1), (2, 1)]
    assert (held.script.batches, held.wasted()) == ([1, 6], 3)
    (stats,) = held.server.client.get_inference_statistics("m").model_stats
    assert (stats.inference_count, stats.inference_stats.fail.count) == (1 + 1 + 2, 2)


def test_all_of_a_batch_that_runs(hold: Hold) -> None:
    held = hold()
    asked = [held.ask(rows) for rows in (1, 3)]
    held.gate.let()
    held.gate.wait_for(2)
    for each in asked:
        give_up(each)
    give_up(held.ask())
    until(lambda: held.server.waiting("m") == 0)
    assert held.ends(ANSWERED=1, CANCELLED=3)
    assert (held.script.batches, held.wasted()) == ([1, 4], 4)
    assert held.server.ledger("m")[Outcome.FAILED] == 0
