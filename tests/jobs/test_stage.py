"""A graph as a step of somebody else's pipeline; in Ray Data, see tests/cluster/test_batch.py."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import InvalidJob, JobFailed
from headrace.jobs import Stage
from tests.jobs.conftest import Run, column, read, write_vectors


def test_makes_of_a_table_what_a_job_makes_of_a_file(run: Run, repository: Path, tmp_path: Path) -> None:
    files = write_vectors(tmp_path / "in", [1000])
    stage = pickle.loads(pickle.dumps(Stage("mlp", repository, batch_rows=16)))
    table = pq.read_table(files / "000.parquet")
    chunked = pa.concat_tables([table.slice(0, 3), table.slice(3, 0), table.slice(3)])
    made, expected = stage(chunked), read(run("mlp", files))
    assert made.schema.names == expected.schema.names
    np.testing.assert_array_equal(column(made, "y"), column(expected, "y"))
    assert made["id"].to_pylist() == list(range(1000))
    assert stage(table.slice(0, 0)).schema == made.schema


def test_rows_that_cannot_be_had(repository: Path) -> None:
    table = pa.table({"id": [1, 2, 3], "n": pa.array([4, None, 6], pa.int64())})
    with pytest.raises(JobFailed, match=r"1 of 3 rows cannot be had; row 1: column 'n' is null. Say error_column=NAME"):
        Stage("lookup", repository, columns={"i": "n"}, batch_rows=4)(table)
    made = Stage("lookup", repository, columns={"i": "n"}, batch_rows=4, error_column="why")(table)
    assert made.drop_columns("y").to_pydict() == {"id": [1, 2, 3], "why": [None, "column 'n' is null", None]}
    assert [value is None for value in made["y"].to_pylist()] == [False, True, False]


def test_columns_that_do_not_fit(repository: Path) -> None:
    with pytest.raises(InvalidJob, match="has no column 'x'"):
        Stage("mlp", repository, batch_rows=16)(pa.table({"z": [1]}))
    with pytest.raises(InvalidJob, match="there is no graph 'nothing'"):
        Stage("nothing", repository, batch_rows=16)(pa.table({"x": [1]}))


def test_rows_that_become_others(repository: Path) -> None:
    texts = ["one two", "", "three four five"]
    made = Stage("words", repository, batch_rows=2)(pa.table({"text": texts}))
    assert [len(row) for row in made["y"].to_pylist()] == [2, 0, 3]
