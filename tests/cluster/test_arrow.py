"""Tables in, tables out, through the queues of an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import Engine
from headrace.cluster.arrow import infer_table
from headrace.errors import HeadraceError, InvalidJob, InvalidRequest, ModelNotFound
from tests.build_models import add_model, fixed, lookup, twice

WIDE = """
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: -1 }
output { name: "same" data_type: TYPE_FP32 dims: -1 }
output { name: "twice" data_type: TYPE_FP32 dims: -1 }
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    repository = tmp_path_factory.mktemp("models")
    add_model(repository, "wide", twice("FP32"), WIDE)
    add_model(repository, "lookup", lookup(), "max_batch_size: 4")
    add_model(repository, "fixed", fixed())
    with Engine(repository) as engine:
        yield engine


def ask(engine: Engine, model: str, table: Any, **options: Any) -> pa.Table:
    return asyncio.run(infer_table(engine, model, table, **{"version": 0, "outputs": (), "timeout": None, **options}))


def test_rows_come_back_in_their_order_whatever_the_chunks(engine: Engine) -> None:
    numbers = np.random.default_rng(1).integers(0, 10, 37)
    table = pa.table({"i": pa.chunked_array([numbers[:5], numbers[5:5], numbers[5:]]), "other": numbers})
    assert ask(engine, "lookup", table).to_pydict() == {"y": (numbers * 1.5).tolist()}
    batch = pa.record_batch({"i": numbers})
    assert ask(engine, "lookup", batch).to_pydict() == {"y": (numbers * 1.5).tolist()}


def test_rows_of_different_lengths_and_some_outputs(engine: Engine) -> None:
    rows = [[1.0], [2.0, 3.0], [], [4.0]]
    assert ask(engine, "wide", pa.table({"x": rows}), outputs=["twice"]).to_pydict() == {"twice": [row * 2 for row in rows]}


def test_models_that_do_not_batch_are_asked_row_by_row(engine: Engine) -> None:
    cells = np.arange(16, dtype=np.float32).reshape(2, 4, 2)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(cells)
    answer = ask(engine, "fixed", pa.table({"x": column}))
    np.testing.assert_array_equal(answer["y"].combine_chunks().to_numpy_ndarray(), -cells)


def test_no_rows_are_no_rows(engine: Engine) -> None:
    assert ask(engine, "lookup", pa.table({"i": pa.array([], pa.int64())})).to_pydict() == {"y": []}


@pytest.mark.parametrize(
    ("table", "error", "told"),
    [
        (pa.table({"j": [1]}), InvalidJob, "has no column 'i'"),
        (pa.table({"i": ["text"]}), InvalidJob, "column 'i' is string, which cannot be input 'i'"),
        (pa.table({"i": [1, None]}), InvalidRequest, "row 1 cannot be asked about: column 'i': "),
        (pa.table({"i": [1, 2, 3, 4, 99]}), HeadraceError, "out of"),
    ],
)
def test_what_cannot_be_asked_is_told(engine: Engine, table: pa.Table, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        ask(engine, "lookup", table)


def test_an_unknown_model(engine: Engine) -> None:
    with pytest.raises(ModelNotFound):
        ask(engine, "nothing", pa.table({"i": [1]}))
