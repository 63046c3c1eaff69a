"""Clients that hang up in the middle, never read, or come in crowds: the server stays within its bounds and serves the others."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb

from headrace.backends.fake import Script
from headrace.ledger.records import Outcome
from tests.build_models import add_model
from tests.transport.serving import ECHO, PATIENCE, Serve, Server, message, tensor
from tests.transport.test_connections import HELLO, MESSAGE, call, connect, frame, is_well
from tests.waiting import until

MEGABYTE, FOUR_MB = 1 << 20, 4_000_000
ALONE = [("grpc.use_local_subchannel_pool", 1)]
WIDE = ECHO.replace("max_batch_size: 8", "max_batch_size: 1").replace(
    'output { name: "y" data_type: TYPE_INT32 dims: -1 }', 'output { name: "y" data_type: TYPE_UINT8 dims: -1 }'
)


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("end", ["closed", "reset"])
def test_hanging_up_in_the_middle_of_a_body(serve: Serve, sockets: ExitStack, end: str) -> None:
    """A message of 8 MB was announced and half of it has come; the memory for it goes with the client."""
    server = serve({"m": (ECHO, Script())})
    large = b"\0" + struct.pack(">I", 8 * MEGABYTE)
    for _ in range(20):
        client = connect(server, sockets)
        client.sendall(HELLO + call() + frame(0, 0, 1, large + bytes(16_000 - 5)))
        for _ in range(3):
            client.sendall(frame(0, 0, 1, bytes(16_000)))
        if end == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    assert is_well(server)
    assert server.waiting("m") == 0
    assert server.ledger("m")[Outcome.ANSWERED] == 1


class Unread:
    """A client that asks over one connection and reads nothing: its windows stay as small as they begin."""

    def __init__(self, server: Server, sockets: ExitStack) -> None:
        self._socket = connect(server, sockets)
        self._socket.settimeout(0.2)
        self._socket.sendall(HELLO)
        self._stream = -1

    def ask(self, count: int) -> int:
        """Ask so often, or until the server takes no more; how often it was."""
        for asked in range(count):
            self._stream += 2
            header = call()[:5] + struct.pack(">I", self._stream) + call()[9:]
            try:
                self._socket.sendall(header + frame(0, 1, self._stream, MESSAGE))
            except TimeoutError:
                return asked
        return count


def four_megabytes(inputs: Any) -> dict[str, Any]:
    return {"y": np.zeros((len(inputs["x"]), FOUR_MB), np.uint8)}


@pytest.mark.timeout(120)
def test_a_thousand_replies_of_4_mb_that_nobody_reads(serve: Serve, sockets: ExitStack, transport: str) -> None:
    server = serve({"m": (WIDE, Script(compute=four_megabytes)), "other": (ECHO, Script())})
    before = resident()
    idle = Unread(server, sockets)
    idle.ask(1000)
    for value in range(20):
        assert server.client.infer("other", [tensor("x", [[value]])]).as_numpy("y").tolist() == [[value]]
    until(lambda: server.waiting("m") == 0)
    if transport == "native":
        # Within its bound: what waits to be sent on one connection, and what had been asked before that.
        assert resident() - before < 900 * MEGABYTE
    with triton.InferenceServerClient(server.address, channel_args=ALONE) as reader:
        assert reader.infer("m", [tensor("x", [[1]])]).as_numpy("y").shape == (1, FOUR_MB)
    sockets.close()
    server.wait_settled("m")
    if transport == "native":
        # The portable one counts an answer as given when gRPC has it.
        ends = server.ledger("m")
        assert ends[Outcome.CANCELLED] + ends[Outcome.REFUSED] > 0


def test_a_client_that_never_reads_small_answers(serve: Serve, sockets: ExitStack) -> None:
    server = serve({"m": (ECHO, Script())})
    idle = Unread(server, sockets)
    idle.ask(3000)
    for value in range(50):
        assert server.client.infer("m", [tensor("x", [[value]])]).as_numpy("y").tolist() == [[value]]


SERVE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
sys.argv = ["headrace", *sys.argv[2:]]
from headrace.cli.app import main
from tests.waiting import until
main()
"""


def infer(channel: grpc.Channel) -> bytes:
    request = message("m", (("x", "INT32", (1, 1)),), (b"\7\0\0\0",)).SerializeToString()
    answer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(request, timeout=PATIENCE)
    return pb.ModelInferResponse.FromString(answer).raw_output_contents[0]


def test_no_descriptor_is_left(transport: str, tmp_path: Path, sockets: ExitStack) -> None:
    """Those who are connected are served; those who are not wait, and come in when others go."""
    add_model(tmp_path, "m", None, ECHO)
    command = [sys.executable, "-c", SERVE, "96", "serve", "--repository", str(tmp_path), "--grpc", "127.0.0.1:0"]
    command += ["--http", "none", "--metrics", "none", "--transport", transport, "--drain-grace", "0", "--log-format", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().partition("grpc=")[2].split(" ")[0]
            host, port = address.rsplit(":", 1)
            with grpc.insecure_channel(address, ALONE) as channel:
                assert infer(channel) == b"\7\0\0\0"
                crowd = [sockets.enter_context(socket.create_connection((host, int(port)))) for _ in range(150)]
                used = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
                until(lambda: len(list(Path(f"/proc/{server.pid}/fd").iterdir())) >= min(90, used))
                assert infer(channel) == b"\7\0\0\0"
                for one in crowd:
                    one.close()
                with grpc.insecure_channel(address, ALONE) as late:
                    grpc.channel_ready_future(late).result(PATIENCE)
                    assert infer(late) == b"\7\0\0\0"
            server.terminate()
            _, logged = server.communicate(timeout=PATIENCE)
            assert server.returncode == 0, logged
            lines = [json.loads(line)["message"] for line in logged.splitlines() if line.startswith("{")]
            if transport == "native":
                assert sum("raise the limit of open files" in line for line in lines) >= 1
        finally:
            server.kill()
