"""Addresses to listen on."""

from __future__ import annotations

import socket

from headrace.errors import CannotListen


def listen(address: str) -> socket.socket:
    """A TCP socket that listens at `HOST:PORT`; port 0 picks a free one.

    Raises:
        CannotListen: the address is none, or taken.
    """
    host, _, port = address.rpartition(":")
    try:
        if not 0 <= int(port) < 1 << 16:  # getaddrinfo takes it modulo 2**16
            raise ValueError(f"there is no port {port}")
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
    except (OSError, ValueError, OverflowError) as error:
        raise CannotListen(address, getattr(error, "strerror", None) or str(error)) from None
    return listener
