"""Ports of this machine that nobody has now, for servers that have to be told one."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from random import SystemRandom

_PORTS = range(20_000, 32_000)
"""None that Linux gives to those who do not say which: it might be somebody's before its server listens."""


def free_port(following: int = 0) -> int:
    """A port of loopback that is free, as are as many after it."""
    while True:
        first = SystemRandom().choice(_PORTS[: len(_PORTS) - following])
        with suppress(OSError), ExitStack() as taken:
            for port in range(first, first + following + 1):
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
