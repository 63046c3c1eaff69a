"""How the rows of a window become batches. Pure: the same rows and shapes make the same batches, whenever and wherever.

Rows of one bucket are sorted by length and cut where a batch is full; so rows that run together are about equally long, and a
batch is padded little. What comes out is put back in order by whoever runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.engine.profile import Profile
from headrace.errors import Overloaded
from headrace.jobs.manifest import Shapes
from headrace.model import ModelSpec
from headrace.tensor import DTYPES, TensorSpec

Rows: TypeAlias = "slice | NDArray[np.intp]"
"""Rows of a window: some that follow one another, or any."""

_TOGETHER = 256
"""Rows that go over the borders of a graph together, at most: several full batches of most models behind it."""
_UNPROFILED_ROWS, _WINDOW_ROWS, _MOST_WINDOW_ROWS = 1024, 4096, 1 << 15
_WINDOW_SECONDS = 0.05
"""Of work that a window of a fast model has, up to the most rows: what is done once a window should cost little beside it."""
_WINDOW_BYTES = 32 << 20
_SPLIT_SECONDS, _SPLIT_WINDOWS = 20, 64
"""What is lost when a run is killed: at most so much work, where it is known how long rows take."""
_UNPROFILED_BATCH = 64


def in_parallel(profile: Profile | None, cpus: int, most: int | None = None) -> tuple[int, int]:
    """How many batches run at once, and on how many threads each.

    One a core, unless one on all cores was measured to do more; or `most`, which share the cores.
    """
    if profile is not None and profile.calls is not None and profile.calls.better == "threads_per_call":
        return 1, cpus
    runners = cpus if most is None else min(most, cpus)
    return runners, cpus // runners


def shapes_for(
    spec: ModelSpec,
    profile: Profile | None,
    parallel: tuple[int, int],
    bytes_per_row: float,
    *,
    asked: int | None,
    has_borders: bool,
) -> Shapes:
    """How to cut the rows of a new job.

    Args:
        spec: of the graph.
        profile: what was measured of it, if that could be.
        parallel: see `in_parallel`.
        bytes_per_row: of what is read, about.
        asked: rows of a batch, if somebody has said how many.
        has_borders: whether its rows become others on the way.
    """
    edges = spec.padding.edges if spec.padding is not None else (0,)
    rows = tuple((edge, _batch_rows(spec, profile, edge, asked)) for edge in edges)
    largest = max(most for _, most in rows)
    wanted, in_split = _UNPROFILED_ROWS, 0
    if profile is not None:
        rate = parallel[0] * profile.fastest(profile.lengths[-1]).best_rate
        wanted, in_split = min(_MOST_WINDOW_ROWS, max(_WINDOW_ROWS, int(_WINDOW_SECONDS * rate))), int(_SPLIT_SECONDS * rate)
    # What is read may be packed: an input is no smaller than it is declared.
    row = max(bytes_per_row, bytes_of(spec.inputs)) + bytes_of(spec.outputs)
    fitting = int(_WINDOW_BYTES / max(1.0, row))
    window = max(1, min(fitting, wanted) // largest) * largest
    windows = max(1, min(_SPLIT_WINDOWS, in_split // window))
    return Shapes(
        batch_rows=rows,
        unit_rows=_TOGETHER if has_borders else 0,
        window_rows=window,
        split_rows=window * windows,
        runners=parallel[0],
        threads=parallel[1],
    )


def bytes_of(tensors: Iterable[TensorSpec]) -> int:
    """How large a row of these is, as far as that is known beforehand."""
    fixed = [tensor for tensor in tensors if tensor.datatype in DTYPES and -1 not in tensor.dims]
    return sum(math.prod(tensor.dims) * DTYPES[tensor.datatype].itemsize for tensor in fixed)


def _batch_rows(spec: ModelSpec, profile: Profile | None, edge: int, asked: int | None) -> int:
    most = max(1, spec.max_batch_size)
    if spec.padding is not None and spec.padding.max_elements:
        most = max(1, min(most, spec.padding.max_elements // edge))
    if asked is not None:
        return min(asked, most)
    if profile is None:
        return min(most, _UNPROFILED_BATCH)
    # Of a length that was not looked at, as of the next that was: it is no better with more rows.
    measured = next((length for length in profile.lengths if length >= edge), profile.lengths[-1])
    return min(most, profile.fastest(measured).rows)


def cut(buckets: NDArray[np.int64], lengths: NDArray[np.int64], places: NDArray[np.intp], shapes: Shapes) -> list[Rows]:
    """The batches of a window.

    Args:
        buckets: of each row, [n]; only rows of one bucket can share a batch. With padding, the edge of its bucket of lengths.
        lengths: of each row, [n], by which the rows of a bucket are sorted.
        places: the rows that are to run, ascending, [m].
        shapes: how many rows a batch has.
    """
    if not len(places):
        return []
    own, wide = buckets[places], lengths[places]
    if (own == own[0]).all() and (wide == wide[0]).all():
        step, first = _rows_at(shapes, int(own[0])), int(places[0])
        if len(places) == places[-1] - first + 1:
            last = first + len(places)
            return [slice(at, min(at + step, last)) for at in range(first, last, step)]
        return [places[at : at + step] for at in range(0, len(places), step)]
    order = places[np.lexsort((wide, own))]
    borders = [0, *(np.flatnonzero(np.diff(buckets[order])) + 1).tolist(), len(order)]
    found: list[Rows] = []
    for first, last in pairwise(borders):
        step = _rows_at(shapes, int(buckets[order[first]]))
        found += [order[at : min(at + step, last)] for at in range(first, last, step)]
    return found


def _rows_at(shapes: Shapes, bucket: int) -> int:
    return next((rows for edge, rows in shapes.batch_rows if edge >= bucket), shapes.batch_rows[-1][1])


def units(batches: Sequence[Rows], shapes: Shapes) -> list[Sequence[Rows]]:
    """The batches in runs, each of which one runner takes at a time.

    Over borders go all rows of a run together, so there it decides about batches, and depends on nothing but `shapes`; elsewhere
    it only saves runners the way.
    """
    sizes = list(map(count, batches))
    share = -(-sum(sizes) // (4 * shapes.runners))
    most = min(shapes.unit_rows, share) if shapes.unit_rows else share
    found: list[list[Rows]] = []
    held = most
    for batch, rows in zip(batches, sizes, strict=True):
        if held >= most:
            found.append([])
            held = 0
        found[-1].append(batch)
        held += rows
    return list(found)


def count(rows: Rows) -> int:
    """How many rows there are."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def bisect(first: int, last: int, run: Callable[[int, int], None], fail: Callable[[int, Exception], None]) -> None:
    """Run what lies between `first` and `last`; where that raises, halve it until who is guilty is alone, and `fail` that.

    Raises:
        Overloaded, MemoryError: what runs it cannot run now, whatever it is.
    """
    try:
        run(first, last)
    except (Overloaded, MemoryError):
        raise
    except Exception as error:
        if last - first == 1:
            fail(first, error)
            return
        middle = (first + last) // 2
        bisect(first, middle, run, fail)
        bisect(middle, last, run, fail)
