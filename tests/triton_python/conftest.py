"""A real Triton and Headrace, on the same model files."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent

import pytest
import tritonclient.grpc as client

from tests.python.conftest import leaves_nothing
from tests.transport.serving import TRANSPORTS, Server, serving
from tests.waiting import until
from tools import triton_server
from tools.ports import free_port

__all__ = ["leaves_nothing"]

MODELS = Path(__file__).parent / "models"


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model files, in a copy: Triton leaves bytecode beside them."""
    copy = tmp_path_factory.mktemp("triton_python") / "models"
    shutil.copytree(MODELS, copy)
    return copy


@pytest.fixture(scope="session")
def metrics_port() -> int:
    """Where the real Triton says what it counts."""
    return free_port()


@pytest.fixture(scope="session")
def triton(
    repository: Path, metrics_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[client.InferenceServerClient]:
    """A client of the real Triton."""
    grpc_port, http_port = free_port(), free_port()
    start = triton_server.start(repository, grpc_port, http_port)
    log = tmp_path_factory.mktemp("triton") / "log"
    options = ["--allow-metrics=true", "--metrics-address=127.0.0.1", f"--metrics-port={metrics_port}"]
    options += ["--model-load-thread-count=24"]  # it sleeps for seconds while it loads one
    with log.open("w") as lines:
        process = subprocess.Popen([*start.command, *options], env=start.environment, stdout=lines, stderr=subprocess.STDOUT)
    try:
        health = f"http://127.0.0.1:{http_port}/v2/health/ready"
        until(lambda: process.poll() is not None or _answers(health), 60)
        assert process.poll() is None, log.read_text()[-4000:]
        with client.InferenceServerClient(f"127.0.0.1:{grpc_port}") as found:
            yield found
    finally:
        process.terminate()  # so that it takes its memory in /dev/shm with it
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """The way in, by name."""
    return request.param


@pytest.fixture(scope="session")
def headrace(transport: str, repository: Path, triton: client.InferenceServerClient) -> Iterator[Server]:
    """Headrace on the same files, on each transport. Triton has left there what it leaves."""
    with serving(transport, repository) as server:
        yield server


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False


IO = """
backend: "python"
max_batch_size: 0
input {{ name: "x" data_type: TYPE_INT32 dims: -1 }}
output {{ name: "y" data_type: TYPE_INT32 dims: -1 }}
{more}
"""

HEAD = """
import os, signal, sys, threading, time
import numpy as np
import triton_python_backend_utils as pb_utils

def response(values):
    return pb_utils.InferenceResponse([pb_utils.Tensor("y", np.asarray(values, np.int32))])

def x_of(request):
    return pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
"""


def write_model(repository: Path, name: str, text: str, more: str = "", config: str = IO) -> None:
    """A model of that text; or, when it has no class, with that text as the body of `execute`."""
    text = dedent(text).strip("\n")
    if "class " not in text:
        text = "class TritonPythonModel:\n    def execute(self, requests):\n" + indent(text, " " * 8)
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text(HEAD + "\n" + text)
    (repository / name / "config.pbtxt").write_text(config.format(more=more))


def parameter(key: str, value: object) -> str:
    """A line of a configuration."""
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
