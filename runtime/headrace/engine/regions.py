"""System shared memory: POSIX segments of clients, and the regions of them that are registered by name.

Segments are read and written through a kept descriptor and never mapped: a client that truncates its own would otherwise
kill the server. Whoever holds a window of a region keeps its segment open, registered or not, so a region may be
unregistered, and its name used again, while requests that use it are on their way.
"""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from headrace.errors import InvalidRequest, RegionExists, RegionFailed, RegionNotFound
from headrace.request import Window

SEGMENTS = Path("/dev/shm")
"""Where the segments are: `shm_open` of Linux puts them there."""
RESERVED = "triton_python_backend_shm_region_"
MOST_REGIONS = 512
"""Each keeps a descriptor open, and connections need some, too."""

_MAX_SIZE = (1 << 64) - 1


class _Segment:
    """An open segment, closed when nobody holds it any longer."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        status = os.fstat(descriptor)
        self.is_regular, self.identity = stat.S_ISREG(status.st_mode), (status.st_dev, status.st_ino)

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def __del__(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Region:
    """`byte_size` bytes of the segment `key`, from `offset`, which need not be the begin of a page."""

    name: str
    key: str
    offset: int
    byte_size: int
    segment: _Segment


@dataclass(frozen=True, slots=True)
class RegionWindow:
    """See `headrace.request.Window`. `start` counts from the beginning of the segment."""

    region: Region
    start: int
    byte_size: int

    def read(self) -> memoryview:
        """A copy of the bytes. See `Window.read`."""
        self._check_is_there()
        copy = np.empty(self.byte_size, np.uint8).data
        done = 0
        while done < self.byte_size:
            count = os.preadv(self.region.segment.descriptor, [copy[done:]], self.start + done)
            if not count:
                self._check_is_there()
                raise RegionFailed(f"shared memory region '{self.region.name}' cannot be read")
            done += count
        return copy.toreadonly()

    def write(self, data: bytes | memoryview) -> None:
        """Put `data` at the beginning. See `Window.write`."""
        self._check_is_there()  # writing behind its end would make the segment larger
        view, done = memoryview(data), 0
        while done < len(view):
            try:
                done += os.pwrite(self.region.segment.descriptor, view[done:], self.start + done)
            except OSError as error:
                raise RegionFailed(f"shared memory region '{self.region.name}' cannot be written: {error.strerror}") from None

    def overlaps(self, other: Window) -> bool:
        """Whether a byte of this one is a byte of the other."""
        return (
            isinstance(other, RegionWindow)
            and self.region.segment.identity == other.region.segment.identity
            and max(self.start, other.start) < min(self.start + self.byte_size, other.start + other.byte_size)
        )

    def _check_is_there(self) -> None:
        end, size = self.start + self.byte_size, self.region.segment.size
        if end > size:
            raise InvalidRequest(
                f"shared memory region '{self.region.name}' is shorter than it was when it was registered: the tensor ends at "
                f"byte {end} of the segment '{self.region.key}', which has {size}"
            )


class Follower(Protocol):
    """Is told of every region that comes and goes: a transport that reads and writes them itself."""

    def map_region(self, name: str, key: str, offset: int, byte_size: int, descriptor: int) -> None:
        """One was registered. `descriptor` is open during the call only. Must not ask back."""
        ...

    def unmap_region(self, name: str) -> None:
        """One was unregistered."""
        ...


class Regions:
    """The registered regions by name. Safe to use from any thread."""

    def __init__(self, directory: Path = SEGMENTS) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._regions: dict[str, Region] = {}
        self._followers: list[Follower] = []

    def map_region(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a region.

        Args:
            name: what requests call it.
            key: of the segment, with or without the slash in front that `shm_open` wants.
            offset: of the region in the segment, in bytes.
            byte_size: of the region.

        Raises:
            RegionExists: the name is taken.
            InvalidRequest: the key is none or reserved, the segment is shorter than that, or there are too many regions.
            RegionFailed: there is no such segment, or it is none.
        """
        filename = key.lstrip("/")
        if not filename:
            raise InvalidRequest(f"cannot register shared memory region '{name}' - invalid shm key '{key}'")
        if filename.startswith(RESERVED):
            raise InvalidRequest(
                f"cannot register shared memory region '{name}' with key '{key}' as the key contains the reserved prefix "
                f"'{RESERVED}'"
            )
        with self._lock:
            if name in self._regions:
                raise RegionExists(name)
            if len(self._regions) >= MOST_REGIONS:
                raise InvalidRequest(
                    f"cannot register shared memory region '{name}': {MOST_REGIONS} are registered; unregister one of them"
                )
            segment = self._open(filename, key)
            if not name or not byte_size or offset + byte_size > segment.size:
                raise InvalidRequest(f"failed to register shared memory region '{name}': invalid args")
            for follower in self._followers:
                follower.map_region(name, key, offset, byte_size, segment.descriptor)
            self._regions[name] = Region(name, key, offset, byte_size, segment)

    def follow(self, follower: Follower) -> None:
        """Tell a follower of every region there is, and of each that comes or goes from now on."""
        with self._lock:
            for region in self._regions.values():
                follower.map_region(region.name, region.key, region.offset, region.byte_size, region.segment.descriptor)
            self._followers.append(follower)

    def unmap_region(self, name: str = "") -> None:
        """Forget a region, or all of them; a name that is not registered is fine. Requests on their way keep theirs."""
        with self._lock:
            for gone in [name] if name else list(self._regions):
                if self._regions.pop(gone, None) is not None:
                    for follower in self._followers:
                        follower.unmap_region(gone)

    def registered(self) -> list[Region]:
        """All regions, by name."""
        with self._lock:
            return [region for _, region in sorted(self._regions.items())]

    def window(self, region: str, offset: int, byte_size: int) -> RegionWindow:
        """Some bytes of a region. See `headrace.request.Windows.window`; what is below 0 wraps, as the protocol's sizes do."""
        with self._lock:
            found = self._regions.get(region)
        if found is None:
            raise RegionNotFound(region)
        offset, byte_size = offset & _MAX_SIZE, byte_size & _MAX_SIZE
        if offset >= found.byte_size:
            raise InvalidRequest(f"Invalid offset for shared memory region: '{region}'")
        if offset + byte_size > _MAX_SIZE:
            raise InvalidRequest(
                f"Integer overflow detected: byte_size ({byte_size}) + offset ({offset}) exceeds maximum value ({_MAX_SIZE}) "
                f"for region '{region}'"
            )
        if offset + byte_size > found.byte_size:
            raise InvalidRequest(f"Invalid offset + byte size for shared memory region: '{region}'")
        return RegionWindow(found, found.offset + offset, byte_size)

    def _open(self, filename: str, key: str) -> _Segment:
        if "/" in filename or "\0" in filename or filename in (".", ".."):
            raise RegionFailed(f"Unable to open shared memory region: '{key}'")
        try:
            # No links, which could lead anywhere, and no waiting for the other end of a pipe.
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            segment = _Segment(os.open(self._directory / filename, flags))
        except (OSError, ValueError):
            raise RegionFailed(f"Unable to open shared memory region: '{key}'") from None
        if not segment.is_regular:
            raise RegionFailed(f"Invalid shared memory region: '{key}'")
        return segment
