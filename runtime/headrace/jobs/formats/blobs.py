"""Files as rows: the path of each, and what is in it. For images, sound, and whatever else is no table."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.fs as pfs

from headrace.errors import JobFailed
from headrace.jobs.columns import Rejected
from headrace.jobs.formats.base import PIECE_BYTES, PIECE_ROWS, Look, Piece, Place, Reading
from headrace.jobs.listing import Found

SCHEMA = pa.schema({"path": pa.string(), "bytes": pa.binary()})


class Blobs:
    """A row a file. Nothing is opened but when it is read, and not at all where only paths are asked for."""

    suffixes: tuple[str, ...] = ()
    hidden: tuple[str, ...] = (".",)
    is_typed = True

    def look(self, file: Found, filesystem: pfs.FileSystem, types: Mapping[str, pa.DataType]) -> Look:
        """See `Format`; what the file system lists is all there is to know."""
        return Look(SCHEMA, {"path": float(len(file.path)), "bytes": float(file.size)})

    def digest(self, file: Found, filesystem: pfs.FileSystem) -> str:
        """None: it is not opened."""
        return ""

    rows_are_files = True

    def cut(self, files: Sequence[Found], reading: Reading, rows: int) -> Iterator[Place]:
        """So many files, all of one partition."""
        for _, group in groupby(enumerate(files), lambda numbered: numbered[1].partition):
            numbers = [number for number, _ in group]
            for at in range(0, len(numbers), rows):
                yield Place(numbers[at], 0, min(rows, len(numbers) - at))

    def pieces(self, files: Sequence[Found], place: Place, reading: Reading) -> Generator[Piece]:
        """So many files. What cannot be opened, or is too large to be a cell, is a rejected row."""
        held: list[Found] = []
        nbytes = 0
        for file in files[place.file : place.file + place.rows]:
            if held and (len(held) == PIECE_ROWS or nbytes + file.size > PIECE_BYTES):
                yield _piece(held, reading)
                held, nbytes = [], 0
            held.append(file)
            nbytes += file.size
        yield _piece(held, reading)


def _piece(files: Sequence[Found], reading: Reading) -> Piece:
    columns: dict[str, list[Any]] = {"path": [file.path for file in files]}
    rejected: list[Rejected] = []
    if "bytes" in reading.schema.names:
        columns["bytes"] = [None] * len(files)
        for place, file in enumerate(files):
            try:
                columns["bytes"][place] = _content(file, reading)
            except (OSError, OverflowError) as error:
                rejected.append(Rejected(place, "bytes", str(error)))
    arrays = [pa.array(columns[field.name], field.type) for field in reading.schema]
    return Piece(pa.RecordBatch.from_arrays(arrays, schema=reading.schema), tuple(rejected))


def _content(file: Found, reading: Reading) -> bytes:
    if file.size > reading.cell_bytes:
        raise OverflowError(f"is {file.size} bytes, more than the {reading.cell_bytes} that a cell may have")
    with reading.filesystem.open_input_file(file.path) as opened:
        content = opened.read(file.size + 1)
    if len(content) != file.size:
        raise JobFailed(f"{file.path} had {file.size} bytes when the job began, and has others now")
    return content
