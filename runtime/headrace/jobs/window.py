"""A window of a split: rows that are cut into batches together, what goes into the graph, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.backends.base import Session
from headrace.errors import BackendFailed, HeadraceError, InvalidRequest, sentence
from headrace.graph.fan import picked
from headrace.jobs.cutting import Rows, bisect, count, cut, units
from headrace.jobs.inner import pieces_of
from headrace.jobs.manifest import Shapes
from headrace.jobs.ragged import Ragged
from headrace.model import ModelSpec
from headrace.protocol.padding import Lengths
from headrace.protocol.validate import Admitted, resolve_reshape
from headrace.request import Head, Request
from headrace.scheduling.answers import checked_outputs
from headrace.scheduling.padding import cut as cut_back
from headrace.scheduling.padding import cut_dimension, padded_inputs
from headrace.tensor import DTYPES, BytesTensor, Tensor, concatenate, rows_of

Inputs = Mapping[str, "Tensor | Ragged"]
"""By input of the graph; of each, one row a row of the window."""


class Results:
    """What came of the rows of a window. Each row is written by one thread, once.

    `failed` has, by row, why there is nothing.
    """

    def __init__(self, spec: ModelSpec, rows: int) -> None:
        self._spec, self._rows = spec, rows
        self._fixed: dict[str, NDArray[Any]] = {}
        self._single: dict[str, list[Tensor | None]] = {}
        for output in spec.outputs:
            if output.datatype == "BYTES" or -1 in output.dims:
                self._single[output.name] = [None] * rows
            else:
                self._fixed[output.name] = np.empty((rows, *output.dims), DTYPES[output.datatype])
        self.failed: dict[int, str] = {}
        self._is_there = np.zeros(rows, np.bool_)

    def put(self, rows: Rows, outputs: Mapping[str, Tensor]) -> None:
        """The outputs of some rows, stacked."""
        self._is_there[rows] = True
        for name, to in self._fixed.items():
            to[rows] = outputs[name]
        if self._single:
            places = range(rows.start, rows.stop) if isinstance(rows, slice) else rows.tolist()
            for name, kept in self._single.items():
                for at, place in enumerate(places):
                    kept[place] = _first(rows_of(outputs[name], at, at + 1))

    def put_row(self, row: int, outputs: Mapping[str, Tensor]) -> None:
        """The outputs of one row, without a dimension of rows."""
        self._is_there[row] = True
        for name, to in self._fixed.items():
            to[row] = outputs[name]
        for name, kept in self._single.items():
            kept[row] = outputs[name]

    @property
    def well(self) -> NDArray[np.intp]:
        """The rows that have not failed."""
        rows = np.arange(self._rows, dtype=np.intp)
        return np.delete(rows, list(self.failed)) if self.failed else rows

    def fail(self, row: int, error: BaseException) -> None:
        """There is nothing for a row."""
        self.failed[row] = sentence(error)

    def close(self, rows: Rows) -> None:
        """Nothing more comes for these rows: those that nobody has answered have failed."""
        if not self._is_there[rows].all():
            for row in _places(rows):
                if not self._is_there[row] and row not in self.failed:
                    self.fail(row, BackendFailed("the graph did not answer this row"))

    def of(self, rows: NDArray[np.intp]) -> dict[str, Tensor | list[Tensor]]:
        """The outputs of these rows, none of which failed: stacked, or one by one where their shapes vary."""
        whole = len(rows) == self._rows
        found: dict[str, Tensor | list[Tensor]] = {}
        for output in self._spec.outputs:
            if output.name in self._fixed:
                found[output.name] = self._fixed[output.name] if whole else self._fixed[output.name][rows]
                continue
            kept = self._single[output.name]
            single = [tensor for row in rows.tolist() if (tensor := kept[row]) is not None]
            if -1 in output.dims:
                found[output.name] = single
            else:
                stacked = [tensor.reshape((1, *output.dims)) for tensor in single]
                found[output.name] = concatenate(stacked) if stacked else BytesTensor.of([], (0, *output.dims))
        return found


def _first(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[1:])


class Window:
    """Rows on their way through the graph.

    Args:
        spec: of the graph.
        inputs: what the rows bring.
        rows: how many there are.
        shapes: how they are cut into batches.
    """

    def __init__(self, spec: ModelSpec, inputs: Inputs, rows: int, shapes: Shapes) -> None:
        self._spec, self._inputs, self._shapes = spec, inputs, shapes
        self.results = Results(spec, rows)
        self.outputs = tuple([output.name for output in spec.outputs])
        """All of them: what is wanted of every batch."""
        self._admitted = self._judged(rows) if spec.padding is not None else []
        places = self.results.well
        self.running = len(places)
        """Rows that go into the graph."""
        self.units = units(cut(*self._keys(rows), places, shapes), shapes)
        self.is_wanted = True
        """Whether anybody still waits for what comes of it."""

    def _judged(self, rows: int) -> list[Admitted | None]:
        """Each row as a request of it would be judged."""
        lengths = Lengths(self._spec)
        judged: list[Admitted | None] = []
        for row in range(rows):
            own = {name: _row(tensor, row) for name, tensor in self._inputs.items()}
            try:
                judged.append(Admitted(own, (), 1, (), 0, *lengths.judge("", own)))
            except InvalidRequest as error:
                self.results.fail(row, error)
                judged.append(None)
        return judged

    def _keys(self, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each row its bucket, and its length."""
        if self._spec.padding is not None:
            padded = [(0, 0) if row is None else (row.padded, row.length) for row in self._admitted]
            keys = np.array(padded, np.int64).reshape(rows, 2)
            return keys[:, 0], keys[:, 1]
        zeros = np.zeros(rows, np.int64)
        shapes = [tensor.shapes for tensor in self._inputs.values() if isinstance(tensor, Ragged)]
        if shapes and rows:  # of one shape, or apart
            return np.unique(np.hstack(shapes), axis=0, return_inverse=True)[1].reshape(rows).astype(np.int64), zeros
        texts = [tensor for tensor in self._inputs.values() if isinstance(tensor, BytesTensor)]
        if texts and self._shapes.unit_rows:  # what becomes of long texts behind a border is long, too
            width = texts[0].size // max(1, rows)
            return zeros, np.diff(texts[0].offsets).reshape(rows, width).sum(1)
        return zeros, zeros

    def gather(self, rows: Rows) -> tuple[dict[str, Tensor], int]:
        """The inputs of a batch as the model sees them, and the length to which they are padded, 0 without padding."""
        if self._spec.padding is not None:
            members = [self._admitted[row] for row in _places(rows)]
            longest = max(member.length for member in members if member is not None)
            return padded_inputs(self._spec, [m._replace(padded=longest) for m in members if m is not None]), longest
        tensors: dict[str, Tensor] = {}
        for declared in self._spec.inputs:
            if declared.name not in self._inputs:
                continue
            tensor = _taken(self._inputs[declared.name], rows)
            if declared.reshape is not None:
                tensor = tensor.reshape((tensor.shape[0], *resolve_reshape(tensor.shape[1:], declared.dims, declared.reshape)))
            tensors[declared.name] = tensor if self._spec.max_batch_size > 0 else _first(tensor)
        return tensors, 0

    def run(self, rows: Rows, session: Session) -> None:
        """Run a batch. Rows for which that raises have failed.

        Raises:
            Overloaded, MemoryError: nothing can be run now.
        """

        def run(first: int, last: int) -> None:
            JobBatch(self._spec, self, _between(rows, first, last)).run(session)

        def fail(place: int, error: Exception) -> None:
            self.results.fail(_places(rows)[place], BackendFailed.of(error))

        if session.replayable:
            bisect(0, count(rows), run, fail)
            return
        try:
            run(0, count(rows))
        except Exception as error:
            for place in range(count(rows)):
                fail(place, error)

    def length(self, row: int) -> int:
        """How long a padded row is."""
        admitted = self._admitted[row]
        return 0 if admitted is None else admitted.length


