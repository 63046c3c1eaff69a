"""What the processes of a model count by themselves, as the server reads it: in memory of theirs, without asking them."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from headrace.backends.channel import Memory
from headrace.backends.triton_python.talk import Message
from headrace.series import GAUGE, HISTOGRAM, Series, merged

MOST_SERIES = 1000
"""Of one model: each is a line of every scrape, a histogram some more."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_OURS = re.compile(r"headrace_|nv_inference_|nv_model_")


class _Cell(NamedTuple):
    """A series, and where its numbers are: see `headrace.backends.triton_python.metrics`."""

    series: Series
    numbers: Memory

    def read(self) -> Series:
        first = self.series
        numbers: list[float] = self.numbers.view(np.float64).tolist()
        if first.kind == HISTOGRAM:
            counts = tuple(map(int, numbers[1:]))
            return Series(first.name, first.help, first.kind, first.labels, numbers[0], first.bounds, counts)
        set_at = int(numbers[1]) if first.kind == GAUGE else 0
        return Series(first.name, first.help, first.kind, first.labels, numbers[0], set_at=set_at)


class Counted:
    """The series of one model. For all threads.

    Args:
        model: its name.
    """

    def __init__(self, model: str) -> None:
        self._model, self._lock = model, threading.Lock()
        self._known: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
        self._cells: dict[object, list[_Cell]] = {}
        self._past: list[Series] = []
        """What processes have counted that are gone: counters do not go back."""

    def add(self, process: object, asked: Message, memory: Memory) -> str:
        """Read a series from now on, whose numbers are in that memory of a process. Why not, if it cannot be."""
        name, kind, labels = asked["name"], asked["kind"], tuple(sorted(asked["labels"].items()))
        series = Series(name, asked["help"], kind, labels, 0.0, tuple(asked["bounds"]))
        with self._lock:
            if why := self._unfit(series, asked["labels"]):
                return f"metric '{name}': {why}"
            self._known.add((name, labels))
            self._cells.setdefault(process, []).append(_Cell(series, memory))
        return ""

    def ended(self, process: object) -> None:
        """A process is gone. Gauges say how things are, and nothing of it is any more."""
        with self._lock:
            last = [cell.read() for cell in self._cells.pop(process, ()) if cell.series.kind != GAUGE]
            self._past = merged([*self._past, *last])

    def series(self) -> list[Series]:
        """How they stand; several of a name and labels, if several processes count them."""
        with self._lock:
            return [*self._past, *(cell.read() for cells in self._cells.values() for cell in cells)]

    def _unfit(self, new: Series, labels: Mapping[str, str]) -> str:
        if not _NAME.fullmatch(new.name):
            return "a name is of letters, digits, '_' and ':', and does not begin with a digit"
        if _OURS.match(new.name):
            return "names that begin with headrace_, nv_inference_ and nv_model_ are the server's own"
        if wrong := next((label for label in labels if not _LABEL.fullmatch(label)), None):
            return f"label '{wrong}' is not of letters, digits and '_', or begins with a digit or with '__'"
        if (new.name, new.labels) not in self._known and len(self._known) >= MOST_SERIES:
            return f"model '{self._model}' has {MOST_SERIES} series, the most there may be; give them fewer labels"
        return ""
