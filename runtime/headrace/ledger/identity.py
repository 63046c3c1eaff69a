"""Ids of traces and spans, made from what the ledger numbers.

Whoever runs a request and whoever reads its record afterwards, in another process, make the same ones, so that a context can be
handed on while nothing has been written yet. As W3C Trace Context asks, none is 0, and those of different servers differ.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

from headrace.protocol.origin import mixed

_MASK, _STEP = (1 << 64) - 1, 0x9E3779B97F4A7C15


class Part(IntEnum):
    """Which span of a request, or of a batch."""

    TRACE_HIGH = 1
    TRACE_LOW = 2
    REQUEST = 3
    QUEUE = 4
    EXECUTE = 5
    BATCH = 6
    BATCH_TRACE_HIGH = 7
    BATCH_TRACE_LOW = 8
    BACKEND = 9


class Identity:
    """Of one server.

    Attributes:
        seed: 64 bits that are its own.

    Args:
        server: the id of the server, see `ledger.home.Neighbour`.
    """

    def __init__(self, server: str) -> None:
        self.seed = int.from_bytes(blake2b(server.encode(), digest_size=8).digest(), "little")

    def of(self, part: Part, model: int, number: int) -> int:
        """64 bits for this part of the request or batch with this number; `model` is the ledger's number of the version."""
        return mixed((_start(self.seed, model << 8 | part) ^ number) + _STEP & _MASK) or 1

    def trace(self, model: int, number: int) -> int:
        """128 bits for the trace of the request with this number, where its caller has none."""
        return self.of(Part.TRACE_HIGH, model, number) << 64 | self.of(Part.TRACE_LOW, model, number)

    def batch_trace(self, model: int, number: int) -> int:
        """128 bits for the trace of the batch with this number."""
        return self.of(Part.BATCH_TRACE_HIGH, model, number) << 64 | self.of(Part.BATCH_TRACE_LOW, model, number)


def ring_number(ring: str) -> int:
    """What stands for the model, where a record has no number: its ring, and its position there is the number then."""
    return 1 << 32 | crc32(ring.encode())


@lru_cache(1024)
def _start(seed: int, of: int) -> int:
    return _mix(seed ^ _mix(of))


def _mix(number: int) -> int:
    """A step of splitmix64."""
    return mixed(number + _STEP & _MASK)
