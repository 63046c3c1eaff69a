"""The input of a job: a data set of files of one format, cut into splits, of which each can be read by itself.

An `Inputs` is read by one thread. It keeps the file open in which it stopped, and goes on from there when the next split begins
where the last ended.
"""

from __future__ import annotations

import base64
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import accumulate, takewhile
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs as pfs
from numpy.typing import NDArray

from headrace.errors import InvalidJob, JobChanged, JobFailed
from headrace.jobs.cells import cell_bytes as bytes_of_cells
from headrace.jobs.cells import unwrapped
from headrace.jobs.columns import Rejected
from headrace.jobs.formats.base import Format, Piece, Place, Reading, failing
from headrace.jobs.formats.blobs import Blobs
from headrace.jobs.formats.columnar import ArrowIpc, Parquet
from headrace.jobs.formats.text import Csv, JsonLines
from headrace.jobs.listing import Found, file_of, find, partition_values

CELL_BYTES = 64 << 20
"""What a cell may have, unless somebody says otherwise."""
WINDOW_BYTES = 32 << 20
"""What a window of files may have, unless it is one file."""

FORMATS: dict[str, Format] = {"parquet": Parquet(), "arrow": ArrowIpc(), "csv": Csv(), "json": JsonLines(), "files": Blobs()}


class Split(NamedTuple):
    """Rows of one file, `first` to `first + rows`; where files are rows, so many of them from `file` on.

    `file` is its number among the files of the input, `begin` the byte to read from, where that is known.
    """

    file: int
    first: int
    rows: int
    begin: int


class File(NamedTuple):
    """A file of the input as it was found: by size, time of change and digest it is seen whether it is still the same.

    The digest is of the part that describes the file, or of its last 64 KiB; where files are rows there is none.
    """

    found: Found
    digest: str


class Window(NamedTuple):
    """Rows of a split that follow one another. Those that are `rejected` could not be read, and are null in the batch."""

    batch: pa.RecordBatch
    rejected: tuple[Rejected, ...]


