"""Which instances do not move: those that have ended, and those whose session does not come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from headrace import Engine
from headrace.backends.fake import FakeBackend, Gate, Script
from headrace.clock import SECOND, VirtualClock
from tests.engine.conftest import Store
from tests.waiting import until

ROW = np.ones((1, 2), np.float32)


@contextmanager
def serving(store: Store) -> Iterator[tuple[Engine, VirtualClock, Gate, Callable[[], Future]]]:
    """An engine whose batches stand before a gate, and what asks it for one."""
    store.add("m")
    clock, gate = VirtualClock(), Gate()
    gate.let()  # warm-up
    backends = {"fake": FakeBackend({"m": Script(gate=gate)})}
    with ThreadPoolExecutor() as pool, Engine(store.root, backends=backends, clock=clock) as engine:
        yield engine, clock, gate, lambda: pool.submit(engine.infer, "m", {"x": ROW})


def test_a_hang_is_told_while_it_lasts(store: Store) -> None:
    with serving(store) as (engine, clock, gate, ask):
        asked = ask()
        gate.wait_for(2)
        clock.advance(10 * SECOND)
        assert engine.stalled(10) == []
        clock.advance(1)
        assert engine.stalled(10) == ["m/1#0 has not come back from its batch"]
        gate.open()
        asked.result(20)
        until(lambda: engine.stalled(0) == [])


def test_who_comes_back_between_batches_is_busy(store: Store) -> None:
    with serving(store) as (engine, clock, gate, ask):
        for batch in range(2, 6):
            asked = ask()
            gate.wait_for(batch)
            clock.advance(9 * SECOND)
            assert engine.stalled(10) == []
            gate.let()
            asked.result(20)


def test_instances_that_were_let_go_are_not_missed(store: Store) -> None:
    store.add("m")
    with Engine(store.root, backends={"fake": FakeBackend()}) as engine:
        (running,) = engine.catalog.running()
        engine.unload("m")
        running.retire(0, engine.clock)
        assert running.stalled(engine.clock.now()) == []
        assert engine.stalled(10) == []
