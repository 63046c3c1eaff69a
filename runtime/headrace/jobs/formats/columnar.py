"""Parquet and Arrow IPC (Feather) files: typed, with a description at the end, and rows in groups."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.fs as pfs
import pyarrow.ipc as pipc
import pyarrow.parquet as pq

from headrace.jobs.formats.base import PIECE_BYTES, PIECE_ROWS, Look, Piece, Place, Reading, failing, tail_digest
from headrace.jobs.listing import HIDDEN, Found

_BUFFER = 1 << 20


class Parquet:
    """Parquet. Row groups are read by the page, one after the other, and their checksums are looked at where there are any."""

    suffixes: tuple[str, ...] = (".parquet", ".pq")
    hidden: tuple[str, ...] = HIDDEN
    is_typed = True
    rows_are_files = False

    def look(self, file: Found, filesystem: pfs.FileSystem, types: Mapping[str, pa.DataType]) -> Look:
        """See `Format`."""
        with self._open(file.path, filesystem) as parquet:
            widths: dict[str, float] = defaultdict(float)
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                for column in map(group.column, range(group.num_columns)):
                    name = column.path_in_schema.split(".")[0]
                    widths[name] += column.total_uncompressed_size / max(1, parquet.metadata.num_rows)
            return Look(parquet.schema_arrow, widths)

    def digest(self, file: Found, filesystem: pfs.FileSystem) -> str:
        """Of the footer, which has the place, the size and the statistics of all that is in the file."""
        with failing(file.path), filesystem.open_input_file(file.path) as opened:
            opened.seek(max(0, file.size - 8))
            opened.seek(max(0, file.size - 8 - int.from_bytes(opened.read(4), "little")))
            return hashlib.sha256(opened.read()).hexdigest()

    def cut(self, files: Sequence[Found], reading: Reading, rows: int) -> Iterator[Place]:
        """Row groups that are smaller stay together and whole; a larger one is cut by itself."""
        for number, file in enumerate(files):
            with failing(file.path), self._open(file.path, reading.filesystem) as parquet:
                counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            first = held = 0
            for count in counts:
                if held and held + count > rows:
                    yield Place(number, first, held)
                    first, held = first + held, 0
                held += count
                while held > rows:
                    yield Place(number, first, rows)
                    first, held = first + rows, held - rows
            if held:
                yield Place(number, first, held)

    def pieces(self, files: Sequence[Found], place: Place, reading: Reading) -> Generator[Piece]:
        """See `Format`. Of a row group of which only the end is asked for, the beginning is decoded all the same."""
        path, names = files[place.file].path, reading.schema.names
        with failing(path), self._open(path, reading.filesystem) as parquet:
            before = 0
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                skip = max(0, place.first - before)
                before += group.num_rows
                if skip >= group.num_rows:
                    continue
                at_once = PIECE_BYTES * group.num_rows // max(1, group.total_byte_size)
                batches = parquet.iter_batches(min(PIECE_ROWS, max(1, at_once)), [number], names, use_threads=False)
                while (batch := _next(batches, path, f"row group {number}")) is not None:
                    if skip < batch.num_rows:
                        yield Piece(batch.slice(skip).select(names))
                    skip = max(0, skip - batch.num_rows)

    def _open(self, path: str, filesystem: pfs.FileSystem) -> pq.ParquetFile:
        # Buffered: a column of a row group is not read whole before its first page is decoded.
        return pq.ParquetFile(path, filesystem=filesystem, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)


def _next(batches: Iterator[pa.RecordBatch], path: str, where: str) -> pa.RecordBatch | None:
    with failing(path, where):
        return next(batches, None)


class ArrowIpc:
    """Arrow's file format, which Feather (version 2) is. A record batch is read whole."""

    suffixes: tuple[str, ...] = (".arrow", ".feather", ".ipc")
    hidden: tuple[str, ...] = HIDDEN
    is_typed = True
    rows_are_files = False

    def look(self, file: Found, filesystem: pfs.FileSystem, types: Mapping[str, pa.DataType]) -> Look:
        """See `Format`."""
        with filesystem.open_input_file(file.path) as opened:
            return Look(pipc.open_file(opened).schema, {"": file.size / max(1, self._rows(file, filesystem))})

    def digest(self, file: Found, filesystem: pfs.FileSystem) -> str:
        """Of the last 64 KiB, with the footer."""
        return tail_digest(file, filesystem)

    def cut(self, files: Sequence[Found], reading: Reading, rows: int) -> Iterator[Place]:
        """See `Format`."""
        for number, file in enumerate(files):
            with failing(file.path):
                count = self._rows(file, reading.filesystem)
            for first in range(0, count, rows):
                yield Place(number, first, min(rows, count - first))

    def pieces(self, files: Sequence[Found], place: Place, reading: Reading) -> Generator[Piece]:
        """See `Format`. Batches before the place are read to see how many rows they have."""
        path, names, skip = files[place.file].path, reading.schema.names, place.first
        with failing(path), reading.filesystem.open_input_file(path) as opened:
            schema = pipc.open_file(opened).schema
            fields = sorted(schema.get_field_index(name) for name in names)
            reader = pipc.open_file(opened, options=pipc.IpcReadOptions(included_fields=fields, use_threads=False))
            for number in range(reader.num_record_batches):
                with failing(path, f"record batch {number}"):
                    batch = reader.get_batch(number)
                    # Arrow believes what a file says of its buffers until it is asked not to.
                    batch.validate(full=True)
                if skip < batch.num_rows:
                    yield Piece(batch.slice(skip).select(names))
                skip = max(0, skip - batch.num_rows)

    def _rows(self, file: Found, filesystem: pfs.FileSystem) -> int:
        return pds.IpcFileFormat().make_fragment(file.path, filesystem).count_rows()
