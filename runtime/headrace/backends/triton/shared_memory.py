"""Memory that this server and a Triton on the same machine both map.

A region has a name in /dev/shm only until the other side has opened it: from then on it is gone with the last who maps it,
however that one ends.
"""

from __future__ import annotations

import mmap
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from headrace.backends.triton.channel import Channel
from headrace.backends.triton.messages import Place, pb
from headrace.tensor import Tensor

WORTHWHILE = 1 << 16
"""Bytes of a batch, in and out, from which on shared memory is less work than the network of the machine."""

_DIRECTORY = Path("/dev/shm")
_PREFIX = "headrace-"
_ALIGNMENT = 64


class Region:
    """One region, registered. Of one thread at a time.

    Args:
        channel: to the server that is to map it.
        nbytes: how large it is at least.
        until: when the server must have done it, in ns.

    Raises:
        OSError: this machine does not give it.
        ModelError, Unreachable, TimedOut, Lost: the server does not take it; see `Channel`.
    """

    def __init__(self, channel: Channel, nbytes: int, until: int) -> None:
        self.size = 1 << (max(nbytes, WORTHWHILE) - 1).bit_length()
        self.name = f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:16]}"
        path = _DIRECTORY / self.name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size)  # memory that is not there is SIGBUS for whoever writes
            self._map = mmap.mmap(descriptor, self.size)
            request = pb.SystemSharedMemoryRegisterRequest(name=self.name, key=f"/{self.name}", byte_size=self.size)
            channel.ask("SystemSharedMemoryRegister", request, until)
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)

    def view(self, place: Place) -> memoryview:
        """The bytes of a place."""
        return memoryview(self._map)[place.offset : place.offset + place.nbytes]

    def write(self, inputs: Mapping[str, Tensor], places: Mapping[str, Place]) -> None:
        """Put inputs where they were placed."""
        for name, place in places.items():
            tensor = inputs[name]
            assert isinstance(tensor, np.ndarray)
            np.copyto(np.ndarray(tensor.shape, tensor.dtype, self._map, place.offset), tensor)

    def forget(self, channel: Channel, until: int) -> None:
        """Let the server forget it, once what it runs is done with it. Raises what a call can raise."""
        channel.ask("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=self.name), until)


def lay_out(region: str, sizes: Mapping[str, int], start: int = 0) -> tuple[dict[str, Place], int]:
    """Places, one after the other from `start`, and where they end."""
    places: dict[str, Place] = {}
    for name, nbytes in sizes.items():
        places[name] = Place(region, start, nbytes)
        start += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
    return places, start


def forget_orphans(channel: Channel, until: int) -> None:
    """Let the server forget regions of processes like this one that have ended without saying so.

    Process numbers are those of this machine. Where a container has its own, this may meet a region that is in use: then its
    owner is told that it is not known, and registers another. Raises what a call can raise.
    """
    told = channel.ask("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(), until)
    for name in told.regions:
        owner = name.removeprefix(_PREFIX).partition("-")[0]
        if name.startswith(_PREFIX) and owner.isdecimal() and not Path("/proc", owner).exists():
            channel.ask("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name), until)
