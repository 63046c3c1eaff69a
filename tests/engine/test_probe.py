"""Measuring versions while nobody asks for anything: the clock stands still but for what runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from headrace import Engine
from headrace.backends.base import Device, Outputs
from headrace.backends.fake import FakeBackend, FakeSession, Gate, Script
from headrace.backends.zeros import Zeros
from headrace.clock import MILLISECOND, SECOND, VirtualClock
from headrace.engine import calls, lifecycle, probe, profiles
from headrace.engine.engine import ModelControl
from headrace.engine.lifecycle import Running
from headrace.engine.profiles import Profiles
from headrace.machine import usable_cpus
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.tensor import Tensor
from tests.build_models import add_model, mlp
from tests.engine.conftest import CONFIG, Store
from tests.waiting import until

ROW = np.ones((1, 2), np.float32)
ALL = ModelControl()
EXPLICIT = ModelControl("explicit", ("m",))
PREDICTS = 'parameters { key: "admission" value { string_value: "predict" } }'
AT_LOAD = [1] * 4
"""The warm-up, and three runs at one row."""


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture
def start(store: Store, clock: VirtualClock, kept: Path) -> Callable[..., Engine]:
    """`start(m=script, ...)`: an engine that measures, not yet closed."""

    def start(control: ModelControl = ALL, **scripts: Script) -> Engine:
        engine = Engine(
            store.root, control=control, backends={"fake": FakeBackend(scripts)}, clock=clock, profiles=Profiles(kept)
        )
        engine.start()
        return engine

    return start


def lasting(clock: VirtualClock, ms: Callable[[int], float]) -> Script:
    """A session whose batches last so long, by their rows."""

    def compute(tensors: Mapping[str, Tensor]) -> Outputs:
        clock.advance(int(ms(len(tensors["x"])) * MILLISECOND))
        return {"y": tensors["x"]}

    return Script(compute=compute)


def held(zeros: Gate, others: Gate | None = None) -> Script:
    """A session that holds what the probe runs at one gate, and what clients ask for at another."""

    def compute(tensors: Mapping[str, Tensor]) -> Outputs:
        gate = others if np.any(tensors["x"]) else zeros
        if gate is not None:
            gate.enter()
        return {"y": tensors["x"]}

    return Script(compute=compute)


def running(engine: Engine, name: str = "m") -> Running:
    (found,) = [one for one in engine.catalog.running() if one.opened.spec.name == name]
    return found


def probed(engine: Engine, name: str = "m") -> Running:
    assert engine.probe is not None
    assert engine.probe.wait()
    return running(engine, name)


def known(one: Running, rows: int) -> int | None:
    return one.forecast.predictor.execute_ns(Zeros(one.opened.spec).bucket, rows)


def test_every_size_is_measured_and_learned(store: Store, start: Callable[..., Engine], clock: VirtualClock) -> None:
    store.add("m", more=PREDICTS)
    script = lasting(clock, lambda rows: 10 + rows)
    with start(m=script) as engine:
        one = probed(engine)
        assert one.profile is not None
        assert [(p.length, p.rows, p.times) for p in one.profile.points] == [
            (0, rows, (int((10 + rows) * MILLISECOND),) * 5) for rows in (1, 2, 4, 8)
        ]
        assert [known(one, rows) for rows in (1, 6, 8)] == [11 * MILLISECOND, 16 * MILLISECOND, 18 * MILLISECOND]
        assert engine.probe is not None
        assert (engine.probe.doing, one.unprofiled) == ("", "")
    # The first of each size lays out its memory, and does not count.
    assert script.batches == AT_LOAD + [rows for rows in (1, 2, 4, 8) for _ in range(6)]


def test_three_runs_at_one_row_are_known_before_anybody_asks(store: Store, start: Callable[..., Engine]) -> None:
    store.add("m", more=PREDICTS)
    gate = Gate()
    gate.let(len(AT_LOAD))
    with start(m=held(gate)) as engine:
        gate.wait_for(len(AT_LOAD) + 1)
        assert known(running(engine), 1) == 0, "the clock stands still"
        assert running(engine).profile is None
        gate.open()
        probed(engine)


def test_a_slow_model_does_not_come_up_later_for_it(store: Store, start: Callable[..., Engine], clock: VirtualClock) -> None:
    store.add("m")
    script = lasting(clock, lambda rows: 1500 * rows)
    with start(m=script) as engine:
        one = probed(engine)
        assert one.profile is not None
        assert [(point.rows, len(point.times)) for point in one.profile.points] == [(1, 1)]
    assert script.batches == [1, 1], "warm-up, and one run behind the scenes"


@pytest.mark.parametrize(
    ("ms", "sizes", "best"),
    [
        (lambda rows: {1: 10, 2: 12, 4: 14, 8: 60}[rows], [1, 2, 4, 8], 4),
        (lambda rows: 300 * rows, [1, 2], 1),
        (lambda rows: 20 * rows**2, [1, 2, 4], 1),
    ],
    ids=["slows down", "the next would last over a second", "by the slope of the last two"],
)
def test_the_best_batch_is_the_best_measured(
    store: Store, start: Callable[..., Engine], clock: VirtualClock, ms: Callable[[int], float], sizes: list[int], best: int
) -> None:
    store.add("m")
    with start(m=lasting(clock, ms)) as engine:
        profile = probed(engine).profile
        assert profile is not None
        assert [point.rows for point in profile.points] == sizes
        assert profile.best(0).rows == best


def test_the_largest_is_among_them_and_memory_is_bounded(
    store: Store, start: Callable[..., Engine], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("m", config=CONFIG.format(more="").replace("max_batch_size: 8", "max_batch_size: 11"))
    store.add("wide", config=CONFIG.format(more="").replace("dims: [ -1 ]", "dims: [ 100 ]"))
    monkeypatch.setattr(probe, "_MOST_BYTES", 1000)
    with start() as engine:
        sizes = {name: [p.rows for p in found.points] for name in ("m", "wide") if (found := probed(engine, name).profile)}
    assert sizes == {"m": [1, 2, 4, 8, 11], "wide": [1, 2]}


def test_traffic_goes_first(store: Store, start: Callable[..., Engine]) -> None:
    store.add("m")
    zeros, others = Gate(), Gate()
    zeros.let(len(AT_LOAD) + 2)
    script = held(zeros, others)
    with start(m=script) as engine, ThreadPoolExecutor() as pool:
        assert engine.probe is not None
        zeros.wait_for(len(AT_LOAD) + 3)
        asked = pool.submit(engine.infer, "m", {"x": ROW})
        others.wait_for(1)
        zeros.open()
        until(lambda: engine.probe is not None and engine.probe.is_waiting)
        assert script.batches == [*AT_LOAD, 1, 1, 1, 1], "three runs of the probe, and the request"
        others.open()
        assert np.array_equal(asked.result()["y"], ROW)
        profile = probed(engine).profile
        assert profile is not None
        assert [len(point.times) for point in profile.points] == [5] * 4
        assert not engine.probe.is_waiting
    # The second run counts. The third met the request and does not, nor does the first one after the pause.
    assert script.batches == [*AT_LOAD, 1, 1, 1, 1] + [1] * 5 + [rows for rows in (2, 4, 8) for _ in range(6)]


def test_traffic_of_another_model_goes_first_too(store: Store, start: Callable[..., Engine]) -> None:
    store.add("m")
    store.add("other")
    zeros, others = Gate(), Gate()
    zeros.let(len(AT_LOAD))
    script = held(zeros)
    with start(m=script, other=held_open(others)) as engine, ThreadPoolExecutor() as pool:
        zeros.wait_for(len(AT_LOAD) + 1)
        asked = pool.submit(engine.infer, "other", {"x": ROW})
        others.wait_for(1)
        zeros.open()
        until(lambda: engine.probe is not None and engine.probe.is_waiting)
        assert script.batches == [*AT_LOAD, 1]
        others.open()
        asked.result()
        assert probed(engine).profile is not None


def held_open(others: Gate) -> Script:
    zeros = Gate()
    zeros.open()
    return held(zeros, others)


def test_nothing_is_measured_while_something_loads(store: Store, start: Callable[..., Engine]) -> None:
    store.add("m")
    store.add("late")
    zeros, late = Gate(), Gate()
    zeros.let(len(AT_LOAD))
    script = held(zeros)
    with start(EXPLICIT, m=script, late=held(late)) as engine, ThreadPoolExecutor() as pool:
        zeros.wait_for(len(AT_LOAD) + 1)
        loading = pool.submit(engine.load, "late")
        late.wait_for(1)
        zeros.open()
        until(lambda: engine.probe is not None and engine.probe.is_waiting)
        assert script.batches == [*AT_LOAD, 1]
        late.open()
        loading.result()
        assert probed(engine).profile is not None
        assert probed(engine, "late").profile is not None


def test_what_was_measured_is_not_measured_again(store: Store, start: Callable[..., Engine], clock: VirtualClock) -> None:
    store.add("m", more=PREDICTS)
    with start(m=lasting(clock, lambda rows: 10 + rows)) as engine:
        first = probed(engine).profile
    script = lasting(clock, lambda rows: 10 + rows)
    with start(EXPLICIT, m=script) as engine:
        one = probed(engine)
        assert one.profile == first
        assert known(one, 8) == 18 * MILLISECOND
        assert script.batches == [1], "the warm-up"
        store.add("m", content="new", more=PREDICTS)
        engine.load("m")
        assert probed(engine).profile is not None
        assert len(script.batches) > 20, "another digest"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 99}', b"\xff\xfe", b"[" * 100_000], ids=range(6))
def test_a_bad_cache_is_measured_anew(
    store: Store, start: Callable[..., Engine], kept: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    store.add("m")
    with start() as engine:
        profile = probed(engine).profile
    (file,) = kept.iterdir()
    good = file.read_bytes()
    file.write_bytes(content)
    script = Script()
    with start(m=script) as engine:
        assert probed(engine).profile == profile
    assert f"the profile in {file} cannot be used, and is measured anew" in caplog.text
    assert (len(script.batches), file.read_bytes()) == (28, good)


def test_without_a_disk_it_is_measured_each_time(
    store: Store, start: Callable[..., Engine], kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.add("m")
    kept.rmdir()
    kept.write_text("no directory")
    with start() as engine:
        assert probed(engine).profile is not None
        assert engine.ready
    assert "a profile cannot be kept" in caplog.text


def test_a_run_that_hangs_hangs_nobody(
    store: Store, start: Callable[..., Engine], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    monkeypatch.setattr(lifecycle, "_RETURN_SECONDS", 0.01)
    store.add("m")
    store.add("other")
    zeros = Gate()
    zeros.let(len(AT_LOAD))
    script = held(zeros)
    with start(m=script) as engine:
        zeros.wait_for(len(AT_LOAD) + 1)
        assert np.array_equal(engine.infer("m", {"x": ROW})["y"], ROW)
        clock.advance(10 * SECOND)
        assert "did not come back within 10 s" in probed(engine).unprofiled
        assert probed(engine, "other").profile is not None
        assert np.array_equal(engine.infer("m", {"x": ROW})["y"], ROW)
        session = running(engine).opened.sessions[0][0]
        assert engine.drain(clock.now())
    assert isinstance(session, FakeSession)
    assert not session.is_closed, "somebody is in it"
    assert len(list(kept.iterdir())) == 1
    zeros.open()


@pytest.mark.parametrize("ends", ["closed", "unloaded", "replaced"])
def test_a_version_that_leaves_is_not_measured_on(store: Store, start: Callable[..., Engine], kept: Path, ends: str) -> None:
    store.add("m")
    zeros = Gate()
    zeros.let(len(AT_LOAD))
    script = held(zeros)
    with start(EXPLICIT, m=script) as engine, ThreadPoolExecutor() as pool:
        zeros.wait_for(len(AT_LOAD) + 1)
        one = running(engine)
        store.add("m", content="new")
        if ends == "replaced":
            engine.unload("m")
            until(lambda: one.is_leaving)
            zeros.open()
            engine.load("m")
            assert probed(engine).profile is not None
        else:
            leaving = pool.submit(engine.unload, "m") if ends == "unloaded" else pool.submit(engine.close)
            until(lambda: one.is_leaving)
            zeros.open()
            leaving.result()
            assert engine.probe is not None
            assert engine.probe.wait()
            assert script.batches == [*AT_LOAD, 1]
            assert list(kept.iterdir()) == []
        assert one.profile is None
        session = one.opened.sessions[0][0]
        assert isinstance(session, FakeSession)
        until(lambda: session.is_closed)


def test_closing_does_not_wait_for_a_run_that_hangs(
    store: Store, start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "_RETURN_SECONDS", 0.01)
    store.add("m")
    zeros = Gate()
    zeros.let(len(AT_LOAD))
    with start(m=held(zeros)) as engine:
        zeros.wait_for(len(AT_LOAD) + 1)
    assert engine.probe is not None
    assert engine.probe.wait()
    zeros.open()


def test_zeros_that_fail_cost_the_profile(store: Store, start: Callable[..., Engine], kept: Path) -> None:
    store.add("m")
    store.add("never")

    def fail(most: int) -> Callable[..., None]:
        def fail(batch) -> None:
            if batch.rows > most and not batch.tensors()["x"].any():
                raise RuntimeError("cannot stand so many zeros")

        return fail

    never = Script(fail=fail(0))
    with start(m=Script(fail=fail(1)), never=never) as engine:
        assert probed(engine).unprofiled == "a run of zeros failed: cannot stand so many zeros"
        assert probed(engine, "never").unprofiled == "zeros of the declared shape do not run"
        assert engine.ready
        assert engine.infer("m", {"x": ROW})["y"].shape == (1, 2)
    assert never.batches == [1]
    assert list(kept.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("model_transaction_policy { decoupled: true }", "it answers a request several times"),
        ("sequence_batching {}", "it has sequences"),
    ],
)
def test_some_are_not_measured(store: Store, start: Callable[..., Engine], more: str, why: str) -> None:
    store.add("m", config=CONFIG.format(more=more).replace("dynamic_batching {}", ""))
    script = Script()
    with start(m=script) as engine:
        assert (probed(engine).profile, probed(engine).unprofiled) == (None, why)
    assert script.batches == [1]


def test_without_a_place_for_profiles_nothing_is_measured(store: Store) -> None:
    store.add("m")
    script = Script()
    with Engine(store.root, backends={"fake": FakeBackend({"m": script})}) as engine:
        assert engine.probe is None
    assert script.batches == [1]


# Calls.


class Threads:
    """A backend whose sessions last `whole` ms a batch on all cores, and `single` on one."""

    def __init__(self, clock: VirtualClock, whole: float, single: float) -> None:
        self._clock, self._whole, self._single = clock, whole, single
        self.sessions: list[FakeSession] = []

    def load(self, path: Path, config: ModelConfig, device: Device) -> FakeSession:
        given = config.parameters["intra_op_thread_count"].string_value if config.parameters else ""
        ms = self._single if given == "1" or config.instance_group[0].count > 1 else self._whole
        self.sessions.append(FakeSession(config, lasting(self._clock, lambda rows: ms)))
        return self.sessions[-1]


CPUS = 3


@pytest.fixture
def cpus(monkeypatch: pytest.MonkeyPatch) -> int:
    for module in (calls, probe, profiles):
        monkeypatch.setattr(module, "usable_cpus", lambda: CPUS)
    return CPUS


def onnx_like(store: Store, more: str = "") -> None:
    store.add("m", config=CONFIG.format(more=more).replace('"fake"', '"onnxruntime"'))


@pytest.fixture
def measure(store: Store, clock: VirtualClock, kept: Path) -> Callable[[Threads], Running]:
    def measure(backend: Threads) -> Running:
        with Engine(store.root, backends={"onnxruntime": backend}, clock=clock, profiles=Profiles(kept)) as engine:
            return probed(engine)

    return measure


def test_parallel_calls_that_do_more_are_what_the_next_load_does(
    store: Store, clock: VirtualClock, cpus: int, measure: Callable[[Threads], Running]
) -> None:
    onnx_like(store)
    backend = Threads(clock, 20, 8)
    first = measure(backend)
    assert first.profile is not None
    assert first.profile.calls is not None
    assert (first.profile.calls.count, first.profile.calls.rows, first.profile.calls.better) == (cpus, 8, "parallel")
    # This clock counts what threads do beside each other one after the other.
    assert first.profile.calls.gain == pytest.approx(20 / 8)
    assert first.opened.config.instance_group[0].count == 1
    assert not first.opened.config.parameters, "what is asked of the second session stays there"
    assert [session.is_closed for session in backend.sessions] == [True, True]

    second = measure(backend)
    assert second.opened.config.instance_group[0].count == cpus == second.instances
    assert second.opened.filled == ("instance_group: 3 instances of one thread each, 2.5x the rows/s of one",)
    assert second.profile is not None
    assert second.profile.calls == first.profile.calls
    assert {point.median for point in second.profile.points} == {8 * MILLISECOND}, "a profile of its own"
    assert len(backend.sessions) == 3, "nothing to compare"

    again = clock.now()
    assert measure(backend).profile == second.profile
    assert clock.now() == again + 8 * MILLISECOND, "the warm-up"


@pytest.mark.parametrize(
    ("single", "more"),
    [(20 / 1.05, ""), (30, ""), (8, "instance_group { count: 1 }"), (8, "instance_group { count: 1 kind: KIND_CPU }")],
)
def test_one_instance_stays_where_it_is_as_good_or_asked_for(
    store: Store, clock: VirtualClock, cpus: int, measure: Callable[[Threads], Running], single: float, more: str
) -> None:
    onnx_like(store, more)
    backend = Threads(clock, 20, single)
    for _ in range(2):
        one = measure(backend)
        assert one.profile is not None
        assert one.profile.calls is not None
        assert one.opened.config.instance_group[0].count == 1


@pytest.mark.parametrize(
    "more",
    [
        'parameters { key: "intra_op_thread_count" value { string_value: "2" } }',
        "instance_group { count: 2 }",
        "optimization { execution_accelerators { cpu_execution_accelerator { name: 'openvino' } } }",
    ],
)
def test_what_the_configuration_says_is_not_compared(
    store: Store, clock: VirtualClock, cpus: int, measure: Callable[[Threads], Running], more: str
) -> None:
    onnx_like(store, more)
    one = measure(Threads(clock, 20, 8))
    assert one.profile is not None
    assert one.profile.calls is None


def test_a_second_session_that_does_not_load_costs_the_comparison(
    store: Store, clock: VirtualClock, cpus: int, measure: Callable[[Threads], Running]
) -> None:
    class Once(Threads):
        def load(self, path: Path, config: ModelConfig, device: Device) -> FakeSession:
            if self.sessions:
                raise MemoryError("no room for two")
            return super().load(path, config, device)

    onnx_like(store)
    one = measure(Once(clock, 20, 8))
    assert one.profile is not None
    assert (len(one.profile.points), one.profile.calls, one.unprofiled) == (4, None, "")


def test_a_real_model(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(calls, "usable_cpus", lambda: max(2, usable_cpus()))
    monkeypatch.setattr(probe, "usable_cpus", lambda: max(2, usable_cpus()))
    add_model(tmp_path, "m", mlp(), "max_batch_size: 8")
    with caplog.at_level(logging.DEBUG), Engine(tmp_path, profiles=Profiles(kept)) as engine:
        profile = probed(engine).profile
        assert profile is not None, running(engine).unprofiled
        assert [point.rows for point in profile.points] == [1, 2, 4, 8]
        assert profile.calls is not None, caplog.text
        assert min(profile.calls.threads_per_call, profile.calls.parallel) > 0
