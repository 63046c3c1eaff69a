"""Addresses to listen on: `HOST:PORT`, or `unix:PATH` for a socket file."""

from __future__ import annotations

import contextlib
import socket
import stat
from pathlib import Path

from headrace.errors import CannotListen

UNIX = "unix:"
_BACKLOG = 2048


def is_unix(address: str) -> bool:
    """Whether an address is a socket file's."""
    return address.startswith(UNIX)


def listen(address: str, *, beside: bool = False) -> socket.socket:
    """A socket that listens there; port 0 picks a free one. A socket file that nobody listens on any more is replaced.

    Args:
        address: where.
        beside: of a port, also where another socket of this user listens that allows it (`SO_REUSEPORT`); they share who comes.

    Raises:
        CannotListen: the address is none, or taken.
    """
    if is_unix(address):
        return _listen_unix(address, Path(address.removeprefix(UNIX)))
    host, _, port = address.rpartition(":")
    try:
        if not 0 <= int(port) < 1 << 16:  # getaddrinfo takes it modulo 2**16
            raise ValueError(f"there is no port {port}")
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, beside)
            listener.bind(where)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, ValueError, OverflowError) as error:
        raise CannotListen(address, getattr(error, "strerror", None) or str(error)) from None
    return listener


def next_port(address: str) -> str:
    """The address with the port that follows; of port 0, which is any, the same.

    Raises:
        CannotListen: there is none.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) >= 65535:
        raise CannotListen(address, "it is to be HOST:PORT, and the next port is taken, too")
    return f"{host}:{int(port) + 1 if int(port) else 0}"


def unlink(address: str) -> None:
    """Remove the socket file of an address, if it is one; nobody listens there any more."""
    if is_unix(address):
        with contextlib.suppress(OSError):
            Path(address.removeprefix(UNIX)).unlink()


def _listen_unix(address: str, path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(address, error.strerror or str(error)) from None
    except ValueError as error:
        listener.close()
        raise CannotListen(address, str(error)) from None
    return listener


def _clear(path: Path) -> None:
    """Remove a socket file that a server left behind. One that answers, and anything else, stays.

    Raises:
        OSError: it stays.
    """
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise OSError(0, "there is a file, and it is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(0, "another server listens there")
