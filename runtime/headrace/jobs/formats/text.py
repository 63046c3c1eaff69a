"""CSV and JSON lines: text, whose columns have the types that the graph wants, or else those their first rows look like.

A file is gone through once to see where its rows are, and then read from any of them; a compressed one can be read from its
beginning only, so it is one split. What pyarrow cannot parse is halved until the rows are found that are at fault, and these are
rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.fs as pfs
import pyarrow.json as pjson

from headrace.errors import InvalidJob
from headrace.jobs.cells import is_list
from headrace.jobs.columns import Rejected
from headrace.jobs.formats.base import Look, Piece, Place, Reading, failing, tail_digest
from headrace.jobs.formats.rows import Block, blocks
from headrace.jobs.listing import HIDDEN, Found

_MOST_NAMES = 16 << 20
_SKIPPED = 1 << 20
_TRIED = 256
"""Rows, to see whether a column has a type."""
_NULLS = ["", "NULL", "null", "NA", "N/A", "#N/A"]
"""Values of CSV that are null; pyarrow counts NaN among them, and a number it is."""
_BOM = b"\xef\xbb\xbf"
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}


def _suffixes(*plain: str) -> tuple[str, ...]:
    return tuple(f"{suffix}{packed}" for packed in ("", *_CODECS) for suffix in plain)


def _codec(file: Found) -> str | None:
    """How a file is compressed, if it is."""
    return _CODECS.get(PurePosixPath(file.path).suffix.lower())


@contextmanager
def _open(file: Found, filesystem: pfs.FileSystem, begin: int = 0) -> Iterator[pa.NativeFile]:
    """What is in a file from a byte on, read once and in order."""
    with filesystem.open_input_file(file.path) as opened:
        codec = _codec(file)
        if codec is None:
            opened.seek(begin)
            yield opened
            return
        with pa.CompressedInputStream(opened, codec) as unpacked:
            while begin and (skipped := unpacked.read(min(begin, _SKIPPED))):
                begin -= len(skipped)
            yield unpacked


class _Text:
    """What CSV and JSON lines have in common."""

    hidden: tuple[str, ...] = HIDDEN
    is_typed = False
    rows_are_files = False

    def look(self, file: Found, filesystem: pfs.FileSystem, types: Mapping[str, pa.DataType]) -> Look:
        """See `Format`. A column is read as the type asked for if one of its first values is."""
        begin, names = self._head(file, filesystem)
        with _open(file, filesystem, begin) as opened:
            first = next(blocks(opened, begin, _MOST_NAMES, self._delimiter(file)), None)
        if first is None or not first.data or not len(first.starts):
            return Look(pa.schema([pa.field(name, pa.null()) for name in names]), {})
        fields = [field.with_type(_settled(field.type)) for field in self._inferred(file, first, names)]
        for place, field in enumerate(fields):
            if field.name in types:
                wanted = field.with_type(_of(types[field.name], field.type))
                if wanted == field or self._has(wanted, file, first.rows(0, min(len(first.starts), _TRIED)), filesystem):
                    fields[place] = wanted
        return Look(pa.schema(fields), {"": len(first.data) / len(first.starts)})

    def _inferred(self, file: Found, block: Block, names: Sequence[str]) -> pa.Schema:
        """The columns that the first rows look like: as many of these as can be parsed, halved and halved again.

        Raises:
            InvalidJob: none can.
        """
        try:
            return self._infer(file, block, names)
        except pa.ArrowInvalid as error:
            rows = len(block.starts)
            if rows == 1:
                raise InvalidJob(f"{file.path} has no row at its beginning that can be parsed: {error}") from None
        try:
            return self._inferred(file, block.rows(0, rows // 2), names)
        except InvalidJob:
            return self._inferred(file, block.rows(rows // 2, rows), names)

    def digest(self, file: Found, filesystem: pfs.FileSystem) -> str:
        """Of the last 64 KiB."""
        return tail_digest(file, filesystem)

    def _has(self, field: pa.Field, file: Found, block: Block, filesystem: pfs.FileSystem) -> bool:
        """Whether one of these rows has a column of this type."""
        reading = Reading(filesystem, pa.schema([field]), _MOST_NAMES)
        pieces = _parsed(block, self._parser(file, reading), reading)
        return any(len(piece.rejected) < piece.batch.num_rows for piece in pieces)

    def cut(self, files: Sequence[Found], reading: Reading, rows: int) -> Iterator[Place]:
        """See `Format`."""
        for number, file in enumerate(files):
            first, held, begin = 0, 0, 0
            for block in self._blocks(file, 0, reading):
                for start in block.starts.tolist():
                    if held == rows and _codec(file) is None:
                        yield Place(number, first, held, begin)
                        first, held = first + held, 0
                    if not held:
                        begin = block.at + start
                    held += 1
            if held:
                yield Place(number, first, held, begin)

    def pieces(self, files: Sequence[Found], place: Place, reading: Reading) -> Generator[Piece]:
        """See `Format`."""
        file = files[place.file]
        parse = self._parser(file, reading)
        for block in self._blocks(file, place.begin, reading):
            yield from _parsed(block, parse, reading)

    def _blocks(self, file: Found, begin: int, reading: Reading) -> Iterator[Block]:
        with failing(file.path):
            begin = begin or self._head(file, reading.filesystem)[0]
            with _open(file, reading.filesystem, begin) as opened:
                yield from blocks(opened, begin, reading.cell_bytes, self._delimiter(file))

    def _delimiter(self, file: Found) -> str | None:
        raise NotImplementedError

    def _head(self, file: Found, filesystem: pfs.FileSystem) -> tuple[int, list[str]]:
        """Where rows begin, and the names of columns that stand before them."""
        raise NotImplementedError

    def _infer(self, file: Found, first: Block, names: Sequence[str]) -> pa.Schema:
        """The columns that rows look like, if they agree with each other."""
        raise NotImplementedError

    def _parser(self, file: Found, reading: Reading) -> Callable[[bytes], pa.Table]:
        """What makes rows of text."""
        raise NotImplementedError


class Csv(_Text):
    """CSV with a first row of names; of `.tsv`, values are separated by tabs."""

    suffixes: tuple[str, ...] = _suffixes(".csv", ".tsv")

    def _delimiter(self, file: Found) -> str:
        return "\t" if file.path.lower().endswith(_suffixes(".tsv")) else ","

    def _head(self, file: Found, filesystem: pfs.FileSystem) -> tuple[int, list[str]]:
        with _open(file, filesystem) as opened:
            head = next(blocks(opened, 0, _MOST_NAMES, self._delimiter(file)), None)
        if head is None or not len(head.starts) or not head.data:
            raise InvalidJob(f"{file.path} has no first row with the names of its columns")
        row = head.rows(0, 1)
        try:
            table = self._read(file, row.data.removeprefix(_BOM), None, pcsv.ConvertOptions())
        except pa.ArrowInvalid as error:
            raise InvalidJob(f"the first row of {file.path} does not name columns: {error}") from None
        names = table.column_names
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            raise InvalidJob(f"{file.path} has two columns '{twice}'")
        return row.at + row.nbytes, names

    def _infer(self, file: Found, first: Block, names: Sequence[str]) -> pa.Schema:
        options = pcsv.ConvertOptions(null_values=_NULLS, timestamp_parsers=[])
        return self._read(file, first.data, names, options).schema

    def _parser(self, file: Found, reading: Reading) -> Callable[[bytes], pa.Table]:
        with failing(file.path):
            _, names = self._head(file, reading.filesystem)
        wanted = reading.schema
        options = pcsv.ConvertOptions(
            null_values=_NULLS,
            include_columns=wanted.names,
            column_types={field.name: field.type for field in wanted},
        )
        return lambda data: self._read(file, data, names, options)

    def _read(self, file: Found, data: bytes, names: Sequence[str] | None, options: pcsv.ConvertOptions) -> pa.Table:
        return pcsv.read_csv(
            pa.BufferReader(data),
            read_options=pcsv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
            parse_options=pcsv.ParseOptions(delimiter=self._delimiter(file), newlines_in_values=True),
            convert_options=options,
        )


class JsonLines(_Text):
    """An object a line. Members that no column is made of are left aside."""

    suffixes: tuple[str, ...] = _suffixes(".jsonl", ".ndjson", ".json")

    def _delimiter(self, file: Found) -> None:
        return None

    def _head(self, file: Found, filesystem: pfs.FileSystem) -> tuple[int, list[str]]:
        with _open(file, filesystem) as opened:
            return len(_BOM) if opened.read(len(_BOM)) == _BOM else 0, []

    def _infer(self, file: Found, first: Block, names: Sequence[str]) -> pa.Schema:
        return self._read(first.data, None, "infer").schema

    def _parser(self, file: Found, reading: Reading) -> Callable[[bytes], pa.Table]:
        return lambda data: self._read(data, reading.schema, "ignore").select(reading.schema.names)

    def _read(self, data: bytes, schema: pa.Schema | None, others: str) -> pa.Table:
        return pjson.read_json(
            pa.BufferReader(data),
            read_options=pjson.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pjson.ParseOptions(explicit_schema=schema, unexpected_field_behavior=others),
        )


def _parsed(block: Block, parse: Callable[[bytes], pa.Table], reading: Reading) -> Iterator[Piece]:
    """The rows of a block, in order; those that cannot be parsed are null and rejected."""
    if not len(block.starts):
        return
    reason = f"is {block.nbytes} bytes, more than the {reading.cell_bytes} that a cell may have"
    if block.data:
        try:
            table = parse(block.data)
            if table.num_rows == len(block.starts):
                yield from map(Piece, table.combine_chunks().to_batches())
                return
            reason = f"is {table.num_rows} rows"
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeDecodeError) as error:
            reason = f"cannot be parsed: {' '.join(str(error).split())}"
    if len(block.starts) == 1:
        empty = [pa.nulls(1, field.type) for field in reading.schema]
        yield Piece(pa.RecordBatch.from_arrays(empty, schema=reading.schema), (Rejected(0, "", reason),))
        return
    middle = len(block.starts) // 2
    yield from _parsed(block.rows(0, middle), parse, reading)
    yield from _parsed(block.rows(middle, len(block.starts)), parse, reading)


def _settled(kind: pa.DataType) -> pa.DataType:
    """What text is read as that looks like something: numbers, truth, lists of them; all else is text."""
    types = pa.types
    if is_list(kind):
        return pa.list_(_settled(kind.value_type))
    if (
        types.is_null(kind)
        or types.is_struct(kind)
        or types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
    ):
        return kind
    return pa.string()


def _of(leaf: pa.DataType, kind: pa.DataType) -> pa.DataType:
    """The type, with other elements."""
    return pa.list_(_of(leaf, kind.value_type)) if is_list(kind) else leaf
