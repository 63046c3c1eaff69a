"""A split on its way: its windows made of what is read, its part made of what they became."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.errors import BackendFailed
from headrace.jobs.columns import Decoded, Rejected, decode
from headrace.jobs.cutting import bytes_of
from headrace.jobs.encoding import encode
from headrace.jobs.flow import Work
from headrace.jobs.inputs import Inputs, Split
from headrace.jobs.manifest import Options, Shapes
from headrace.jobs.window import Results, Window
from headrace.model import ModelSpec
from headrace.tensor import DTYPES


@dataclass(frozen=True, slots=True)
class Recipe:
    """What every split of a job is made by. `columns` has, by input of the graph, the column it is read from."""

    spec: ModelSpec
    shapes: Shapes
    options: Options
    columns: Mapping[str, str]
    keep: Sequence[str]
    schema: pa.Schema
    """Of the parts."""


@dataclass(slots=True)
class Piece:
    """Rows of a split that were read together: `first` of them is that row of the split. `batch` None ends the split."""

    number: int
    split: Split
    first: int = 0
    batch: pa.RecordBatch | None = None
    decoded: Decoded | None = None


def windows(recipe: Recipe, inputs: Inputs, number: int, split: Split) -> Iterator[Work[Piece]]:
    """Read a split.

    Raises:
        JobFailed: it cannot be read, or is not what it was.
    """
    first = 0
    for read in inputs.read(split, recipe.shapes.window_rows):
        yield window_of(recipe, Piece(number, split, first, read.batch), read.rejected)
        first += read.batch.num_rows
    yield Work(Piece(number, split, first))


def window_of(recipe: Recipe, piece: Piece, rejected: Sequence[Rejected]) -> Work[Piece]:
    """What has been read as a window; some rows of it may be no rows."""
    batch, spec = piece.batch, recipe.spec
    assert batch is not None
    piece.decoded = decode(batch, spec.inputs, recipe.columns, recipe.options.nulls, rejected)
    rows = len(piece.decoded.places)
    made = rows * bytes_of(spec.outputs)
    if any(output.datatype not in DTYPES or -1 in output.dims for output in spec.outputs):
        made += batch.nbytes  # nobody knows
    window = Window(spec, piece.decoded.tensors, rows, recipe.shapes)
    return Work(piece, window, batch.nbytes + made, batch.num_rows - window.running)


def output_of(recipe: Recipe, work: Work[Piece]) -> pa.RecordBatch:
    """The rows of a part that a window became. Those whose outputs are no columns have failed, too."""
    batch, decoded, window = work.owner.batch, work.owner.decoded, work.window
    assert batch is not None
    assert decoded is not None
    assert window is not None
    results = window.results
    well = results.well
    try:
        outputs = _encoded(recipe, results, well)
    except BackendFailed:
        for row in well.tolist():
            try:
                _encoded(recipe, results, np.array([row], np.intp))
            except BackendFailed as error:
                results.fail(row, error)
        well = results.well
        outputs = _encoded(recipe, results, well)
    kept = batch.select(list(recipe.keep))
    if len(well) != batch.num_rows:
        kept = kept.take(pa.array(decoded.places[well]))
    return pa.RecordBatch.from_arrays([*kept.columns, *outputs], schema=recipe.schema)


def _encoded(recipe: Recipe, results: Results, rows: NDArray[np.intp]) -> list[pa.Array]:
    outputs = results.of(rows)
    return [encode(o, outputs[o.name], text=o.name in recipe.options.text) for o in recipe.spec.outputs]


def rejected_of(work: Work[Piece]) -> list[Rejected]:
    """The rows of a window of which there is no output, in order. `output_of` has been called."""
    decoded, window = work.owner.decoded, work.window
    assert decoded is not None
    assert window is not None
    failed = [Rejected(int(decoded.places[row]), "", reason) for row, reason in window.results.failed.items()]
    return sorted([*decoded.rejected, *failed])


def rejects_of(inputs: Inputs, work: Work[Piece]) -> list[str]:
    """A line of JSON for each row of a window that is not in its part, in order."""
    piece = work.owner
    lines: list[str] = []
    for place, column, reason in rejected_of(work):
        file, row = inputs.place(piece.split, piece.first + place)
        lines.append(json.dumps({"file": file, "row": row, "column": column or None, "reason": reason}, ensure_ascii=False))
    return lines
