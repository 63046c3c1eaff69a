"""The engine with fake models: infer in process, failures, draining."""

from __future__ import annotations

import asyncio
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from headrace import Engine
from headrace.backends.fake import FakeBackend, Gate, Script
from headrace.clock import SECOND
from headrace.engine.engine import ModelControl
from headrace.errors import (
    BackendFailed,
    DeadlineExpired,
    Draining,
    InvalidRepository,
    InvalidRequest,
    ModelNotFound,
    NotAllowed,
    QueueClosed,
    Unsupported,
)
from headrace.ledger.records import Outcome
from tests.engine.conftest import Store
from tests.waiting import until

ROW = np.ones((1, 2), np.float32)


def start(store: Store, script: Script | None = None, **keywords) -> Engine:
    engine = Engine(store.root, backends={"fake": FakeBackend({"m": script or Script()})}, **keywords)
    engine.start()
    return engine


def outcomes(engine: Engine) -> dict[Outcome, int]:
    engine.ledger.drain()
    totals = engine.statistics.versions.values()
    return {o: n for o in Outcome if (n := sum(t.outcomes[o] for t in totals))}


def test_infer_goes_through_the_queue_and_comes_back(store: Store) -> None:
    store.add("m")
    with start(store) as engine:
        answer = engine.infer("m", {"x": ROW * 7})
        np.testing.assert_array_equal(answer["y"], ROW * 7)
        assert outcomes(engine) == {Outcome.ANSWERED: 1}
        assert engine.ready


def test_infer_raises_what_a_remote_client_would_get(store: Store) -> None:
    store.add("m")
    with start(store) as engine:
        with pytest.raises(ModelNotFound, match="Request for unknown model: 'nope' is not found"):
            engine.infer("nope", {"x": ROW})
        with pytest.raises(InvalidRequest, match="data-type is 'FP64', but model 'm' expects 'FP32'"):
            engine.infer("m", {"x": ROW.astype(np.float64)})
        with pytest.raises(InvalidRequest, match=r"got \[1\]"):
            engine.infer("m", {"x": ROW[0, :1]})
        with pytest.raises(InvalidRequest, match="numpy dtype 'complex128' is no V2 datatype"):
            engine.infer("m", {"x": np.ones((1, 2), complex)})
        for timeout in (0, -1, float("nan"), float("inf")):
            with pytest.raises(InvalidRequest, match="give seconds above 0"):
                engine.infer("m", {"x": ROW}, timeout=timeout)
        assert np.array_equal(engine.infer("m", {"x": ROW})["y"], ROW), "and goes on"


def test_async_infer(store: Store) -> None:
    store.add("m")

    async def many(engine: Engine) -> list:
        return await asyncio.gather(*(engine.infer_async("m", {"x": ROW * n}) for n in range(20)))

    with start(store) as engine:
        answers = asyncio.run(many(engine))
        assert [float(a["y"][0, 0]) for a in answers] == list(range(20))


def test_cancelling_an_async_infer_takes_it_out_of_the_queue(store: Store) -> None:
    store.add("m")
    script = Script()

    async def cancel_one(engine: Engine) -> None:
        first = asyncio.ensure_future(engine.infer_async("m", {"x": ROW}))
        await asyncio.to_thread(script.gate.wait_for, 2)
        second = asyncio.ensure_future(engine.infer_async("m", {"x": ROW * 2}))
        while engine.routes.resolve("m").queue.depth().requests == 0:
            await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        script.gate.open()
        assert np.array_equal((await first)["y"], ROW)

    engine, _ = gated(store, script)
    with engine:
        asyncio.run(cancel_one(engine))
        assert outcomes(engine) == {Outcome.ANSWERED: 1, Outcome.CANCELLED: 1}
    assert script.batches == [1, 1], "warm-up and the first"


def gated(store: Store, script: Script, **keywords) -> tuple[Engine, Gate]:
    """An engine whose gate stands open for the warm-up only."""
    gate = script.gate = Gate()
    gate.let(1)
    engine = start(store, script, **keywords)
    return engine, gate


def test_what_queues_while_an_instance_runs_becomes_one_batch(store: Store) -> None:
    store.add("m")
    script = Script()
    engine, gate = gated(store, script)
    with engine, ThreadPoolExecutor(9) as pool:
        first = pool.submit(engine.infer, "m", {"x": ROW})
        gate.wait_for(2)
        rest = [pool.submit(engine.infer, "m", {"x": ROW * n}) for n in range(8)]
        until(lambda: engine.routes.resolve("m").queue.depth().requests == 8)
        gate.open()
        assert np.array_equal(first.result()["y"], ROW)
        assert [float(r.result()["y"][0, 0]) for r in rest] == list(range(8))
    assert script.batches == [1, 1, 8]


