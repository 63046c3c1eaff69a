"""What a server and the process of a node say to each other: messages over a socket, tensors in memory that both map.

Messages are JSON behind a head, in packets that hold nothing else. In the head are the length and three numbers, which differ
where the text repeats: a text that both sides know is neither written nor parsed again. Memory belongs to the server's side: it
makes regions (memfd, so that nothing of them is in /dev/shm and all of it is gone with the last who maps it), passes them with a
message, and reuses one when nobody looks at it any more.
"""

from __future__ import annotations

import array
import fcntl
import json
import math
import mmap
import os
import socket
import struct
import weakref
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.backends.nodes import Result
from headrace.node import Rows
from headrace.tensor import DTYPES, BytesTensor, Tensor, datatype_of

_HEAD = struct.Struct("<IQQQ")
_PACKET = 1 << 15
_ROOM = socket.CMSG_SPACE(16 * array.array("i").itemsize)
"""For more descriptors than ever come with a message."""
_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: `json.dumps` makes one a call
_SHORT = 1 << 12
"""Texts up to this length are looked up before they are parsed."""
_KNOWN = 256
"""Texts that are remembered: batches of some tens of sizes, and their answers."""

_ALIGNMENT = 64
_LEAST_REGION = 1 << 16
_MOST_FREE = 4
"""Regions that are kept while nobody needs them: inputs, outputs, and the outputs that are still on their way to clients."""

Memory: TypeAlias = NDArray[np.uint8]

Place: TypeAlias = Sequence[Any]
"""Where a tensor is: datatype, shape, where it begins and, of BYTES, how many bytes of data follow its offsets."""

Numbers: TypeAlias = tuple[int, int, int]
_NONE: Numbers = (0, 0, 0)


def send(
    sock: socket.socket,
    message: Mapping[str, Any],
    numbers: Numbers = _NONE,
    descriptors: Sequence[int] = (),
    *,
    repeats: bool = False,
) -> None:
    """Send one message, with `numbers` beside it. One that `repeats` will often be sent, and can be hashed.

    Raises:
        OSError: the other side is gone.
    """
    text = _written_before(*message.items()) if repeats else _encode(message).encode()
    data = _HEAD.pack(len(text), *numbers) + text
    if descriptors:
        socket.send_fds(sock, [data[:_PACKET]], descriptors)
    else:
        sock.send(data[:_PACKET])
    for at in range(_PACKET, len(data), _PACKET):
        sock.send(data[at : at + _PACKET])


@lru_cache(_KNOWN)
def _written_before(*items: tuple[str, Hashable]) -> bytes:
    return _encode(dict(items)).encode()


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message, what went beside it as its `numbers`, and the descriptors that came with it.

    Raises:
        EOFError: the other side is gone.
        BlockingIOError: nothing came in the time that the socket has for it.
    """
    data, descriptors = b"", list[int]()
    while len(data) < _HEAD.size or len(data) < _HEAD.size + _HEAD.unpack_from(data)[0]:
        try:
            chunk, beside, _, _ = sock.recvmsg(_PACKET, _ROOM, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # it left something unread
            chunk, beside = b"", []
        for _, _, numbers in beside:
            descriptors += array.array("i", numbers)
        if not chunk:
            for descriptor in descriptors:
                os.close(descriptor)
            raise EOFError("the other side is gone")
        data += chunk
    _, *numbers = _HEAD.unpack_from(data)
    text = data[_HEAD.size :]
    return {**(_parsed_before(text) if len(text) < _SHORT else _parsed(text)), "numbers": numbers}, descriptors


def _parsed(text: bytes) -> dict[str, Any]:
    return json.loads(text.decode())


_parsed_before = lru_cache(_KNOWN)(_parsed)


class Region:
    """Memory that both sides map. `descriptor` is there until it was passed on."""

    def __init__(self, number: int, nbytes: int) -> None:
        self.number, self.size = number, max(_LEAST_REGION, 1 << (nbytes - 1).bit_length())
        self.descriptor = os.memfd_create("headrace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, self.size)
            # Memory that shrinks under a mapping is SIGBUS for whoever reads it.
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.map = mmap.mmap(self.descriptor, self.size)
        except BaseException:
            os.close(self.descriptor)
            raise

    def memory(self) -> Memory:
        """All of it, as a new array."""
        return np.frombuffer(self.map, np.uint8)


class Regions:
    """The regions of one process. One thread at a time; only `lend`'s arrays may end anywhere, at any moment."""

    def __init__(self) -> None:
        self._made = 0
        self._free: list[Region] = []
        self._lent: dict[int, weakref.ref[Memory]] = {}
        self._returned: deque[Region] = deque()
        """No lock: an array may end, and return its region, while this thread holds one."""
        self._new: list[Region] = []
        self._dropped: list[int] = []

    def take(self, nbytes: int) -> Region:
        """A region of at least so many bytes that nobody looks at."""
        while self._returned:
            self.give_back(self._returned.popleft())
        best: Region | None = None
        for region in reversed(self._free):  # the last one used is warm
            if region.size >= nbytes and (best is None or region.size < best.size):
                best = region
        if best is not None:
            self._free.remove(best)
            return best
        region = Region(self._made, nbytes)
        self._made += 1
        self._new.append(region)
        return region

    def give_back(self, region: Region) -> None:
        """Nobody looks at it any more."""
        self._free.append(region)
        while len(self._free) > _MOST_FREE:
            self.drop(self._free.pop(0))

    def drop(self, region: Region) -> None:
        """Never use it again: it is gone when the last who looks at it is."""
        self._dropped.append(region.number)

    def lend(self, region: Region) -> Memory:
        """The memory of a region; it is given back when that array and all its views are gone."""
        memory = region.memory()

        def give_back(_: object) -> None:
            self._returned.append(region)

        self._lent[region.number] = weakref.ref(memory, give_back)  # `weakref.finalize` would cost four times as much
        return memory

    def send(self, sock: socket.socket, message: Mapping[str, Any], numbers: Numbers = _NONE, *, repeats: bool = False) -> None:
        """See `send`; with it goes what the other side does not know yet of the regions.

        Raises:
            OSError: the other side is gone.
        """
        if not (self._new or self._dropped):  # as nearly always
            send(sock, message, numbers, repeats=repeats)
            return
        new, self._new = self._new, []
        dropped, self._dropped = self._dropped, []
        regions = {"new": [(region.number, region.size) for region in new], "dropped": dropped}
        try:
            send(sock, {**message, **regions}, numbers, [region.descriptor for region in new])
        finally:
            for region in new:
                os.close(region.descriptor)


