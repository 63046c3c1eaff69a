"""What a format of input files is: it says what columns a file has and where it can be cut, and reads on from such a place."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.fs as pfs

from headrace.errors import JobFailed
from headrace.jobs.columns import Rejected
from headrace.jobs.listing import Found

PIECE_BYTES = 16 << 20
"""About what is read at a time."""
PIECE_ROWS = 8192


class Piece(NamedTuple):
    """Rows that follow one another. Those that are `rejected` are null in the batch."""

    batch: pa.RecordBatch
    rejected: tuple[Rejected, ...] = ()

    def rows(self, first: int, last: int) -> Piece:
        """Some of them, without copying."""
        inside = (row._replace(place=row.place - first) for row in self.rejected if first <= row.place < last)
        return Piece(self.batch.slice(first, last - first), tuple(inside))


class Look(NamedTuple):
    """What a file says of itself: its columns, and about how many bytes of each there are a row; by no name, of all."""

    schema: pa.Schema
    widths: Mapping[str, float]


class Place(NamedTuple):
    """Where a split begins: the number of its file, its first row in it, its rows, and the byte to read from if that is known."""

    file: int
    first: int
    rows: int
    begin: int = 0


class Reading(NamedTuple):
    """What is asked of a format: columns in this order, with the types the data set has; cells above a size are rejected."""

    filesystem: pfs.FileSystem
    schema: pa.Schema
    cell_bytes: int


class Format(Protocol):
    """A format. It keeps nothing of a file but while it reads it."""

    suffixes: tuple[str, ...]
    """Of the files that are in it."""
    hidden: tuple[str, ...]
    """How names begin that are left out of directories."""
    is_typed: bool
    """Whether files say of what type their columns are; otherwise types are found out from their first rows."""

    def look(self, file: Found, filesystem: pfs.FileSystem, types: Mapping[str, pa.DataType]) -> Look:
        """Open a file, and see what it says of itself; `types` are those of elements that columns had best be read as."""
        ...

    rows_are_files: bool
    """Whether a file is a row; otherwise it has rows, and a split is in one file."""

    def digest(self, file: Found, filesystem: pfs.FileSystem) -> str:
        """SHA-256, in hex, of the part of a file that tells most of it."""
        ...

    def cut(self, files: Sequence[Found], reading: Reading, rows: int) -> Iterator[Place]:
        """Where files are cut into splits of so many rows, or fewer where they have borders of their own."""
        ...

    def pieces(self, files: Sequence[Found], place: Place, reading: Reading) -> Generator[Piece]:
        """The rows from a place on, some at a time: to the end of its file or, where files are rows, so many."""
        ...


def tail_digest(file: Found, filesystem: pfs.FileSystem) -> str:
    """SHA-256 of the last 64 KiB of a file, in hex."""
    with failing(file.path), filesystem.open_input_file(file.path) as opened:
        opened.seek(max(0, file.size - (64 << 10)))
        return hashlib.sha256(opened.read()).hexdigest()


@contextmanager
def failing(path: str, where: str = "") -> Iterator[None]:
    """What goes wrong with a file stops the job, and names it.

    Raises:
        JobFailed: in place of an error of Arrow or of the file system.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        told = " ".join(str(error).split()).rstrip(".")
        raise JobFailed(f"{path} cannot be read{where and f', {where}'}: {told}. Put a whole file there") from error