class Inputs:
    """See above; made by `DataSet.select` and `restore`.

    Attributes:
        schema: the columns that are read, those of partitions among them; none is a dictionary, or of views.
        files: in the order in which their rows are.
        partitions: names of the columns that are directories, `key=value`.
        bytes_per_row: about.
    """

    def __init__(self, told: Mapping[str, Any], filesystem: pfs.FileSystem) -> None:
        self._told = told
        self._filesystem = filesystem
        self._format = FORMATS[told["format"]]
        self.schema: pa.Schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(told["schema"])))
        self.files = [File(Found(*file[:-1]), file[-1]) for file in told["files"]]
        self.partitions: tuple[str, ...] = tuple(told["partitions"])
        self.bytes_per_row: float = told["bytes_per_row"]
        own = pa.schema([field for field in self.schema if field.name not in self.partitions])
        self._reading = Reading(filesystem, own, told["cell_bytes"])
        self._cursor: _Cursor | None = None

    @classmethod
    def restore(cls, record: Mapping[str, Any], filesystem: pfs.FileSystem | None = None) -> Inputs:
        """The input of a job that goes on: its files are listed again, and none is opened.

        Raises:
            JobChanged: they are not those that the job began with.
        """
        filesystem = filesystem or pfs.LocalFileSystem()
        restored = cls(record, filesystem)
        try:
            now = {file.path: file for file in find(record["where"], filesystem, restored._format.hidden)}
        except InvalidJob as error:
            raise JobChanged([error.message]) from None
        before = {file.found.path: file.found for file in restored.files}
        changes = [f"{path} is new" for path in now if path not in before]
        changes += [difference for path, file in before.items() if (difference := _difference(file, now.get(path)))]
        if changes:
            raise JobChanged(changes)
        return restored

    def record(self) -> Mapping[str, Any]:
        """What `restore` needs, as JSON has it."""
        return self._told

    def splits(self, rows: int, limit: int | None = None) -> tuple[Split, ...]:
        """The rows in splits of at most so many, the first `limit` of them; the same whenever it is asked.

        Text is gone through to see where its rows are. Row groups of Parquet are kept whole where they are small enough.
        """
        made: list[Split] = []
        left = limit
        for place in self._format.cut([file.found for file in self.files], self._reading, rows):
            if left == 0:
                break
            taken = place.rows if left is None else min(left, place.rows)
            left = None if left is None else left - taken
            made.append(Split(place.file, place.first, taken, place.begin))
        return tuple(made)

    def read(self, split: Split, window_rows: int) -> Iterator[Window]:
        """The rows of a split, so many at a time: always the same, but for the last window none has fewer.

        Where files are rows, a window ends before its files are too large together.

        Raises:
            JobFailed: a file cannot be read, or is not the one any more that it was.
        """
        cursor = self._at(split)
        done = 0
        while done < split.rows:
            parts: list[Piece] = []
            wanted = min(window_rows, self._fitting(split, done))
            while wanted and (part := self._taken(cursor, wanted, split)) is not None:
                parts.append(part)
                wanted -= part.batch.num_rows
            done += sum(part.batch.num_rows for part in parts)
            if wanted or done == split.rows:
                self._check(split)
            if wanted:
                raise JobFailed(f"{self.place(split, 0)[0]} has {wanted} rows less than it had when the job began")
            yield self._window(parts, split)

    def _fitting(self, split: Split, first: int) -> int:
        """How many rows of a split, from `first` on, may be in memory together: of files, as large as they were listed."""
        left = split.rows - first
        if not self._format.rows_are_files:
            return left
        files = self.files[split.file + first : split.file + split.rows]
        sizes = accumulate(min(file.found.size, self._reading.cell_bytes) for file in files)
        return max(1, sum(1 for _ in takewhile(lambda size: size <= WINDOW_BYTES, sizes)))

    def place(self, split: Split, row: int) -> tuple[str, int]:
        """Where a row of a split is from: its file, and its number in it."""
        if self._format.rows_are_files:
            return self.files[split.file + row].found.path, 0
        return self.files[split.file].found.path, split.first + row

    def partition(self, split: Split) -> str:
        """The directories `key=value` that all rows of a split lie in, as in `day=3/hour=7`; empty without."""
        return self.files[split.file].found.partition

    def close(self) -> None:
        """Close the file in which the last split ended."""
        if self._cursor is not None:
            self._cursor.pieces.close()
            self._cursor = None

    def _at(self, split: Split) -> _Cursor:
        """Where a split begins: there the last one may have ended."""
        if self._cursor is None or self._format.rows_are_files or self._cursor.place != (split.file, split.first):
            self.close()
            self._check(split)
            file = self.files[split.file]
            if self._format.digest(file.found, self._filesystem) != file.digest:
                raise JobFailed(f"{file.found.path} is not what it was when the job began; {_HINT}")
            place = Place(split.file, split.first, split.rows, split.begin)
            pieces = self._format.pieces([one.found for one in self.files], place, self._reading)
            self._cursor = _Cursor((split.file, split.first), pieces)
        return self._cursor

    def _taken(self, cursor: _Cursor, most: int, split: Split) -> Piece | None:
        try:
            part = cursor.take(most)
        except JobFailed:
            self.close()
            self._check(split)  # for then that is why
            raise
        return None if part is None else self._limited(part)

    def _check(self, split: Split) -> None:
        """See that nobody has changed what a split is in.

        Raises:
            JobFailed: somebody has.
        """
        last = split.file + (split.rows if self._format.rows_are_files else 1)
        files = [file.found for file in self.files[split.file : last]]
        with failing(files[0].path):
            now = self._filesystem.get_file_info([file.path for file in files])
        for file, info in zip(files, now, strict=True):
            if (what := _difference(file, file_of(info, file.partition))) is not None:
                self.close()
                raise JobFailed(f"{what}: it was changed while the job ran; {_HINT}")

    def _limited(self, piece: Piece) -> Piece:
        """The rows as they are read, without cells that are too large."""
        limit = self._reading.cell_bytes
        rejected = {row.place: row for row in piece.rejected}
        arrays: list[pa.Array] = []
        for name, array in zip(piece.batch.schema.names, piece.batch.columns, strict=True):
            if array.get_total_buffer_size() > limit:
                sizes = bytes_of_cells(array)
                for place in np.flatnonzero(sizes > limit).tolist():
                    why = f"is {sizes[place]} bytes, more than the {limit} that a cell may have"
                    rejected.setdefault(place, Rejected(place, name, why))
                array = _without(array, sizes > limit)
            arrays.append(unwrapped(array))
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._reading.schema)
        return Piece(batch, tuple(rejected[place] for place in sorted(rejected)))

    def _window(self, parts: Sequence[Piece], split: Split) -> Window:
        """Pieces as one, with the columns that the directories are."""
        batches = [part.batch for part in parts]
        if len(batches) > 1:
            batches = pa.Table.from_batches(batches).combine_chunks().to_batches()
        if len(batches) > 1:
            raise JobFailed(
                f"{self.place(split, 0)[0]} has more than 2 GiB in a column of one window; ask for fewer rows a batch"
            )
        rows = batches[0].num_rows
        values = partition_values(self.partition(split))
        columns = [
            _constant(values[field.name], field.type, rows) if field.name in self.partitions else batches[0].column(field.name)
            for field in self.schema
        ]
        starts = np.cumsum([0, *(part.batch.num_rows for part in parts)]).tolist()
        rejected = [row._replace(place=row.place + at) for part, at in zip(parts, starts, strict=False) for row in part.rejected]
        return Window(pa.RecordBatch.from_arrays(columns, schema=self.schema), tuple(rejected))


_HINT = "put back what was there, or begin anew"


class _Cursor:
    """A place in a file, from which it is read on."""

    def __init__(self, place: tuple[int, int], pieces: Generator[Piece]) -> None:
        self.place = place
        self.pieces = pieces
        self._piece: Piece | None = None

    def take(self, most: int) -> Piece | None:
        """The next rows, at most so many; None at the end."""
        while self._piece is None or not self._piece.batch.num_rows:
            self._piece = next(self.pieces, None)
            if self._piece is None:
                return None
        piece, rows = self._piece, self._piece.batch.num_rows
        taken = min(most, rows)
        self.place = (self.place[0], self.place[1] + taken)
        self._piece = piece.rows(taken, rows) if taken < rows else None
        return piece.rows(0, taken) if taken < rows else piece


def _constant(value: str | None, kind: pa.DataType, rows: int) -> pa.Array:
    if value is None:
        return pa.nulls(rows, kind)
    return pa.repeat(pa.scalar(int(value) if pa.types.is_integer(kind) else value, kind), rows)


def _without(array: pa.Array, is_large: NDArray[np.bool_]) -> pa.Array:
    """Cells, some of them made null; a dictionary stays one, so that a large value of it is not repeated."""
    if not is_large.any():
        return array
    kept = array if pa.types.is_dictionary(array.type) else unwrapped(array)
    return kept.take(pa.array(np.arange(len(array)), mask=is_large))


def _difference(before: Found, now: Found | None) -> str | None:
    """What is not as it was, if anything."""
    if now is None:
        return f"{before.path} is gone"
    if now.size != before.size:
        return f"{before.path} has {now.size} bytes, and had {before.size}"
    if now.modified_ns != before.modified_ns:
        return f"{before.path} was written anew"
    return None
