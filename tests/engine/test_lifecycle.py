"""Loading, reloading, unloading, following a repository. Looks are taken by hand: no test waits for a poll."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from headrace import Engine
from headrace.backends.fake import FakeBackend, Gate, Script
from headrace.engine.engine import ModelControl
from headrace.errors import InvalidRepository, LoadFailed, ModelNotFound, ModelNotReady, NotAllowed, NotInRepository
from headrace.model import State
from tests.engine.conftest import Store
from tests.waiting import until

FOLLOW = ModelControl("poll", poll_seconds=3600)
EXPLICIT = ModelControl("explicit", ("m",))
ROW = np.ones((1, 2), np.float32)


def engine_on(store: Store, **keywords) -> Engine:
    engine = Engine(store.root, backends={"fake": FakeBackend(keywords.pop("scripts", None))}, **keywords)
    engine.start()
    return engine


def look(engine: Engine) -> None:
    """Two looks: a change is acted on when it holds still."""
    engine.watcher.look()
    engine.watcher.look()


def states(engine: Engine) -> dict[tuple[str, int | None], State]:
    return {(s.model, s.version): s.state for s in engine.statuses()}


def test_a_broken_model_takes_no_other_down(store: Store) -> None:
    store.add("good")
    store.add("bad", config="max_batch_size: 'many'")
    store.add("worse", config='backend: "tensorrt_plan9"')
    with engine_on(store) as engine:
        assert np.array_equal(engine.infer("good", {"x": ROW})["y"], ROW)
        reasons = {s.model: s.reason for s in engine.statuses() if s.state is State.UNAVAILABLE}
        assert "config.pbtxt:1:17" in reasons["bad"]
        assert "needs backend 'tensorrt_plan9', which this server does not have" in reasons["worse"]
        assert not engine.ready, "strictly"
        with pytest.raises(ModelNotFound, match="has no available versions"):
            engine.infer("worse", {"x": ROW})
        with pytest.raises(ModelNotReady, match="version 1 is not at ready state"):
            engine.infer("worse", {"x": ROW}, version=1)
    with engine_on(store, strict_readiness=False) as engine:
        assert engine.ready


def test_a_gpu_model_never_runs_on_the_cpu(store: Store) -> None:
    store.add("m", more="instance_group [ { kind: KIND_GPU } ]")
    with engine_on(store) as engine:
        (status,) = engine.statuses()
        assert "has kind KIND_GPU but server does not support GPUs" in status.reason


def test_versions_are_served_by_policy_and_the_highest_by_default(store: Store) -> None:
    store.add("m", 1, 2, 10, more="version_policy: { latest { num_versions: 2 } }")
    with engine_on(store) as engine:
        assert [r.spec.version for r in engine.routes.ready("m")] == [2, 10]
        assert engine.routes.resolve("m").spec.version == 10
        with pytest.raises(ModelNotFound, match="version 1 is not found"):
            engine.routes.resolve("m", 1)


def test_explicit_mode_loads_what_it_is_told_to(store: Store) -> None:
    store.add("a")
    store.add("b")
    with engine_on(store, control=ModelControl("explicit", ("a",))) as engine:
        assert list(states(engine)) == [("a", 1)]
        engine.load("b")
        assert engine.infer("b", {"x": ROW})["y"].shape == (1, 2)
        engine.unload("b")
        assert states(engine)["b", 1] is State.UNAVAILABLE
        assert engine.ready, "what was unloaded on request does not count"
        engine.unload("never heard of")
        with pytest.raises(NotInRepository):
            engine.load("c")
    with engine_on(store, control=ModelControl("explicit", ("*",))) as engine:
        assert len(states(engine)) == 2
    with pytest.raises(NotInRepository):
        engine_on(store, control=ModelControl("explicit", ("zzz",)))


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_other_modes_do_not_load_by_request(store: Store, mode: str) -> None:
    with (
        engine_on(store, control=ModelControl(mode)) as engine,
        pytest.raises(NotAllowed, match="explicit model load / unload is not allowed"),
    ):
        engine.require_explicit()


def test_the_old_version_answers_what_was_queued_for_it(store: Store) -> None:
    store.add("m", content="old")
    gate = Gate()
    gate.let(1)
    scripts = {"m": Script(gate=gate)}
    with engine_on(store, control=EXPLICIT, scripts=scripts) as engine, ThreadPoolExecutor(3) as pool:
        old = engine.routes.resolve("m")
        running = pool.submit(engine.infer, "m", {"x": ROW})
        gate.wait_for(2)
        queued = pool.submit(engine.infer, "m", {"x": ROW * 2})
        until(lambda: old.queue.depth().requests == 1)
        store.add("m", content="new")
        gate.let(1)  # for the warm-up of the new one, or the batch of the old one: whoever comes first
        reload = pool.submit(engine.load, "m")
        gate.wait_for(3)
        gate.open()
        reload.result()
        new = engine.routes.resolve("m")
        assert new.spec.digest != old.spec.digest
        assert np.array_equal(running.result()["y"], ROW)
        assert np.array_equal(queued.result()["y"], ROW * 2)
        assert old.queue.turn(None) is None, "closed and empty"
        assert np.array_equal(engine.infer("m", {"x": ROW})["y"], ROW)


def test_a_reload_that_fails_leaves_the_old_version_serving(store: Store) -> None:
    store.add("m")
    with engine_on(store, control=EXPLICIT) as engine:
        before = engine.routes.resolve("m")
        store.add("m", content="new", more='parameters { key: "execute_us" value { string_value: "fast" } }')
        with pytest.raises(
            LoadFailed, match=r"load failed for model 'm': version 1 is at UNAVAILABLE state: .*must be a whole number;\n"
        ):
            engine.load("m")
        assert engine.routes.resolve("m") is before
        (store.root / "m" / "config.pbtxt").write_text("name: }")
        with pytest.raises(InvalidRepository, match=r"config.pbtxt:1"):
            engine.load("m")
        assert engine.infer("m", {"x": ROW})["y"].shape == (1, 2)


def test_an_unchanged_version_is_not_loaded_again(store: Store) -> None:
    store.add("m", 1, 2, more="version_policy: { all {} }")
    with engine_on(store, control=EXPLICIT) as engine:
        before = engine.routes.resolve("m", 1)
        store.add("m", 2, content="new", more="version_policy: { all {} }")
        engine.load("m")
        assert engine.routes.resolve("m", 1) is before
        assert engine.routes.resolve("m", 2) is not before


def test_polling_follows_what_comes_changes_and_goes(store: Store) -> None:
    store.add("a")
    with engine_on(store, control=FOLLOW) as engine:
        store.add("b")
        look(engine)
        assert states(engine) == {("a", 1): State.READY, ("b", 1): State.READY}
        first = engine.routes.resolve("a")
        store.add("a", 2)
        look(engine)
        assert engine.routes.resolve("a").spec.version == 2
        with pytest.raises(ModelNotFound):
            engine.routes.resolve("a", first.spec.version)
        shutil.rmtree(store.root / "b")
        look(engine)
        with pytest.raises(ModelNotFound, match="Request for unknown model: 'b' is not found"):
            engine.infer("b", {"x": ROW})


def test_a_half_copied_version_is_not_loaded_before_it_holds_still(store: Store) -> None:
    store.add("m")
    with engine_on(store, control=FOLLOW) as engine:
        copying = store.root / "m" / "2"
        copying.mkdir()
        for size in (10, 20, 30):
            (copying / "weights").write_bytes(b"w" * size)
            assert engine.watcher.look() is True
            assert engine.routes.resolve("m").spec.version == 1
        assert engine.watcher.look() is False
        assert engine.routes.resolve("m").spec.version == 2


def test_a_swapped_link_is_a_change(store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("blue", "green"):
        (elsewhere / name).mkdir()
        (elsewhere / name / "weights").write_text(name)
    store.add("m")
    link = store.root / "m" / "2"
    link.symlink_to(elsewhere / "blue")
    with engine_on(store, control=FOLLOW) as engine:
        before = engine.routes.resolve("m").spec.digest
        fresh = store.root / "m" / "next"
        fresh.symlink_to(elsewhere / "green")
        fresh.replace(link)
        look(engine)
        assert engine.routes.resolve("m").spec.digest != before


def test_the_serving_version_deleted_serves_until_it_is_noticed(store: Store) -> None:
    store.add("m")
    with engine_on(store, control=FOLLOW) as engine:
        shutil.rmtree(store.root / "m" / "1")
        assert engine.infer("m", {"x": ROW})["y"].shape == (1, 2)
        look(engine)
        assert engine.infer("m", {"x": ROW})["y"].shape == (1, 2), "an empty model directory is a mistake, not an order"
        store.add("m", 3)
        look(engine)
        assert engine.routes.resolve("m").spec.version == 3


def test_what_changes_while_it_is_loaded_is_not_served(store: Store) -> None:
    place = store.add("m")

    class Swapper(FakeBackend):
        def load(self, path, config, device):
            (place / "1" / "weights").write_text("another one")
            return super().load(path, config, device)

    with Engine(store.root, backends={"fake": Swapper()}) as engine:
        (status,) = engine.statuses()
        assert status.state is State.UNAVAILABLE
        assert "changed while it was being loaded" in status.reason


def test_a_broken_model_that_is_mended_comes_up(store: Store) -> None:
    store.add("m", config="${TEMPLATE}")
    with engine_on(store, control=FOLLOW) as engine:
        assert "template" in engine.statuses()[0].reason
        store.add("m")
        look(engine)
        assert states(engine) == {("m", 1): State.READY}
        assert engine.ready


def test_a_failed_warm_up_is_no_failed_load(store: Store) -> None:
    store.add("m")

    def fail(batch) -> None:
        if not batch.tensors()["x"].any():
            raise RuntimeError("cannot stand zeros")

    with engine_on(store, scripts={"m": Script(fail=fail)}) as engine:
        assert engine.infer("m", {"x": ROW})["y"].shape == (1, 2)


@pytest.mark.parametrize("name", ["", "../m", "m/1", "."])
def test_a_name_that_is_none_leaves_no_trace(store: Store, name: str) -> None:
    store.add("m")
    with engine_on(store, control=EXPLICIT) as engine:
        with pytest.raises(InvalidRepository):
            engine.load(name)
        assert list(states(engine)) == [("m", 1)]
        assert engine.ready


def test_the_index_says_why_an_old_version_still_serves(store: Store) -> None:
    store.add("m")
    with engine_on(store, control=EXPLICIT) as engine:
        store.add("m", content="new", config="name: }")
        with pytest.raises(InvalidRepository):
            engine.load("m")
        (status,) = engine.statuses()
        assert (status.state, "serving what was loaded before: " in status.reason) == (State.READY, True)
        store.add("m")
        engine.load("m")
        assert engine.statuses()[0].reason == ""


def test_routes_lose_no_update(store: Store) -> None:
    with engine_on(store) as engine:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: engine.routes.publish(f"m{n}", {1: None}), range(800)))
        assert all(raises_not_ready(engine, f"m{n}") for n in range(800))


def raises_not_ready(engine: Engine, name: str) -> bool:
    try:
        engine.routes.resolve(name, 1)
    except ModelNotReady:
        return True
    except ModelNotFound:
        return False
    raise AssertionError("nothing was ever ready")


def test_loading_and_forgetting_at_once_leaves_nothing_behind(store: Store) -> None:
    store.add("m")
    with engine_on(store, control=EXPLICIT) as engine:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(50):
                pool.submit(engine.load, "m")
                pool.submit(engine.catalog.forget, "m")
        engine.load("m")
        assert engine.infer("m", {"x": ROW})["y"].shape == (1, 2)
        engine.unload("m")
        with pytest.raises(ModelNotFound):
            engine.infer("m", {"x": ROW})


def test_a_model_whose_load_exits_is_broken_and_nothing_else(store: Store) -> None:
    store.add("m")
    store.add("good")

    class Exits(FakeBackend):
        def load(self, path, config, device):
            if config.name == "m":
                raise SystemExit(1)
            return super().load(path, config, device)

    with Engine(store.root, backends={"fake": Exits()}) as engine:
        assert states(engine) == {("good", 1): State.READY, ("m", 1): State.UNAVAILABLE}


def test_new_labels_are_a_change(store: Store) -> None:
    place = store.add("m")
    config = (place / "config.pbtxt").read_text().replace('name: "y"', 'name: "y" label_filename: "labels.txt"')
    (place / "labels.txt").write_text("cat\n")
    store.add("m", config=config)
    with engine_on(store, control=EXPLICIT) as engine:
        before = engine.routes.resolve("m")
        (place / "labels.txt").write_text("dog\n")
        engine.load("m")
        assert (before.spec.outputs[0].labels, engine.routes.resolve("m").spec.outputs[0].labels) == (("cat",), ("dog",))


def test_sequence_control_inputs_are_refused_not_ignored(store: Store) -> None:
    config = (
        (store.add("m") / "config.pbtxt")
        .read_text()
        .replace(
            "dynamic_batching {}",
            'sequence_batching { control_input { name: "S" control { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } } }',
        )
    )
    store.add("m", config=config)
    with engine_on(store) as engine:
        assert "does not feed yet" in engine.statuses()[0].reason


def test_a_name_that_is_no_text_is_no_model(store: Store) -> None:
    store.add("m")
    (store.root / os.fsdecode(b"bad\xff")).mkdir()
    with engine_on(store) as engine:
        assert engine.repository.names() == ["m"]