class JobBatch:
    """Rows of a window as a session sees a batch: each is a request of its own. See `scheduling.base.Batch`."""

    number = model_number = 0

    def __init__(self, spec: ModelSpec, window: Window, rows: Rows) -> None:
        self._spec, self._window, self._chosen = spec, window, rows
        self.rows = count(rows)
        self.offsets = list(range(self.rows + 1))  # a request a row
        self._tensors: Mapping[str, Tensor] | None = None
        self._padded = 0

    def __len__(self) -> int:
        return self.rows

    @property
    def is_wanted(self) -> bool:
        """Whether the job still goes on."""
        return self._window.is_wanted

    def tensors(self) -> Mapping[str, Tensor]:
        """The inputs by name; gathered by the first call."""
        if self._tensors is None:
            self._tensors, self._padded = self._window.gather(self._chosen)
        return self._tensors

    def wanted(self) -> tuple[str, ...]:
        """All outputs."""
        return self._window.outputs

    def away(self) -> None:
        """Nothing is left of the batch before."""

    @property
    def requests(self) -> list[Request]:
        """The rows as requests, for models that ask for these."""
        tensors = self.tensors()
        whole = self._spec.max_batch_size == 0
        rows = [tensors] if whole else [_between_of(tensors, row, row + 1) for row in range(self.rows)]
        return [Request(self._spec.name, row) for row in rows]

    @property
    def heads(self) -> list[Head]:
        """Nobody in particular has sent them."""
        return [Head(self._spec.name, outputs=self.wanted())] * self.rows

    def only(self, index: int) -> JobBatch:
        """One row as a batch of its own."""
        return JobBatch(self._spec, self._window, _between(self._chosen, index, index + 1))

    def part(self, gone: Callable[[int], None]) -> list[_Part]:
        """Each row by itself, to be answered later; nobody cancels it."""
        return [_Part(self, index) for index in range(self.rows)]

    def fail(self, error: HeadraceError, index: int) -> None:
        """There is nothing for a row."""
        self._window.results.fail(_places(self._chosen)[index], error)

    def send(self, index: int, outputs: Mapping[str, Tensor]) -> None:
        """The outputs of one row.

        Raises:
            BackendFailed: they are not what was declared.
        """
        own = checked_outputs(self._spec, outputs, self.wanted(), 1, self._padded)
        self._put(_places(self._chosen)[index], own)

    def run(self, session: Session) -> None:
        """Run the rows, and keep what comes of them."""
        outputs = session.run(self)
        if isinstance(outputs, dict):
            self._reply(outputs)
            return
        for index, piece, _ in pieces_of(outputs, self.offsets):
            try:
                if isinstance(piece, HeadraceError):
                    raise piece
                self.send(index, piece)
            except HeadraceError as error:
                self.fail(error, index)

    def _reply(self, outputs: Mapping[str, Tensor]) -> None:
        checked = checked_outputs(self._spec, outputs, self.wanted(), self.rows, self._padded)
        if self._spec.max_batch_size == 0:
            self._put(_places(self._chosen)[0], checked)
        elif self._padded and any(cut_dimension(self._spec, output) is not None for output in self._spec.outputs):
            for index, row in enumerate(_places(self._chosen)):
                self._put(row, _between_of(checked, index, index + 1))
        else:
            self._window.results.put(self._chosen, checked)

    def _put(self, row: int, outputs: dict[str, Tensor]) -> None:
        if self._padded:
            outputs = cut_back(self._spec, outputs, self._window.length(row))
        if self._spec.max_batch_size > 0:
            outputs = {name: _first(tensor) for name, tensor in outputs.items()}
        self._window.results.put_row(row, outputs)


