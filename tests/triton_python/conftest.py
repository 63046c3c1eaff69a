"""A real Triton and Headrace, on the same model files."""

from __future__ import annotations

import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as client

from tests.transport.serving import TRANSPORTS, Server, serving
from tests.waiting import until
from tools import triton_server

MODELS = Path(__file__).parent / "models"


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model files, in a copy: Triton leaves bytecode beside them."""
    copy = tmp_path_factory.mktemp("triton_python") / "models"
    shutil.copytree(MODELS, copy)
    return copy


@pytest.fixture(scope="session")
def triton(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[client.InferenceServerClient]:
    """A client of the real Triton."""
    grpc_port, http_port = _free_port(), _free_port()
    start = triton_server.start(repository, grpc_port, http_port)
    log = tmp_path_factory.mktemp("triton") / "log"
    with log.open("w") as lines:
        process = subprocess.Popen(start.command, env=start.environment, stdout=lines, stderr=subprocess.STDOUT)
    try:
        health = f"http://127.0.0.1:{http_port}/v2/health/ready"
        until(lambda: process.poll() is not None or _answers(health), 60)
        assert process.poll() is None, log.read_text()[-4000:]
        with client.InferenceServerClient(f"127.0.0.1:{grpc_port}") as found:
            yield found
    finally:
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


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False
