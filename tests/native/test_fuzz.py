"""The codec is fed whatever a fuzzer comes up with, for a bounded time."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.transport.serving import message

FUZZ = Path(__file__).parent.parent.parent / "kernels" / "fuzz"
SECONDS = 60
COVERAGE = (
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
)
"""What cargo-fuzz gives to the compiler, but for the sanitizers, which stable Rust does not have."""


def seeds() -> list[pb.ModelInferRequest]:
    raw = message("m", (("x", "INT32", (1, 3)), ("s", "BYTES", (1, 1, 2))), (bytes(12), b"\2\0\0\0hi\0\0\0\0"), id="r1")
    typed = message("m", (("x", "INT32", (1, 1)), ("z", "FP16", (1, 1, 2))))
    typed.inputs[0].contents.int_contents.append(7)
    placed = message("m", (("x", "INT32", (1, 1)),))
    placed.inputs[0].parameters["shared_memory_region"].string_param = "r"
    full = message("m", (("x", "INT32", (2, 1)),), (np.arange(2, dtype=np.int32).tobytes(),), model_version="1")
    full.parameters["timeout"].int64_param = 5
    full.parameters["sequence_id"].string_param = "s"
    full.outputs.add(name="y").parameters["classification"].int64_param = 2
    return [raw, typed, placed, full]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_codec_stands_whatever_comes(tmp_path: Path) -> None:
    environment = {**os.environ, "RUSTFLAGS": " ".join(COVERAGE)}
    described = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    (host,) = (line.removeprefix("host: ") for line in described.splitlines() if line.startswith("host: "))
    # Named, the target has its flags for itself; build scripts would not link with them.
    build = ["cargo", "build", "--release", "--quiet", "--locked", "--target", host]
    build += ["--manifest-path", str(FUZZ / "Cargo.toml")]
    subprocess.run(build, env=environment, check=True)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed.SerializeToString())
    command = [
        str(FUZZ / "target" / host / "release/codec"),
        str(corpus),
        f"-max_total_time={SECONDS}",
        f"-artifact_prefix={tmp_path}/",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(list(corpus.iterdir())) > 4 * len(seeds()), "it found nothing new: is there coverage at all?"