class _Part:
    """A row that is answered when what it became behind a border has come back. See `backends.base.Part`."""

    def __init__(self, batch: JobBatch, index: int) -> None:
        self._batch, self._index = batch, index

    def wanted(self) -> tuple[str, ...]:
        """All outputs."""
        return self._batch.wanted()

    def send(self, index: int, outputs: Mapping[str, Tensor], final: bool) -> None:
        """Its outputs."""
        self._batch.send(self._index, outputs)

    def fail(self, error: HeadraceError) -> None:
        """There is nothing for it."""
        self._batch.fail(error, self._index)


def _between_of(tensors: Mapping[str, Tensor], first: int, last: int) -> dict[str, Tensor]:
    return {name: rows_of(tensor, first, last) for name, tensor in tensors.items()}


def _row(tensor: Tensor | Ragged, row: int) -> Tensor:
    """A row, as one row."""
    if isinstance(tensor, Ragged):
        own = tensor.row(row)
        return own.reshape((1, *own.shape))
    return rows_of(tensor, row, row + 1)


def _taken(tensor: Tensor | Ragged, rows: Rows) -> Tensor:
    if isinstance(tensor, Ragged):
        return concatenate([_row(tensor, row) for row in _places(rows)])
    if isinstance(rows, slice):
        return rows_of(tensor, rows.start, rows.stop)
    return picked(tensor, rows.tolist()) if isinstance(tensor, BytesTensor) else tensor[rows]


def _places(rows: Rows) -> Sequence[int]:
    return range(rows.start, rows.stop) if isinstance(rows, slice) else rows.tolist()


def _between(rows: Rows, first: int, last: int) -> Rows:
    return slice(rows.start + first, rows.start + last) if isinstance(rows, slice) else rows[first:last]