def test_a_deadline_passes_while_waiting(store: Store) -> None:
    store.add("m")
    script = Script()
    engine, gate = gated(store, script)
    with engine, ThreadPoolExecutor(2) as pool:
        first = pool.submit(engine.infer, "m", {"x": ROW})
        gate.wait_for(2)
        with pytest.raises(DeadlineExpired):
            engine.infer("m", {"x": ROW}, timeout=0.01)
        gate.open()
        first.result()
        assert outcomes(engine) == {Outcome.ANSWERED: 1, Outcome.EXPIRED: 1}
    assert script.batches == [1, 1]


def test_a_model_that_raises_fails_only_its_own(store: Store) -> None:
    store.add("m")
    store.add("other")

    def fail(batch) -> None:
        raise RuntimeError("no such luck")

    with start(store, Script(fail=fail)) as engine:
        with pytest.raises(BackendFailed, match="no such luck"):
            engine.infer("m", {"x": ROW})
        assert np.array_equal(engine.infer("other", {"x": ROW})["y"], ROW)
        assert engine.ready


def test_even_a_model_that_exits_its_thread_is_answered_for(store: Store) -> None:
    store.add("m")

    def fail(batch) -> None:
        raise SystemExit(3)

    with start(store, Script(fail=fail)) as engine:
        for _ in range(2):
            with pytest.raises(BackendFailed):
                engine.infer("m", {"x": ROW})


def test_one_bad_request_does_not_fail_its_neighbours(store: Store) -> None:
    store.add("m")

    def fail(batch) -> None:
        if (batch.tensors()["x"] == 13).any():
            raise RuntimeError("unlucky number")

    script = Script(fail=fail, replayable=True)
    engine, gate = gated(store, script)
    with engine, ThreadPoolExecutor(5) as pool:
        pool.submit(engine.infer, "m", {"x": ROW})
        gate.wait_for(2)
        mates = {n: pool.submit(engine.infer, "m", {"x": ROW * n}) for n in (11, 12, 13, 14)}
        until(lambda: engine.routes.resolve("m").queue.depth().requests == 4)
        gate.open()
        for n, mate in mates.items():
            if n == 13:
                with pytest.raises(BackendFailed, match="unlucky number"):
                    mate.result()
            else:
                assert float(mate.result()["y"][0, 0]) == n
    assert script.batches[2:] == [4, 1, 1, 1, 1]


def test_a_failed_batch_that_may_have_had_effects_is_not_run_again(store: Store) -> None:
    store.add("m")

    def fail(batch) -> None:
        raise RuntimeError("already charged")

    script = Script(fail=fail, replayable=False)
    engine, gate = gated(store, script)
    with engine, ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(engine.infer, "m", {"x": ROW})]
        gate.wait_for(2)
        futures += [pool.submit(engine.infer, "m", {"x": ROW}) for _ in range(2)]
        until(lambda: engine.routes.resolve("m").queue.depth().requests == 2)
        gate.open()
        for future in futures:
            with pytest.raises(BackendFailed, match="already charged"):
                future.result()
    assert script.batches == [1, 1, 2]


def test_several_instances_work_at_once(store: Store) -> None:
    store.add("m", more="instance_group [ { count: 3 kind: KIND_CPU } ]")
    script = Script()
    engine, gate = gated(store, script)
    with engine, ThreadPoolExecutor(3) as pool:
        futures = []
        for n in range(3):
            futures.append(pool.submit(engine.infer, "m", {"x": ROW}))
            gate.wait_for(2 + n)
        gate.open()
        for future in futures:
            future.result()
    assert script.batches == [1, 1, 1, 1]


def test_without_dynamic_batching_everyone_runs_alone(store: Store) -> None:
    config = (store.add("m") / "config.pbtxt").read_text().replace("dynamic_batching {}", "")
    store.add("m", config=config)
    script = Script()
    engine, gate = gated(store, script)
    with engine, ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(engine.infer, "m", {"x": ROW}) for _ in range(4)]
        gate.open()
        for future in futures:
            future.result()
    assert script.batches == [1] * 5


def test_a_decoupled_model_has_no_single_answer(store: Store) -> None:
    store.add("m", more="model_transaction_policy { decoupled: true }")
    with start(store) as engine, pytest.raises(Unsupported):
        engine.infer("m", {"x": ROW})


