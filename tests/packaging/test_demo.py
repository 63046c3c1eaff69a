"""The demo, as people run it: it must succeed with the real models and must notice every other."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import numpy_helper
from tritonclient.utils import InferenceServerException

from demo import embed, filetype
from demo.magika import Magika
from demo.repository import ROOT

pytestmark = [pytest.mark.part("demo"), pytest.mark.timeout(300)]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    build(tmp_path / "repository")
    return tmp_path / "repository"


def build(repository: Path) -> None:
    for graph in (filetype, embed):
        graph.build_repository(repository)


def run_demo(repository: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "demo", f"--repository={repository}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


@pytest.mark.slow
def test_the_real_models_pass(repository: Path) -> None:
    done = run_demo(repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 40 answers are those of ONNX Runtime alone and Magika's rules" in done.stdout
    assert "all 40 vectors are those of ONNX Runtime alone" in done.stdout
    assert re.search(r"\.toml\s+toml\s+application/toml\s+[01]\.\d+\s+[\d.]+ ms", done.stdout)
    assert re.search(r"py\.typed\s+empty\s+inode/x-empty\s+1\.000", done.stdout)  # a rule, not the model
    found = re.findall(r"(?:filetype|embed): (\d+) requests in (\d+) executions", done.stdout)
    assert [int(requests) for requests, _ in found] == [40, 40]
    assert sum(int(executions) for _, executions in found) < 80  # batches formed, of files or of sentences
    assert "server stopped, exit status 0" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("model", "told"), [("magika", "answers"), ("minilm", "vectors")])
def test_a_tampered_model_is_noticed(repository: Path, model: str, told: str) -> None:
    file = repository / model / "1/model.onnx"
    changed = onnx.load(file)
    floats = (tensor for tensor in changed.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    weights = max(floats, key=lambda tensor: int(np.prod(tensor.dims)))
    perturbed = numpy_helper.to_array(weights) * np.float32(1.01)
    weights.CopyFrom(numpy_helper.from_array(perturbed, weights.name))
    onnx.save(changed, file)

    done = run_demo(repository)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"\d+ of 40 {told} are not those of ONNX Runtime", done.stdout)
    assert len(re.findall(r"all 40 \w+ are those of ONNX Runtime alone", done.stdout)) == 1  # the other graph's
    assert f"what is in {repository} is not what this clone and the packages have" in done.stdout


def test_a_broken_model_is_noticed(repository: Path) -> None:
    (repository / "magika/1/model.onnx").write_bytes(b"no model")
    done = run_demo(repository)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the server did not come up with its models" in done.stdout
    assert "model.onnx cannot be loaded" in done.stderr  # the server's own words


def test_a_server_that_fails_to_start_is_shown(repository: Path) -> None:
    shutil.rmtree(repository / "magika/1")
    (repository / "magika/1").mkdir()
    (repository / "magika/config.pbtxt").write_text("max_batch_size: many")
    done = run_demo(repository)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "config.pbtxt" in done.stderr


def test_on_a_terminal_it_serves_until_ctrl_c(repository: Path, request: pytest.FixtureRequest) -> None:
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "demo", f"--repository={repository}"]
    with os.fdopen(parent, "rb", buffering=0) as screen:
        demo = subprocess.Popen(command, cwd=ROOT, stdin=child, stdout=child, stderr=child)
        request.addfinalizer(demo.wait)
        request.addfinalizer(demo.terminate)
        os.close(child)
        shown = b""
        while (found := re.search(rb"grpc\S* (127\.0\.0\.1:\d+)", re.sub(rb"\x1b\[[0-9;]*m", b"", shown))) is None:
            shown += screen.read(4096)
        address = found[1].decode()
        with triton.InferenceServerClient(address) as client:
            assert client.is_server_ready()
            demo.send_signal(signal.SIGINT)
            assert demo.wait() == 0
            with pytest.raises(InferenceServerException):
                client.is_server_live(client_timeout=5)


def test_a_row_is_the_first_and_the_last_bytes() -> None:
    magika = replace(Magika.read(), head=4, tail=4, block=8, padding=256)
    assert magika.row(b"  abcdefghijkl \n").tolist() == [*b"abcd", *b"ijkl"]
    assert magika.row(b" ab ").tolist() == [*b"ab ", 256, 256, *b" ab"]
    assert magika.row(b"").tolist() == [256] * 8


def test_what_the_rules_make_of_scores() -> None:
    magika = replace(Magika.read(), labels=("toml", "png", "markdown", "randombytes"))

    def decide(content: bytes, *scores: float) -> str:
        return magika.decide(content, np.float32(scores))[0]

    assert [decide(b"", 1, 0, 0, 0), decide(b" a", 1, 0, 0, 0), decide(b"\xff  ", 1, 0, 0, 0)] == ["empty", "txt", "unknown"]
    text = b"[mill]\nwheels = 2\n"
    assert [decide(text, 0.5, 0, 0, 0), decide(text, 0.49, 0, 0, 0), decide(text, 0, 0.49, 0, 0)] == ["toml", "txt", "unknown"]
    assert [decide(text, 0, 0, 0.75, 0), decide(text, 0, 0, 0.74, 0)] == ["markdown", "txt"]  # its own threshold
    assert decide(text, 0, 0, 0, 0.9) == "unknown"  # the overwrite map


def test_the_repository_is_left_as_it_is(repository: Path) -> None:
    file = repository / "magika/1/model.onnx"
    file.write_bytes(b"mine")
    build(repository)
    assert file.read_bytes() == b"mine"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_make_run_without_cargo(tmp_path: Path) -> None:
    """A fresh clone, on a machine without Rust: a line says so, and the portable transport serves."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    without = [folder for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / "cargo").exists()]
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "MAKEFLAGS", "MFLAGS")}
    environment |= {"PATH": os.pathsep.join(without), "PYTHON": sys.executable}
    run = ["make", "run", f"PYTHON={sys.executable}"]
    done = subprocess.run(run, cwd=clone, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if "the portable transport takes the requests" in line]
    assert len(said) == 1
    assert "answers are those of ONNX Runtime alone" in done.stdout
