"""gRPC over a socket file: `unix:PATH`."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton

from headrace.engine.engine import Engine
from headrace.errors import CannotListen
from headrace.transport.control import Control
from headrace.transport.ways import open_transport
from tests.build_models import add_model
from tests.transport.serving import ECHO, tensor
from tests.transport.test_drain import process


def serve_once(transport: str, repository: Path, path: Path) -> list[list[int]]:
    """Start a server there, ask it once, stop it."""
    way_in = open_transport(transport, f"unix:{path}")
    engine = Engine(repository, queues=way_in.queues)
    way_in.start(engine.routes, Control(engine))
    try:
        engine.start()
        assert way_in.address == f"unix:{path}"
        with triton.InferenceServerClient(way_in.address) as client:
            return client.infer("m", [tensor("x", [[7]])]).as_numpy("y").tolist()
    finally:
        way_in.close(engine.clock.now() + 10**9)
        engine.close(engine.clock.now() + 10**9)


def test_a_socket_file_comes_and_goes(transport: str, tmp_path: Path) -> None:
    add_model(tmp_path / "models", "m", None, ECHO)
    path = tmp_path / "socket"
    assert serve_once(transport, tmp_path / "models", path) == [[7]]
    assert not path.exists()


def test_a_stale_one_is_replaced(transport: str, tmp_path: Path) -> None:
    add_model(tmp_path / "models", "m", None, ECHO)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
        left_behind.listen()
    assert path.is_socket()
    assert serve_once(transport, tmp_path / "models", path) == [[7]]


def test_one_that_answers_is_not(transport: str, tmp_path: Path) -> None:
    add_model(tmp_path / "models", "m", None, ECHO)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(CannotListen, match=re.escape(f"cannot listen on unix:{path}: another server listens there")):
            serve_once(transport, tmp_path / "models", path)
    assert path.exists()


def test_another_kind_of_file_is_not(transport: str, tmp_path: Path) -> None:
    add_model(tmp_path / "models", "m", None, ECHO)
    path = tmp_path / "socket"
    path.write_text("mine")
    with pytest.raises(CannotListen, match="there is a file, and it is no socket"):
        serve_once(transport, tmp_path / "models", path)
    assert path.read_text() == "mine"


def test_on_the_command_line(transport: str, tmp_path: Path) -> None:
    add_model(tmp_path / "models", "m", None, ECHO)
    path = tmp_path / "socket"
    with process(tmp_path / "models", transport, "--drain-grace", "0", "--grpc", f"unix:{path}") as server:
        assert f"grpc=unix:{path} " in server.ready
        with grpc.insecure_channel(f"unix:{path}") as channel:
            grpc.channel_ready_future(channel).result(10)
        server.terminate()
        code, _ = server.end()
    assert code == 0
    assert not path.exists()