def test_closing_answers_what_is_queued_and_refuses_the_rest(store: Store) -> None:
    store.add("m")
    script = Script()
    engine, gate = gated(store, script)
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(engine.infer, "m", {"x": ROW})
        gate.wait_for(2)
        queued = pool.submit(engine.infer, "m", {"x": ROW * 2})
        until(lambda: engine.routes.resolve("m").queue.depth().requests == 1)
        closing = threading.Thread(target=engine.close)
        closing.start()
        until(lambda: engine.is_closed)
        with pytest.raises(Draining):
            engine.infer("m", {"x": ROW})
        gate.open()
        closing.join()
        assert np.array_equal(running.result()["y"], ROW)
        assert np.array_equal(queued.result()["y"], ROW * 2)
    assert outcomes(engine) == {Outcome.ANSWERED: 2, Outcome.REFUSED: 1}
    assert not engine.ready


def test_past_the_deadline_of_closing_what_waits_is_refused(store: Store) -> None:
    store.add("m")
    script = Script()
    engine, gate = gated(store, script)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(engine.infer, "m", {"x": ROW})
        gate.wait_for(2)
        queued = pool.submit(engine.infer, "m", {"x": ROW})
        until(lambda: engine.routes.resolve("m").queue.depth().requests == 1)
        engine.close(engine.clock.now())
        with pytest.raises(QueueClosed, match="stopped accepting new inference requests"):
            queued.result()
        gate.open()
        running.result()


def test_draining_is_not_ready_and_still_serves(store: Store) -> None:
    store.add("m")
    with start(store) as engine:
        assert engine.drain(engine.clock.now() + SECOND)
        assert not engine.ready
        assert np.array_equal(engine.infer("m", {"x": ROW})["y"], ROW)


def test_a_missing_repository_is_told(tmp_path) -> None:
    with pytest.raises(InvalidRepository, match="cannot read model repository"):
        Engine(tmp_path / "nowhere")


def test_the_ledger_knows_those_that_were_turned_away(store: Store) -> None:
    store.add("m")
    with start(store) as engine:
        with pytest.raises(InvalidRequest):
            engine.infer("m", {})
        assert outcomes(engine) == {Outcome.INVALID: 1}


def test_an_exception_that_cannot_even_be_told_fails_only_its_own(store: Store) -> None:
    store.add("m")

    class Bad(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    def fail(batch) -> None:
        raise Bad

    with start(store, Script(fail=fail)) as engine:
        for _ in range(2):
            with pytest.raises(BackendFailed, match="Bad"):
                engine.infer("m", {"x": ROW})


def test_an_idle_instance_holds_no_tensors(store: Store) -> None:
    store.add("m")
    with start(store) as engine:
        mine = np.ones((1, 5), np.float32)
        gone = weakref.ref(mine)
        engine.infer("m", {"x": mine})
        del mine
        until(lambda: gone() is None)


@pytest.mark.parametrize(
    ("inputs", "keywords"),
    [
        ([ROW], {}),
        (None, {}),
        ({"x": None}, {}),
        ({"x": ROW}, {"outputs": "y"}),
        ({"x": ROW}, {"version": "1"}),
        ({"x": ROW}, {"timeout": "1"}),
        ({"x": np.array([[5]], object)}, {}),
    ],
)
def test_beginners_mistakes_are_told(store: Store, inputs, keywords) -> None:
    store.add("m")
    with start(store) as engine, pytest.raises(InvalidRequest):
        engine.infer("m", inputs, **keywords)


def test_an_engine_that_is_not_started_says_so(store: Store) -> None:
    store.add("m")
    with pytest.raises(NotAllowed, match="not started"):
        Engine(store.root, backends={"fake": FakeBackend()}).infer("m", {"x": ROW})


def test_a_closed_queue_does_not_wait_for_company(store: Store) -> None:
    config = (store.add("m") / "config.pbtxt").read_text()
    store.add("m", config=config.replace("dynamic_batching {}", "dynamic_batching { max_queue_delay_microseconds: 60000000 }"))
    with start(store) as engine, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.infer, "m", {"x": ROW})
        until(lambda: engine.routes.resolve("m").queue.depth().requests == 1)
        engine.close()
        assert np.array_equal(waiting.result()["y"], ROW)


def test_a_session_that_cannot_be_closed_holds_nothing_up(store: Store) -> None:
    store.add("m")
    store.add("n")

    class Stubborn(FakeBackend):
        def load(self, path, config, device):
            session = super().load(path, config, device)

            def close() -> None:
                raise RuntimeError("stuck")

            session.close = close
            return session

    before = set(threading.enumerate())
    engine = Engine(store.root, backends={"fake": Stubborn()})
    engine.start()
    engine.close()
    assert engine.is_closed
    assert set(threading.enumerate()) <= before


def test_nothing_is_loaded_after_closing(store: Store) -> None:
    store.add("m")
    engine = start(store, control=ModelControl("explicit"))
    engine.close()
    with pytest.raises(Draining):
        engine.load("m")
