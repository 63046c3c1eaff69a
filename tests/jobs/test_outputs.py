"""Parts: what is written is what was given, and the same rows make the same bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as pipc
import pyarrow.parquet as pq
import pytest

from headrace.errors import InvalidJob
from headrace.jobs.dataset import DataSet
from headrace.jobs.inputs import Inputs
from headrace.jobs.outputs import PartFormat, PartWriter, Written, output_schema, part_path
from headrace.tensor import TensorSpec
from tests.jobs.files import table, write

OUTPUTS = (TensorSpec("score", "FP32", (1,)), TensorSpec("vector", "FP16", (2, 2)), TensorSpec("label", "BYTES", (1,)))


def inputs_of(path: Path) -> Inputs:
    rows = table(20).append_column("kind", pa.array(["a", "b"] * 10).dictionary_encode())
    return DataSet.open([str(write(path / "day=3" / "x.parquet", rows).parent.parent)]).select()


def put(path: Path, schema: pa.Schema, format: PartFormat, batches: list[pa.RecordBatch]) -> Written:
    with PartWriter(path, schema, format) as part:
        for batch in batches:
            part.write(batch)
        return part.close()


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_the_same_rows_make_the_same_bytes_and_are_read_back(tmp_path: Path, format: PartFormat) -> None:
    inputs = inputs_of(tmp_path / "in")
    schema = output_schema(inputs, ["id", "kind"], OUTPUTS, ["label"], {"headrace": "{}"})
    assert schema.names == ["id", "kind", "score", "vector", "label"]
    vector = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((10, 2, 2), np.float16))
    (split,) = inputs.splits(100)
    batches = [
        pa.RecordBatch.from_arrays(
            [
                window.batch["id"], window.batch["kind"], pa.array(range(10), pa.float32()), vector,
                pa.array([f"l{n}" for n in range(10)], pa.large_string()),
            ],
            schema=schema,
        )
        for window in inputs.read(split, 10)
    ]  # fmt: skip
    written = [put(tmp_path / name, schema, format, batches) for name in ("1", "2")]
    contents = [(tmp_path / name).read_bytes() for name in ("1", "2")]
    assert contents[0] == contents[1]
    assert written[0] == written[1] == Written(20, len(contents[0]), hashlib.sha256(contents[0]).hexdigest())
    read = pq.read_table(tmp_path / "1") if format == "parquet" else pipc.open_file(tmp_path / "1").read_all()
    assert read.schema.equals(schema, check_metadata=False)
    assert read.schema.metadata[b"headrace"] == b"{}"
    assert read.column("id").to_pylist() == list(range(20))
    assert read.column("kind").to_pylist() == ["a", "b"] * 10
    assert part_path(inputs, split, 7, format) == f"day=3/part-00007.{format}"


def test_a_split_without_rows_that_are_left_is_a_part_without_rows(tmp_path: Path) -> None:
    schema = output_schema(inputs_of(tmp_path), ["id"], OUTPUTS, [], {})
    assert put(tmp_path / "part", schema, "parquet", []).rows == 0
    assert pq.read_table(tmp_path / "part").num_rows == 0


def test_rows_are_gathered_to_groups_that_depend_on_the_rows_alone(tmp_path: Path) -> None:
    schema = pa.schema({"id": pa.int64()})
    batch = pa.record_batch({"id": range(50_000)})
    put(tmp_path / "part", schema, "parquet", [batch] * 4)
    metadata = pq.ParquetFile(tmp_path / "part").metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [150_000, 50_000]


def test_what_cannot_be_written_is_an_error_of_the_system_and_leaves_nothing(tmp_path: Path) -> None:
    schema = pa.schema({"id": pa.binary()})
    batch = pa.record_batch({"id": [os.urandom(1 << 20)]})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            put(tmp_path / "part", schema, "parquet", [batch])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "part").exists()


def test_an_output_with_the_name_of_a_kept_column_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidJob, match="'id' is an output of the graph and a column that is kept"):
        output_schema(inputs_of(tmp_path), ["id"], [TensorSpec("id", "FP32", (1,))], [], {})
