"""Where a call comes from: what its headers say of trace and client, and where it is connected from.

`traceparent` is W3C Trace Context's; one that is malformed is ignored, and the request's record says so. A client is whoever
`x-headrace-client` says, else the address of the connection without its port; the ledger holds a pseudonym, never the name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote

from headrace.request import Head, Origin

CLIENT_HEADER, TRACE_HEADER = "x-headrace-client", "traceparent"
GIVEN, MALFORMED = 1, 2
"""`Origin.context`, where something was given at all."""

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{16})([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?", re.DOTALL)
_MASK = (1 << 64) - 1
_SAMPLED = 1


def origin_of(headers: Iterable[tuple[str, str | bytes]] | None, peer: int) -> Origin:
    """What the headers of a call say. Names are in lower case; `peer` is the pseudonym of who has the connection."""
    client, traces = peer, list[str | bytes]()
    for name, value in headers or ():
        if name == TRACE_HEADER:
            traces.append(value)
        elif name == CLIENT_HEADER and client == peer:
            client = pseudonym(value)
    if not traces:
        return _untraced(client)
    found = _TRACEPARENT.fullmatch(traces[0]) if len(traces) == 1 and isinstance(traces[0], str) else None
    high, low, span, flags = (int(digits, 16) for digits in found.groups()) if found else (0, 0, 0, 0)
    if not (high or low) or not span:
        return Origin(client, context=MALFORMED)
    return Origin(client, high, low, span, 0, 0, flags, GIVEN)


def leader_of(requests: Iterable[Head]) -> Head | None:
    """In whose trace all of these are that run together: the first whose trace is sampled, else the first that is in one."""
    traced = [request for request in requests if request.origin.context == GIVEN]
    return next((request for request in traced if request.origin.trace_flags & _SAMPLED), traced[0] if traced else None)


def traceparent_of(origin: Origin) -> str:
    """The trace of a call as the header that brought it; empty without one."""
    if origin.context != GIVEN:
        return ""
    return f"00-{origin.trace_high:016x}{origin.trace_low:016x}-{origin.span:016x}-{origin.trace_flags:02x}"


@lru_cache(1024)
def pseudonym(name: str | bytes) -> int:
    """The pseudonym of a client: the same name has the same one, everywhere and always. It is never 0.

    It keeps names out of files and is no secret: who has a name can make its pseudonym.
    """
    # FNV-1a, mixed so that similar names are far apart; the kernels make the same.
    number = 0xCBF29CE484222325
    for byte in name.encode("latin-1", "replace") if isinstance(name, str) else name:
        number = (number ^ byte) * 0x100000001B3 & _MASK
    return mixed(number) or 1


def mixed(number: int) -> int:
    """64 bits, each of which depends on all that were given: the last step of splitmix64 (Steele, Lea and Flood, 2014)."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31


@lru_cache(1024)
def peer_of_grpc(peer: str) -> int:
    """The pseudonym of gRPC's words for who has a connection: `ipv4:127.0.0.1:50051`, `ipv6:%5B::1%5D:50051`, `unix:`."""
    kind, _, where = peer.partition(":")
    return peer_of_host(unquote(where).rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else "")


@lru_cache(1024)
def peer_of_host(host: str) -> int:
    """The pseudonym of whoever has a connection from this address; of one through a socket file, it is empty."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return pseudonym("unix")
    return pseudonym(str(getattr(address, "ipv4_mapped", None) or address))


@lru_cache(1024)
def _untraced(client: int) -> Origin:
    return Origin(client)
