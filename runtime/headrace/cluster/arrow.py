"""Tables for handles: Arrow columns in, Arrow columns out, as batch jobs read and write them (`headrace.jobs`)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa
from numpy.typing import NDArray

from headrace.engine.engine import Engine
from headrace.errors import InvalidRequest
from headrace.jobs.columns import Decoded, Nulls, check, decode, sources
from headrace.jobs.encoding import encode
from headrace.jobs.ragged import Ragged
from headrace.model import ModelSpec
from headrace.tensor import Tensor, TensorSpec, as_tensor, concatenate, rows_of

T = TypeVar("T")
Table: TypeAlias = "pa.Table | pa.RecordBatch"


async def infer_table(
    engine: Engine, model: str, table: Table, *, version: int, outputs: Sequence[str], timeout: float | None
) -> pa.Table:
    """The outputs of a model, a column each, for the rows of a table, whose columns are named as the inputs; in its order.

    Rows go as requests of as many rows as the model takes at once, or of one each where their lengths differ, all into the
    model's queue: so they are batched with everybody else's.

    Args:
        engine: holds the model.
        model: its name.
        table: the rows.
        version: 0 is the highest that is ready.
        outputs: names wanted; all of the model's when empty.
        timeout: seconds within which each answer is wanted.

    Raises:
        InvalidRequest: a row cannot be a row of the inputs, and which.
        HeadraceError: with the code and message that a remote client would get; the first, and nothing is left in the queue.
    """
    spec = engine.routes.resolve(model, version).spec
    whole = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
    columns = sources(spec.inputs, {name: name for name in whole.column_names if name in {i.name for i in spec.inputs}}, Nulls())
    check(whole.schema, spec.inputs, columns)
    parts = [
        part
        for batch in whole.to_batches()
        if batch.num_rows
        for part in _parts(decode(batch, spec.inputs, columns, Nulls()), spec)
    ]
    asked = (engine.infer_async(model, part, version=version, outputs=outputs, timeout=timeout) for part in parts)
    answers = await _all(asked)
    wanted = [output for output in spec.outputs if not outputs or output.name in outputs]
    columns_out = [encode(each, _rows(each, [answer[each.name] for answer in answers], spec)) for each in wanted]
    return pa.table(columns_out, [each.name for each in wanted])


async def _all(asked: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of them return; the first error ends the others."""
    tasks = [asyncio.ensure_future(each) for each in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _parts(decoded: Decoded, spec: ModelSpec) -> list[Mapping[str, Tensor]]:
    """The inputs of one request each."""
    if decoded.rejected:
        first = decoded.rejected[0]
        raise InvalidRequest(f"row {first.place} cannot be asked about: column '{first.column}': {first.reason}")
    count = len(decoded.places)
    is_ragged = any(isinstance(tensor, Ragged) for tensor in decoded.tensors.values())
    step = spec.max_batch_size if spec.max_batch_size and not is_ragged else 1
    return [
        {name: _slice(tensor, start, min(start + step, count), spec) for name, tensor in decoded.tensors.items()}
        for start in range(0, count, step)
    ]


def _slice(tensor: Tensor | Ragged, start: int, stop: int, spec: ModelSpec) -> Tensor:
    if not isinstance(tensor, Ragged):
        rows = rows_of(tensor, start, stop)
        return rows if spec.max_batch_size else rows.reshape(rows.shape[1:])
    row = tensor.row(start)
    return row.reshape((1, *row.shape)) if spec.max_batch_size else row


def _rows(output: TensorSpec, answers: Sequence[NDArray[Any]], spec: ModelSpec) -> Tensor | list[Tensor]:
    """All rows of an output: one tensor, or one for each where their dims may differ."""
    batches = [as_tensor(answer) for answer in answers]
    if not spec.max_batch_size:
        batches = [batch.reshape((1, *batch.shape)) for batch in batches]
    if batches and -1 not in output.dims:
        return concatenate(batches)
    rows = [rows_of(batch, place, place + 1) for batch in batches for place in range(batch.shape[0])]
    return [row.reshape(row.shape[1:]) for row in rows]
