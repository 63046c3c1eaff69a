"""The demo, as people run it: it must succeed with the real model and must notice every other."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import numpy_helper
from tritonclient.utils import InferenceServerException

from demo.magika import Magika
from demo.repository import ROOT, build_repository

pytestmark = [pytest.mark.part("demo"), pytest.mark.timeout(300)]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    build_repository(tmp_path / "repository")
    return tmp_path / "repository"


def run_demo(repository: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "demo", f"--repository={repository}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def test_the_real_model_passes(repository: Path) -> None:
    done = run_demo(repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 40 answers are those of ONNX Runtime alone" in done.stdout
    assert re.search(r"\.toml\s+toml\s+[01]\.\d+\s+[\d.]+ ms", done.stdout)
    found = re.search(r"(\d+) requests in (\d+) executions", done.stdout)
    assert found is not None
    assert int(found[1]) == 40
    assert int(found[2]) < 40  # batches formed
    assert "server stopped, exit status 0" in done.stdout


def test_a_tampered_model_is_noticed(repository: Path) -> None:
    file = repository / "magika/1/model.onnx"
    model = onnx.load(file)
    weights = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    perturbed = numpy_helper.to_array(weights) * np.float32(1.01)
    weights.CopyFrom(numpy_helper.from_array(perturbed, weights.name))
    onnx.save(model, file)

    done = run_demo(repository)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "answers are not those of ONNX Runtime" in done.stdout
    assert f"{file} is not the model of the package" in done.stdout


def test_a_broken_model_is_noticed(repository: Path) -> None:
    (repository / "magika/1/model.onnx").write_bytes(b"no model")
    done = run_demo(repository)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the server did not come up with its model" in done.stdout
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
    magika = Magika(head=4, tail=4, block=8, padding=256, least=1, labels=())
    assert magika.row(b"  abcdefghijkl \n").tolist() == [*b"abcd", *b"ijkl"]
    assert magika.row(b" ab ").tolist() == [*b"ab ", 256, 256, *b" ab"]
    assert magika.row(b"").tolist() == [256] * 8


def test_the_repository_is_left_as_it_is(repository: Path) -> None:
    file = repository / "magika/1/model.onnx"
    file.write_bytes(b"mine")
    build_repository(repository)
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
