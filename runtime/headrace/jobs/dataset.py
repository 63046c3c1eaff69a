"""The files of a data set, seen together: of which format they are, and which columns they have."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pfs

from headrace.errors import InvalidJob
from headrace.jobs.cells import unwrapped
from headrace.jobs.filesystems import filesystem_of
from headrace.jobs.formats.base import Look, failing
from headrace.jobs.inputs import CELL_BYTES, FORMATS, Inputs
from headrace.jobs.listing import HIDDEN, Found, find, partition_values


class DataSet:
    """Files of one format, each of which has been looked at. Made by `open`.

    Attributes:
        schema: the columns of the first file, and those that directories are.
        partitions: names of the columns that are directories, `key=value`.
    """

    def __init__(
        self,
        where: Sequence[str],
        format: str,
        found: Sequence[Found],
        looks: Sequence[Look],
        filesystem: pfs.FileSystem,
    ) -> None:
        self._where, self._format, self._found, self._looks, self._filesystem = where, format, found, looks, filesystem
        kinds = _partitions(found)
        self.partitions = tuple(kinds)
        own = [pa.field(field.name, self._read_as(field.type)) for field in looks[0].schema if field.name not in kinds]
        self.schema = pa.schema(own + [pa.field(key, kind) for key, kind in kinds.items()])

    @classmethod
    def open(
        cls,
        where: Sequence[str],
        *,
        format: str | None = None,
        types: Mapping[str, pa.DataType] | None = None,
        filesystem: Any = None,
    ) -> DataSet:
        """Find the files, and look at each.

        Args:
            where: files, directories, patterns such as `data/**/*.parquet`.
            format: `parquet`, `arrow`, `csv`, `json` (lines) or `files`, each of which is a row; None: by the names of the files.
            types: of the elements of columns, as they are to be read where a format says of numbers only that they are numbers.
            filesystem: where the files are: one of pyarrow or of fsspec; None: on disk, or in object stores.

        Raises:
            InvalidJob: there are no files, or they are not of one format, or lie in directories that do not fit together.
            JobFailed: a file cannot be read.
        """
        filesystem = filesystem_of(where, filesystem)
        if isinstance(filesystem, pfs.LocalFileSystem):
            where = [str(Path(one).absolute()) for one in where]
        name, found = _chosen(where, format, filesystem)
        looks: list[Look] = []
        for file in found:
            with failing(file.path):
                looks.append(FORMATS[name].look(file, filesystem, types or {}))
        return cls(where, name, found, looks, filesystem)

    def select(self, columns: Sequence[str] | None = None, *, cell_bytes: int = CELL_BYTES) -> Inputs:
        """The data set as the input of a job.

        Args:
            columns: those to read; all, if None.
            cell_bytes: what a cell may have; a row with a larger one is rejected.

        Raises:
            InvalidJob: a column is missing, or has different types in two files.
        """
        names = self.schema.names if columns is None else columns
        if all(name in self.partitions for name in names):
            raise InvalidJob("of the input no column is read but those that directories are; read or keep another")
        schema = pa.schema([self.schema.field(name) if name in self.partitions else self._agreed(name) for name in names])
        if columns is None:
            self._see_that_there_are_no_others()
        widths = [sum(width for name, width in look.widths.items() if name in ("", *names)) for look in self._looks]
        told = {
            "where": list(self._where),
            "format": self._format,
            "schema": base64.b64encode(schema.serialize()).decode(),
            "partitions": [key for key in self.partitions if key in names],
            "bytes_per_row": sum(widths) / len(widths),
            "cell_bytes": cell_bytes,
            "files": [[*file, FORMATS[self._format].digest(file, self._filesystem)] for file in self._found],
        }
        return Inputs(told, self._filesystem)

    def _agreed(self, name: str) -> pa.Field:
        """A column as all files have it."""
        first, is_typed = self._looks[0].schema, FORMATS[self._format].is_typed
        if first.names.count(name) != 1:
            how = "has no column" if name not in first.names else "has more than one column"
            raise InvalidJob(f"{self._found[0].path} {how} '{name}'; its columns are {', '.join(first.names)}")
        kind = first.field(name).type
        for file, (schema, _) in zip(self._found, self._looks, strict=True):
            other = schema.field(name).type if schema.names.count(name) == 1 else None
            together = kind if other == kind else None if is_typed or other is None else _together(kind, other)
            if together is None:
                raise InvalidJob(
                    f"column '{name}' is {kind} in {self._found[0].path}, and {other or 'is not there'} in {file.path}; "
                    "all files of an input must have the same columns"
                )
            kind = together
        return pa.field(name, self._read_as(kind))

    def _read_as(self, kind: pa.DataType) -> pa.DataType:
        """What a column of this type is in what is read. Text of which nothing is known is text."""
        if pa.types.is_null(kind):
            return kind if FORMATS[self._format].is_typed else pa.string()
        return unwrapped(pa.nulls(0, kind)).type

    def _see_that_there_are_no_others(self) -> None:
        for file, (schema, _) in zip(self._found, self._looks, strict=True):
            others = set(schema.names) - set(self._looks[0].schema.names)
            if others:
                raise InvalidJob(
                    f"{file.path} has a column '{min(others)}', which {self._found[0].path} has not; name the columns to keep"
                )


def _chosen(where: Sequence[str], format: str | None, filesystem: pfs.FileSystem) -> tuple[str, list[Found]]:
    """The format, by the names of the files if it is not said, and the files."""
    if format is None:
        found = find(where, filesystem, HIDDEN)
        formats = {_format_of(file): file.path for file in found}
        if len(formats) > 1:
            several = " and ".join(f"{path} ({name})" for name, path in sorted(formats.items()))
            raise InvalidJob(
                f"the input has files of several formats, {several}; say the format, or name those of one by a pattern"
            )
        (format,) = formats
        if format != "files":
            return format, found
    if format not in FORMATS:
        raise InvalidJob(f"'{format}' is no format of input; formats are {', '.join(FORMATS)}")
    return format, find(where, filesystem, FORMATS[format].hidden)


def _format_of(file: Found) -> str:
    """What the name of a file says; files as rows, if it says nothing."""
    return next((name for name, chosen in FORMATS.items() if file.path.lower().endswith(chosen.suffixes)), "files")


def _partitions(found: Sequence[Found]) -> dict[str, pa.DataType]:
    """The columns that directories are: whole numbers, if all values are that, or text."""
    each = [partition_values(file.partition) for file in found]
    keys = list(each[0])
    for file, values in zip(found, each, strict=True):
        if list(values) != keys:
            raise InvalidJob(
                f"{found[0].path} lies in directories of {', '.join(keys) or 'no column'}, and {file.path} in those of "
                f"{', '.join(values) or 'no column'}; they must be of the same, in the same order"
            )
    return {key: pa.int64() if all(_is_whole(values[key]) for values in each) else pa.string() for key in keys}


def _is_whole(value: str | None) -> bool:
    return value is None or bool(re.fullmatch(r"-?[0-9]{1,18}", value))


def _together(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """What text is read as that looks like one in a file, and like the other in the next; None: it is not the same column."""
    if pa.types.is_null(a) or pa.types.is_null(b):
        return b if pa.types.is_null(a) else a
    is_number = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (a, b))
    return pa.float64() if is_number else None