class Mapped:
    """The regions as the process of a node has them."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}

    def learn(self, message: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Map and forget what a message says."""
        if not descriptors and "dropped" not in message:  # as nearly always
            return
        for number in message.get("dropped", ()):
            del self._maps[number]
        for (number, size), descriptor in zip(message.get("new", ()), descriptors, strict=True):
            self._maps[number] = mmap.mmap(descriptor, size)
            os.close(descriptor)

    def readable(self, number: int) -> Memory:
        """A region that is not to be changed."""
        return np.frombuffer(memoryview(self._maps[number]).toreadonly(), np.uint8)

    def writable(self, number: int) -> Memory:
        """A region to write into."""
        return np.frombuffer(self._maps[number], np.uint8)


class Stack(NamedTuple):
    """Arrays of one datatype, one behind the other; put together where they are written."""

    arrays: Sequence[NDArray[Any]]
    datatype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return DTYPES[self.datatype].itemsize * math.prod(self.shape)


def lay_out(tensors: Sequence[Tensor | Stack]) -> tuple[tuple[Place, ...], int]:
    """Where in a region each goes, and how many bytes that takes."""
    places, end = list[Place](), 0
    for tensor in tensors:
        place = (tensor.datatype if isinstance(tensor, Stack) else datatype_of(tensor), tensor.shape, end)
        places.append((*place, int(tensor.offsets[-1] - tensor.offsets[0])) if isinstance(tensor, BytesTensor) else place)
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return tuple(places), end


def write(memory: Memory, tensors: Sequence[Tensor | Stack], places: Sequence[Place]) -> None:
    """Put tensors where `lay_out` said."""
    for tensor, place in zip(tensors, places, strict=True):
        into = look(memory, place)
        if isinstance(tensor, Stack):
            np.concatenate(tensor.arrays, out=into)  # type: ignore[arg-type]  # no text either
        elif isinstance(tensor, BytesTensor) and isinstance(into, BytesTensor):
            np.subtract(tensor.offsets, tensor.offsets[0], out=into.offsets)
            into.data[:] = tensor.data[tensor.offsets[0] : tensor.offsets[-1]]
        else:
            np.copyto(into, tensor)  # type: ignore[arg-type]  # neither is text


def look(memory: Memory, place: Place) -> Tensor:
    """The tensor at a place, as a view."""
    datatype, shape, at = place[0], place[1], place[2]
    if datatype != "BYTES":
        return np.ndarray(shape, DTYPES[datatype], memory, at)
    begins = np.ndarray((math.prod(shape) + 1,), np.int64, memory, at)
    return BytesTensor(shape, begins, np.ndarray((place[3],), np.uint8, memory, at + begins.nbytes))


def flat(result: Result) -> tuple[dict[str, Any], list[Tensor]]:
    """What a node returned as a list of tensors, and the message that says what they are; see `unflat`."""
    if not isinstance(result, Rows):
        return {"names": tuple(result)}, list(result.values())
    tensors: list[Tensor] = []
    counted: list[tuple[str, int | None]] = []
    for name, rows in result.tensors.items():
        is_stacked = isinstance(rows, np.ndarray)
        tensors += [rows] if is_stacked else rows
        counted.append((name, None if is_stacked else len(rows)))
    return {"rows": counted, "counts": result.counts}, tensors


def unflat(message: Mapping[str, Any], tensors: Sequence[Tensor]) -> Result:
    """What `flat` was given."""
    if "names" in message:
        return dict(zip(message["names"], tensors, strict=True))
    rest = iter(tensors)
    rows = {name: next(rest) if count is None else [next(rest) for _ in range(count)] for name, count in message["rows"]}
    counts = message["counts"]
    return Rows(rows, None if counts is None else tuple(counts))  # type: ignore[arg-type]  # what is stacked is no text
