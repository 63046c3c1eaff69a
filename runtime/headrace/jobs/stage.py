"""A graph as a step of a pipeline that somebody else runs: Arrow tables in, Arrow tables out, as a job makes them.

For Ray Data, as actors, or as tasks:

```python
ds.map_batches(Stage, fn_constructor_kwargs={"graph": "embed", "repository": "/srv/models"}, batch_format="pyarrow",
               batch_size=4096, compute=ray.data.ActorPoolStrategy(size=4), num_cpus=1)
ds.map_batches(Stage("embed", "/srv/models"), batch_format="pyarrow", batch_size=4096)
```
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.engine.profile import Profile
from headrace.errors import JobFailed
from headrace.jobs.beginning import recipe_of, versions_of
from headrace.jobs.cells import unwrapped
from headrace.jobs.columns import Nulls, check
from headrace.jobs.compiled import Compiled, compiled, measured
from headrace.jobs.cutting import shapes_for
from headrace.jobs.inputs import Split
from headrace.jobs.manifest import Options
from headrace.jobs.split import Piece, Recipe, output_of, rejected_of, window_of
from headrace.machine import usable_cpus


class Stage:
    """Runs a graph, or a model, over tables. Can be pickled; the graph is loaded by the first call, once in a process.

    A batch runs on as many threads as OMP_NUM_THREADS says, which Ray sets to the CPUs of an actor or a task; without it, on
    all cores.

    Args:
        graph: its name in `repository`.
        repository: a directory of models, which is there wherever this is called.
        columns: by input of the graph, the column it is read from, where that has another name.
        keep: the columns that go through; None for all that the graph does not read.
        text: outputs of datatype BYTES that become strings.
        nulls: what becomes of nulls.
        batch_rows: None is what the graph is measured to do best, by each machine: so others may differ in the last bits.
        error_column: a column that says why a row cannot be had, whose outputs are null then. Without one, that is an error.
    """

    def __init__(  # noqa: PLR0913
        self,
        graph: str,
        repository: Path | str,
        *,
        columns: Mapping[str, str] | None = None,
        keep: Sequence[str] | None = None,
        text: Sequence[str] = (),
        nulls: Nulls | None = None,
        batch_rows: int | None = None,
        error_column: str | None = None,
    ) -> None:
        self._graph, self._repository, self._error_column = graph, str(Path(repository).absolute()), error_column
        kept = None if keep is None else tuple(keep)
        self._options = Options(columns=columns or {}, keep=kept, text=tuple(text), nulls=nulls or Nulls(), batch_rows=batch_rows)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The rows of a table with the outputs of the graph, in order.

        Raises:
            InvalidJob, InvalidRepository: the graph or the table is not what it has to be.
            JobFailed: a row cannot be had, and there is no column to say so.
        """
        opened = _opened(self._graph, self._repository, is_measured=self._options.batch_rows is None)
        batches = table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
        whole = pa.Table.from_batches([_plain(batch) for batch in batches])
        recipe = self._recipe(opened, whole)
        made = [
            self._run(opened.graph, recipe, batch)
            for first in range(0, whole.num_rows, recipe.shapes.window_rows)
            for batch in whole.slice(first, recipe.shapes.window_rows).combine_chunks().to_batches()
        ]
        return pa.Table.from_batches(made, self._schema(recipe))

    def _recipe(self, opened: _Opened, table: pa.Table) -> Recipe:
        spec, graph = opened.graph.spec, opened.graph
        shapes = shapes_for(
            spec,
            opened.profile,
            (1, opened.threads),
            table.nbytes / max(1, table.num_rows),
            asked=self._options.batch_rows,
            has_borders=graph.has_borders,
        )
        recipe = recipe_of(spec, shapes, self._options, _Columns(table.schema), versions_of(graph))
        check(table.schema, spec.inputs, recipe.columns)
        return recipe

    def _run(self, graph: Compiled, recipe: Recipe, batch: pa.RecordBatch) -> pa.RecordBatch:
        work = window_of(recipe, Piece(0, Split(0, 0, batch.num_rows, 0), 0, batch), ())
        assert work.window is not None
        runner = graph.runner(0)
        for unit in work.window.units:
            runner.run(work.window, unit)
        made, failed = output_of(recipe, work), rejected_of(work)
        if self._error_column is None:
            if failed:
                column = f"column '{failed[0].column}' " if failed[0].column else ""
                raise JobFailed(
                    f"{len(failed)} of {batch.num_rows} rows cannot be had; row {failed[0].place}: {column}{failed[0].reason}. "
                    "Say error_column=NAME, and such rows go through with the reason"
                )
            return made
        reasons: list[str | None] = [None] * batch.num_rows
        for place, column, reason in failed:
            reasons[place] = f"column '{column}' {reason}" if column else reason
        is_well = np.array([reason is None for reason in reasons], np.bool_)
        outputs = made.take(pa.array(np.cumsum(is_well) - 1, mask=~is_well)).columns[len(recipe.keep) :]
        kept = batch.select(list(recipe.keep)).columns
        return pa.RecordBatch.from_arrays([*kept, *outputs, pa.array(reasons, pa.string())], schema=self._schema(recipe))

    def _schema(self, recipe: Recipe) -> pa.Schema:
        if self._error_column is None:
            return recipe.schema
        fields = [field.with_nullable(True) for field in recipe.schema]
        return pa.schema([*fields, pa.field(self._error_column, pa.string())], recipe.schema.metadata)


@dataclass(frozen=True, slots=True)
class _Columns:
    schema: pa.Schema
    partitions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Opened:
    """A graph that this process has loaded, until it ends."""

    graph: Compiled
    profile: Profile | None
    threads: int


_loaded: dict[tuple[str, str, int, bool], _Opened] = {}
_loading = threading.Lock()
_stack = ExitStack()
atexit.register(_stack.close)


def _opened(graph: str, repository: str, *, is_measured: bool) -> _Opened:
    told = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(told) if told.isdecimal() and int(told) else usable_cpus()
    key = (graph, repository, threads, is_measured)
    with _loading:
        if key not in _loaded:
            profile = measured(repository, graph, threads) if is_measured else None
            _loaded[key] = _Opened(_stack.enter_context(compiled(repository, graph, threads)), profile, threads)
        return _loaded[key]


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([unwrapped(column) for column in batch.columns], names=batch.schema.names)
