"""What a job may do with the code of others, and what it does with answers that do not come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import InvalidJob
from headrace.jobs import BatchJob, Options
from headrace.jobs.compiled import at_once
from tests.jobs.conftest import Run, build_repository, column, read, write_vectors
from tests.python.conftest import write_node

PYTHON = """
backend: "python"
max_batch_size: 4
input {{ name: "x" data_type: TYPE_FP32 dims: -1 }}
output {{ name: "y" data_type: TYPE_FP32 dims: -1 }}
instance_group {{ count: {count} kind: KIND_CPU }}
{more}
"""
ALONE = """
if getattr(self, "busy", False):
    raise RuntimeError("two threads at once")
self.busy = True
time.sleep(0.002)
self.busy = False
return {"y": x}
"""


def add_python(repository: Path, name: str, body: str, count: int = 1, more: str = "") -> None:
    (repository / name / "1").mkdir(parents=True)
    write_node(repository / name / "1", body)
    (repository / name / "config.pbtxt").write_text(PYTHON.format(count=count, more=more))


def test_no_class_is_called_by_more_threads_than_it_expects(tmp_path: Path) -> None:
    models = build_repository(tmp_path / "models")
    add_python(models, "alone", ALONE)
    add_python(models, "three", "return {'y': x}", 3)
    text = (models / "words" / "graph.yaml").read_text()
    for name, instances in (("twice", 2), ("many", 5)):
        (models / name).mkdir()
        (models / name / "graph.yaml").write_text(f"instances: {instances}\n{text}")
        (models / name / "nodes.py").write_text((models / "words" / "nodes.py").read_text())
    limits = {name: at_once(models, name) for name in ("mlp", "alone", "three", "words", "twice", "many")}
    assert limits == {"mlp": None, "alone": 1, "three": 3, "words": 1, "twice": 2, "many": 5}
    files = write_vectors(tmp_path / "in", [200])
    BatchJob("alone", models, files, tmp_path / "out", Options(batch_rows=4)).run()
    assert read(tmp_path / "out").num_rows == 200


def test_a_class_that_gives_something_else_than_it_declares(tmp_path: Path) -> None:
    """Every row is told of, none is made up."""
    models = build_repository(tmp_path / "models")
    add_python(models, "odd", "return {'y': x[:-1]}")
    files = write_vectors(tmp_path / "in", [6])
    done = BatchJob("odd", models, files, tmp_path / "out", Options(batch_rows=4)).run()
    assert (done.rejected, read(tmp_path / "out").num_rows) == (6, 0)


@pytest.mark.parametrize("words", ["decoupled", "sequences"])
def test_what_has_not_one_answer_for_each_row(tmp_path: Path, words: str) -> None:
    models = build_repository(tmp_path / "models")
    more = {"decoupled": "model_transaction_policy { decoupled: true }", "sequences": "sequence_batching { }"}[words]
    add_python(models, "other", "return {'y': x}", more=more)
    with pytest.raises(InvalidJob, match="a job needs one answer for each row"):
        BatchJob("other", models, write_vectors(tmp_path / "in", [1]), tmp_path / "out", Options(batch_rows=4)).run()


def test_a_model_without_rows(tmp_path: Path, run: Run, repository: Path) -> None:
    """Each row is a run."""
    models = build_repository(tmp_path / "models")
    config = PYTHON.format(count=1, more="").replace("max_batch_size: 4", "max_batch_size: 0").replace("dims: -1", "dims: 32")
    (models / "single" / "1").mkdir(parents=True)
    write_node(models / "single" / "1", "return {'y': 2 * x}")
    text = (models / "single" / "1" / "model.py").read_text()
    (models / "single" / "1" / "model.py").write_text(text.replace("FP32[-1]", "FP32[32]"))
    (models / "single" / "config.pbtxt").write_text(config)
    files = write_vectors(tmp_path / "in", [9])
    BatchJob("single", models, files, tmp_path / "out", Options(keep=("id",))).run()
    table, source = read(tmp_path / "out"), pq.read_table(files / "000.parquet")
    np.testing.assert_array_equal(column(table, "y"), 2 * column(source, "x"))


def test_a_job_runs_once_and_keeps_out_of_its_input(repository: Path, tmp_path: Path) -> None:
    files = write_vectors(tmp_path / "in", [3])
    job = BatchJob("mlp", repository, files, tmp_path / "out", Options(batch_rows=4))
    job.run()
    with pytest.raises(InvalidJob, match="runs once"):
        job.run()
    for where in (files, tmp_path / "**" / "*.parquet"):
        with pytest.raises(InvalidJob, match="lies in the input"):
            BatchJob("mlp", repository, where, files / "out", Options(batch_rows=4)).run()
    BatchJob("mlp", repository, files / "*.parquet", files / "out", Options(batch_rows=4)).run()


def test_optional_inputs_come_from_columns_that_are_named(run: Run, tmp_path: Path) -> None:
    """The mask is made, unless a column is said to be it."""
    table = {"ids": pa.array([[1, 2, 3]] * 2, pa.list_(pa.int64())), "m": pa.array([[1, 0, 0], [1, 1, 1]], pa.list_(pa.int64()))}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    made = column(read(run("tokens", tmp_path / "in.parquet", "made")), "sum")
    own = column(read(run("tokens", tmp_path / "in.parquet", "own", options=Options(columns={"mask": "m"}))), "sum")
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(own[1], made[0])
    assert not np.array_equal(own[0], made[0])
