"""From nothing: what a clone and a wheel give on a machine that has only Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build_models import add_model, mlp

ROOT = Path(__file__).parent.parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def check(*command: str | Path, cwd: Path = ROOT, status: int = 0) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_make_run_works_in_a_fresh_clone(tmp_path: Path) -> None:
    files = check("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():  # what is deleted and not yet committed is listed, too
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    base = Path(sys.base_prefix, "bin", "python3")
    assert "all 40 answers are those of ONNX Runtime alone" in check("make", "run", f"PYTHON={base}", cwd=tmp_path)
    again = check("make", "run", cwd=tmp_path)
    assert "==" not in again  # nothing was installed a second time


def test_the_wheel_is_light_and_serves_with_its_extra(tmp_path: Path) -> None:
    check(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={tmp_path}", ROOT)
    (wheel,) = tmp_path.glob("headrace-*.whl")
    check(sys.executable, "-m", "venv", tmp_path / "venv")
    tools = tmp_path / "venv/bin"
    install = (tools / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")

    check(*install, wheel)
    assert "pip install 'headrace[cpu]'" in check(tools / "headrace", "doctor", status=1)
    installed = check(tools / "python", "-m", "pip", "list", "--format=freeze").lower()
    assert all(name not in installed for name in ("onnx", "ray", "torch", "triton", "pytest"))
    taken = sum(file.stat().st_size for file in (tmp_path / "venv/lib").rglob("*") if file.is_file() and "pip" not in file.parts)
    assert taken < 200e6

    check(*install, f"{wheel}[cpu]")
    assert "ok      onnxruntime" in check(tools / "headrace", "doctor", cwd=tmp_path)


LOAD_ON_GPU = """
from pathlib import Path
from headrace.backends.base import Device
from headrace.backends.onnx import OnnxBackend, execution_providers
from headrace.errors import InvalidRepository
from headrace.models.pbtxt import parse
assert execution_providers()[:2] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"], execution_providers()
config = parse('name: "m" default_model_filename: "model.onnx"', "config.pbtxt")
try:
    OnnxBackend().load(Path("m/1"), config, Device("GPU"))
except InvalidRepository as error:
    print(error.message)
"""


def test_the_gpu_build_without_a_gpu_says_no_and_beside_the_cpu_build_too(tmp_path: Path) -> None:
    add_model(tmp_path, "m", mlp(), "instance_group [ { kind: KIND_GPU } ]")
    check(sys.executable, "-m", "venv", tmp_path / "venv")
    tools = tmp_path / "venv/bin"
    install = (tools / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")

    check(*install, f"{ROOT}[gpu]")
    told = check(tools / "headrace", "models", "--repository", tmp_path, "--json", status=1)
    assert "has kind KIND_GPU but server does not support GPUs" in told
    # The provider is in the wheel and its library does not load: ONNX Runtime would go on with the CPU.
    assert "CUDAExecutionProvider, which this ONNX Runtime could not load" in check(
        tools / "python", "-c", LOAD_ON_GPU, cwd=tmp_path
    )

    check(*install, f"{ROOT}[cpu]")
    assert "exclude each other" in check(tools / "headrace", "doctor", status=1)
