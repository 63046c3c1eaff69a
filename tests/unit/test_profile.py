"""Profiles as values and as files; what they are kept under; the zeros they are measured with."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace.backends.installed import gpu_models
from headrace.backends.zeros import Zeros, lengths_of
from headrace.engine import profiles
from headrace.engine.profile import Calls, Point, Profile
from headrace.engine.profiles import Profiles, key_of
from headrace.machine import cpu_model
from headrace.model import ModelSpec, Padding
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.protocol.validate import bucket_of
from headrace.tensor import BytesTensor, TensorSpec

BUCKET = (1 << 64) - 5
PROFILE = Profile(
    (
        Point(BUCKET, 16, 1, (1_000_000, 3_000_000, 2_000_000)),
        Point(BUCKET, 16, 4, (4_000_000, 4_000_000)),
        Point(BUCKET, 16, 8, (16_000_000,)),
        Point(7, 32, 1, (9,)),
    ),
    Calls(2, 4, 100.0, 150.0),
)


def test_what_follows_from_points() -> None:
    point = PROFILE.points[0]
    assert (point.median, point.p95, point.rate) == (2_000_000, 3_000_000, 500.0)
    assert PROFILE.lengths == (16, 32)
    assert PROFILE.best(16).rows == 4
    assert PROFILE.calls is not None
    assert (PROFILE.calls.gain, PROFILE.calls.better) == (1.5, "parallel")
    assert Point(0, 0, 1, (0,)).rate > 0, "a clock may stand still"


def test_a_record_is_read_back() -> None:
    for profile in (PROFILE, replace(PROFILE, calls=None)):
        assert Profile.parse(json.dumps(profile.record())) == profile
    assert PROFILE.record()["best_rows"] == {"16": 4, "32": 1}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda record: record.update(format=2), "format 2 is not 1"),
        (lambda record: record.pop("calls"), "KeyError: 'calls'"),
        (lambda record: record.update(points=[]), "nothing was measured"),
        (lambda record: record.update(points=7), "TypeError: 'int' object is not iterable"),
        (lambda record: record["points"].append({}), "KeyError: 'bucket'"),
        (lambda record: record["points"][0].update(rows=0), "0 is no whole number from 1"),
        (lambda record: record["points"][0].update(rows=2.5), "2.5 is no whole number"),
        (lambda record: record["points"][0].update(bucket=1 << 65), "is no whole number from 0 to"),
        (lambda record: record["points"][0].update(times_ns=[]), "nothing was measured"),
        (lambda record: record["points"][0].update(times_ns=[1 << 50]), "is no whole number from 0 to 3600000000000"),
        (lambda record: record["points"][0].update(times_ns="12"), "'1' is no whole number"),
        (lambda record: record["calls"].update(parallel=0), "0 is no rate"),
        (lambda record: record["calls"].update(threads_per_call=float("nan")), "nan is no rate"),
        (lambda record: record["calls"].update(count="2"), "'2' is no whole number"),
    ],
)
def test_another_record_is_refused(change: Callable[[dict], object], told: str) -> None:
    record = PROFILE.record()
    change(record)
    with pytest.raises(ValueError, match=re.escape(told)):
        Profile.parse(json.dumps(record))


def test_profiles_are_kept(tmp_path: Path) -> None:
    kept = Profiles(tmp_path / "deep" / "down")
    assert kept.get("a") is None
    kept.put("a", PROFILE)
    assert kept.get("a") == PROFILE
    assert Profiles(tmp_path / "deep" / "down", fresh=True).get("a") is None


def test_the_oldest_go_and_what_is_used_is_not_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "MOST_PROFILES", 3)
    kept = Profiles(tmp_path)
    for age, key in enumerate("abc"):
        kept.put(key, PROFILE)
        os.utime(tmp_path / f"{key}.json", (age, age))
    assert kept.get("a") == PROFILE
    kept.put("d", PROFILE)
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["a", "c", "d"]


@pytest.mark.parametrize(
    ("own", "users", "where"),
    [
        ("/own", "/users", "/own/profiles"),
        ("", "/users", "/users/headrace/profiles"),
        ("", "users", "/home/me/.cache/headrace/profiles"),
        ("", "", "/home/me/.cache/headrace/profiles"),
    ],
)
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, own: str, users: str, where: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("HEADRACE_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", users)
    assert profiles._cache_directory() == Path(where)


def config(**fields: object) -> ModelConfig:
    made = ModelConfig(name="m", backend="onnxruntime", max_batch_size=4, **fields)  # type: ignore[arg-type]
    made.instance_group.add(name=f"{made.name}_0", count=1)
    return made


def test_the_key_is_of_all_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = key_of(config(), "digest")
    other = config()
    other.name = other.instance_group[0].name = "another"
    other.version_policy.latest.num_versions = 7
    assert key_of(other, "digest") == usual, "a name changes nothing"

    keys = {usual, key_of(config(), "another")}
    for field, value in (("max_batch_size", 8), ("backend", "fake")):
        changed = config()
        setattr(changed, field, value)
        keys.add(key_of(changed, "digest"))
    changed = config()
    for key in ("execution_mode", "intra_op_thread_count"):
        changed.parameters[key].string_value = "1"
        keys.add(key_of(changed, "digest"))
    for name, found in (
        ("cpu_model", lambda: "another"),
        ("usable_cpus", lambda: 77),
        ("onnxruntime_builds", lambda: {"onnxruntime": "0"}),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(profiles, name, found)
            keys.add(key_of(config(), "digest"))
    assert len(keys) == 9


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t: a b\nmodel name\t: other\n", "AMD EPYC 7B13"),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", "0x41 0xd0c"),
    ],
)
def test_what_the_processor_calls_itself(tmp_path: Path, told: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(told)
    assert cpu_model(tmp_path / "cpuinfo") == name
    assert cpu_model(tmp_path / "absent") != ""


def test_what_gpus_call_themselves(tmp_path: Path) -> None:
    (tmp_path / "0000:01").mkdir()
    (tmp_path / "0000:01" / "information").write_text("Model: \t\t NVIDIA L4\nIRQ: 7\n")
    assert gpu_models(tmp_path) == ["NVIDIA L4"]
    assert gpu_models(tmp_path / "absent") == []


INPUTS = (TensorSpec("ids", "INT64", (-1,)), TensorSpec("text", "BYTES", (2,)))
SPEC = ModelSpec("m", 1, "d", "fake", "", 8, INPUTS, (TensorSpec("y", "FP32", (1,)),))


def test_zeros_have_the_declared_shape() -> None:
    batch = Zeros(SPEC, 3)
    ids, text = batch.tensors()["ids"], batch.tensors()["text"]
    assert (ids.shape, text.shape, batch.rows, batch.offsets) == ((3, 1), (3, 2), 3, [0, 3])
    assert isinstance(text, BytesTensor)
    assert batch.bucket == bucket_of(((1,), (2,)))
    assert (batch.wanted(), len(batch.requests)) == (("y",), 1)
    alone = Zeros(replace(SPEC, max_batch_size=0))
    assert alone.tensors()["ids"].shape == (1,)


def test_zeros_of_a_padded_model_are_as_long_as_asked() -> None:
    inputs = (
        TensorSpec("ids", "INT64", (-1,)),
        TensorSpec("mask", "INT64", (-1,), optional=True),
        TensorSpec("left_out", "FP32", (3,), optional=True),
        TensorSpec("other", "FP32", (-1, 2), reshape=(2, -1)),
    )
    padding = Padding(0, {"ids": 0.0, "mask": 0.0}, (16, 32), mask="mask")
    batch = Zeros(replace(SPEC, inputs=inputs, padding=padding), 2, 32)
    tensors = batch.tensors()
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"ids": (2, 32), "mask": (2, 32), "other": (2, 2, 1)}
    assert isinstance(tensors["mask"], np.ndarray)
    assert tensors["mask"].all()
    assert batch.bucket == bucket_of(((32,), (32,), None, (2, 1)))
    assert batch.nbytes == 2 * (32 * 8 + 32 * 8 + 2 * 4)
    assert Zeros(replace(SPEC, inputs=inputs, padding=padding)).bucket == bucket_of(((16,), (16,), None, (2, 1)))


@pytest.mark.parametrize(
    ("edges", "lengths"),
    [
        ((), (0,)),
        ((16,), (16,)),
        ((1, 2, 3), (1, 2, 3)),
        ((1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 6)),
        (tuple(range(1, 12)), (1, 3, 6, 8, 11)),
    ],
)
def test_lengths_are_spread_over_the_edges(edges: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    padding = Padding(0, {"ids": 0.0}, edges) if edges else None
    assert lengths_of(replace(SPEC, padding=padding)) == lengths
