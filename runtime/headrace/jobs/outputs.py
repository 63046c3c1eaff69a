"""The output of a job: parts, each of which is the rows of one split. The same rows make the same bytes."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.ipc as pipc
import pyarrow.parquet as pq

from headrace.errors import InvalidJob
from headrace.jobs.cells import is_bytes
from headrace.jobs.encoding import field
from headrace.jobs.inputs import Inputs, Split
from headrace.tensor import TensorSpec

if TYPE_CHECKING:
    from typing_extensions import Buffer

_GROUP_ROWS = 128 << 10
_GROUP_BYTES = 64 << 20
"""What is gathered before it is written, as one row group."""

PartFormat = Literal["parquet", "arrow"]


class Written(NamedTuple):
    """A part that is on the disk: its rows, its size in bytes, and its SHA-256 in hex."""

    rows: int
    nbytes: int
    sha256: str


class Read(Protocol):
    """What is read: its columns, of which `partitions` are directories."""

    @property
    def schema(self) -> pa.Schema: ...  # noqa: D102

    @property
    def partitions(self) -> tuple[str, ...]: ...  # noqa: D102


def output_schema(
    read: Read, keep: Sequence[str], outputs: Sequence[TensorSpec], text: Collection[str], metadata: Mapping[str, str]
) -> pa.Schema:
    """The columns of the parts: those of the input that are kept, and the outputs, of which some are `text`.

    Raises:
        InvalidJob: an output has the name of a column that is kept.
    """
    both = next((spec.name for spec in outputs if spec.name in keep), None)
    if both is not None:
        raise InvalidJob(f"'{both}' is an output of the graph and a column that is kept; keep other columns")
    fields = [read.schema.field(name) for name in keep] + [field(spec, text=spec.name in text) for spec in outputs]
    return pa.schema(fields, metadata=dict(metadata))


def part_path(inputs: Inputs, split: Split, number: int, format: PartFormat) -> str:
    """Where the part of a split goes, below the output: in the directories its rows came from, and in order by name."""
    return str(Path(inputs.partition(split), f"part-{number:05}.{format}"))


class PartWriter:
    """Writes one part; a context manager. Left before it is closed, it removes what it has written.

    Args:
        path: of the file, which nobody looks at yet: whoever calls gives it its name when it is whole.
        schema: of `output_schema`.
        format: Parquet, or Arrow's file format.

    Raises:
        OSError: it cannot be written, for instance for the disk is full.
    """

    def __init__(self, path: Path, schema: pa.Schema, format: PartFormat = "parquet") -> None:
        self._path, self._schema = path, schema
        self._sink = _Hashing(path)
        self._held: list[pa.RecordBatch] = []
        self._rows = self._held_rows = self._held_bytes = 0
        if format == "parquet":
            # Of numbers that a model gives hardly two are the same: to look for that costs more than all the rest. And of what
            # is in lists nobody asks for the least.
            encoded: dict[str, Any] = {
                "use_dictionary": [one.name for one in schema if is_bytes(one.type)],
                "write_statistics": [one.name for one in schema if not pa.types.is_nested(one.type)],
            }
            self._writer = pq.ParquetWriter(
                self._sink, schema, version="2.6", compression="zstd", write_page_checksum=True, **encoded
            )
        else:
            self._writer = pipc.new_file(self._sink, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows, of the schema."""
        self._held.append(batch)
        self._held_rows += batch.num_rows
        self._held_bytes += batch.nbytes
        if self._held_rows >= _GROUP_ROWS or self._held_bytes >= _GROUP_BYTES:
            self._flush()

    def close(self) -> Written:
        """Finish the file, and see it to the disk."""
        self._flush()
        self._writer.close()
        self._sink.sync()
        self._sink.close()
        return Written(self._rows, self._sink.nbytes, self._sink.sha256.hexdigest())

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._sink.closed:
            self.abandon()

    def abandon(self) -> None:
        """Leave nothing of it."""
        for one in (self._writer, self._sink):
            with suppress(OSError, pa.ArrowException):  # the disk may be full, still
                one.close()
        with suppress(OSError):  # it may have no name
            self._path.unlink()

    def _flush(self) -> None:
        if self._held:
            table = pa.Table.from_batches(self._held, self._schema)
            self._writer.write_table(table, max(1, table.num_rows))
            self._rows += self._held_rows
            self._held, self._held_rows, self._held_bytes = [], 0, 0


class _Hashing(io.RawIOBase):
    """A file that is written from beginning to end, and knows its digest."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.sha256 = hashlib.sha256()
        self.nbytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        self._file.write(data)
        self.sha256.update(data)
        self.nbytes += memoryview(data).nbytes
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self.nbytes

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        super().close()
