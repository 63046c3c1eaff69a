"""Segments: Parquet files with the records of some minutes, in a directory that outlives its servers.

A segment is written beside its name, seen to the disk, and then named: under its name it is whole, or the disk has lost it. What
it holds of which ring is in its metadata, so whoever goes on after a crash writes nothing twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.clock import SECOND
from headrace.ledger.collect import Chunk

log = logging.getLogger(__name__)

_KEY = b"headrace"
_ROW_GROUP = 1 << 17


@dataclass(frozen=True, slots=True)
class Limits:
    """What a directory of segments may hold; what is above goes, the oldest first. None is no limit."""

    total_bytes: int | None = 4 << 30
    age_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A file that is whole: the records of one server, up to which position of each ring."""

    path: Path
    kind: str
    server: str
    ends: Mapping[str, int]


def write_segment(directory: Path, kind: str, server: str, chunks: Sequence[Chunk], table: pa.Table) -> Path:
    """Write one; its path.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    ends: dict[str, int] = {}
    for chunk in chunks:
        ends[chunk.ring] = max(ends.get(chunk.ring, 0), chunk.end)
    told = {"kind": kind, "server": server, "ends": ends}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: json.dumps(told).encode()})
    when = datetime.fromtimestamp(time.time_ns() / SECOND, UTC).strftime("%Y%m%dT%H%M%S.%f")
    path = directory / f"{kind}-{when}-{server}.parquet"
    beside = directory / f".{path.name}.part"
    with beside.open("xb") as file:
        try:
            # Whoever clears up leaves alone what somebody has locked.
            fcntl.flock(file, fcntl.LOCK_EX)
            pq.write_table(table, file, compression="zstd", row_group_size=_ROW_GROUP)
            file.flush()
            os.fsync(file.fileno())
            beside.rename(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    _sync(directory)
    return path


def read_segments(directory: Path) -> tuple[list[Segment], list[str]]:
    """The segments that are whole, by name; and, of the others, what is wrong with them.

    Raises:
        OSError: the directory cannot be read.
    """
    found: list[Segment] = []
    broken: list[str] = []
    for path in sorted(directory.iterdir()):
        if path.suffix != ".parquet" or path.name.startswith("."):
            continue
        try:
            # With what stands at its end, a file is whole: Parquet writes that last.
            metadata = pq.read_schema(path).metadata or {}
            told = json.loads(metadata[_KEY])
            found.append(Segment(path, told["kind"], told["server"], told["ends"]))
        except FileNotFoundError:
            continue  # too old: somebody has just removed it
        except KeyError:
            broken.append(f"{path.name} is no segment of a ledger")
        except (OSError, ValueError, TypeError) as error:
            broken.append(f"{path.name} is broken: {' '.join(str(error).split())}")
    return found, broken


def ends_of(segments: Iterable[Segment], server: str) -> dict[str, int]:
    """Up to which position of each ring the records of a server are in these."""
    ends: dict[str, int] = {}
    for segment in segments:
        if segment.server == server:
            for ring, end in segment.ends.items():
                ends[ring] = max(ends.get(ring, 0), end)
    return ends


def remove_unfinished(directory: Path) -> None:
    """Remove what somebody was writing who is dead."""
    for path in directory.glob(".*.parquet.part"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def remove_old(directory: Path, limits: Limits, now: float) -> None:
    """Remove the oldest segments above the limits; `now` is seconds since 1970."""
    files: list[tuple[float, int, Path]] = []
    for path in directory.glob("*.parquet"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            files.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for modified, size, path in sorted(files):
        is_old = limits.age_seconds is not None and now - modified > limits.age_seconds
        if not is_old and (limits.total_bytes is None or total <= limits.total_bytes):
            break
        with contextlib.suppress(OSError):
            path.unlink()
            log.info("segment %s was removed: %s", path.name, "it is too old" if is_old else "the directory is full")
        total -= size


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
