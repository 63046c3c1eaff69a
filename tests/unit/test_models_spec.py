"""Specs of configurations, label files, and fields without effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import InvalidRepository
from headrace.model import Batching, QueuePolicy
from headrace.models.pbtxt import parse
from headrace.models.spec import spec_of, warnings
from headrace.tensor import TensorSpec

SPECIFIED = """
name: "m" backend: "onnxruntime" platform: "onnxruntime_onnx" max_batch_size: 8
input { name: "text" data_type: TYPE_STRING dims: 1 reshape {} }
input { name: "x" data_type: TYPE_BF16 dims: [ -1, 3 ] reshape { shape: [ -1, 3 ] } }
output { name: "y" data_type: TYPE_FP32 dims: 3 label_filename: "labels.txt" }
dynamic_batching {
  preferred_batch_size: [ 8, 4, 8 ] max_queue_delay_microseconds: 100 priority_levels: 2 default_priority_level: 2
  default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5 allow_timeout_override: true max_queue_size: 7 }
  priority_queue_policy { key: 1 value { default_timeout_microseconds: 18446744073709551615 } }
}
instance_group { kind: KIND_CPU count: 2 } instance_group { kind: KIND_GPU count: 3 gpus: [ 0, 1 ] }
model_transaction_policy { decoupled: true }
"""


def test_spec(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("cat\r\nd\u00f6g\n\nno newline".encode())
    spec = spec_of(parse(SPECIFIED, ""), 3, "abc", tmp_path)
    assert (spec.name, spec.version, spec.digest, spec.max_batch_size, spec.instances) == ("m", 3, "abc", 8, 8)
    assert (spec.backend, spec.platform, spec.decoupled, spec.sequences) == ("onnxruntime", "onnxruntime_onnx", True, False)
    assert spec.inputs == (TensorSpec("text", "BYTES", (1,), reshape=()), TensorSpec("x", "BF16", (-1, 3)))
    assert spec.outputs == (TensorSpec("y", "FP32", (3,), labels=("cat", "d\u00f6g", "", "no newline")),)
    assert spec.batching == Batching(
        enabled=True,
        preferred=(4, 8),
        delay_ns=100_000,
        priority_levels=2,
        default_priority=2,
        policy=QueuePolicy(timeout_ns=5_000, allow_override=True, delay=True, max_requests=7),
        level_policies={1: QueuePolicy(timeout_ns=1 << 62)},
    )


def test_spec_without_batching(tmp_path: Path) -> None:
    spec = spec_of(parse('name: "m" input { name: "x" data_type: TYPE_FP32 dims: 1 optional: true }', ""), 1, "", tmp_path)
    assert spec.batching == Batching()
    assert spec.inputs[0].optional
    assert spec.instances == 1
    assert not spec_of(parse('name: "m" dynamic_batching {}', ""), 1, "", tmp_path).batching.enabled


@pytest.mark.parametrize(
    ("filename", "why"),
    [
        ("none.txt", "No such file"),
        ("bad.txt", "can't decode"),
        ("../x", "must stay inside"),
        ("/etc/passwd", "must stay inside"),
    ],
)
def test_a_bad_label_file(tmp_path: Path, filename: str, why: str) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    config = parse(f'name: "m" output {{ name: "y" label_filename: "{filename}" }}', "")
    with pytest.raises(InvalidRepository, match=f"^label_filename '{filename}' of output 'y' .*{why}"):
        spec_of(config, 1, "", tmp_path)


SPLITS = 'parameters { key: "split_oversize" value { string_value: "true" } }'


def test_a_model_that_splits_what_is_too_large(tmp_path: Path) -> None:
    def splits(text: str) -> bool:
        return spec_of(parse(text, ""), 1, "", tmp_path).batching.splits_oversize

    assert splits(f'name: "m" max_batch_size: 8 {SPLITS}')
    assert not splits('name: "m" max_batch_size: 8')
    assert not splits(f'name: "m" {SPLITS.replace("true", "false")}')


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (SPLITS, "is 'true', but max_batch_size is 0; it needs"),
        (f"max_batch_size: 8 model_transaction_policy {{ decoupled: true }} {SPLITS}", "but the model is decoupled; it needs"),
        (f"max_batch_size: 8 sequence_batching {{}} {SPLITS}", "but sequence_batching is set; it needs"),
        (f"max_batch_size: 8 {SPLITS.replace('true', 'yes')}", "is 'yes', expected true or false"),
    ],
)
def test_what_cannot_be_split(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(InvalidRepository, match=f"^model 'm': parameter 'split_oversize' .*{why}"):
        spec_of(parse(f'name: "m" {text}', ""), 1, "", tmp_path)


def test_fields_without_effect_are_named_once() -> None:
    extra = (
        "model_warmup { name: 'w' } input { name: 'a' is_shape_tensor: true } input { format: FORMAT_NHWC is_shape_tensor: true }"
    )
    extra += "instance_group { host_policy: 'p' } optimization { cuda { graphs: true } graph { level: 1 } }"
    assert warnings(parse(SPECIFIED + extra, "")) == [
        f"'{path}' in the configuration of model 'm' has no effect in this server"
        for path in (
            "input.is_shape_tensor",
            "input.format",
            "instance_group.host_policy",
            "optimization.cuda",
            "model_warmup",
        )
    ]
    assert warnings(parse(SPECIFIED, "")) == []
