"""Metrics of a model's own. Its process counts them in memory that the server reads whenever it is scraped."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping, Sequence
from enum import Enum
from math import isfinite
from time import monotonic_ns
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.backends.triton_python.requests import Server
from headrace.backends.triton_python.tensors import TritonModelException

_MOST_BUCKETS = 200
_ROOM = 1 << 16


class MetricKind(Enum):
    """What a metric is."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


Numbers = NDArray[np.float64]


class Metric:
    """One series of a family. Made by `MetricFamily.Metric`.

    Its numbers are its value (of a histogram the sum of what was observed), and then: of a gauge, when it was set last, in ns; of
    a histogram, how much was observed in each bucket, that above the last bound included.
    """

    def __init__(self, kind: MetricKind, labels: Mapping[str, str], bounds: Sequence[float], numbers: Numbers) -> None:
        self._kind, self.labels, self.bounds = kind, dict(labels), list(bounds)
        self._numbers, self._lock = numbers, threading.Lock()

    def increment(self, value: float) -> None:
        """Add to it.

        Raises:
            TritonModelException: it is a histogram, or a counter would go down.
        """
        self._check(MetricKind.HISTOGRAM, "increment")
        if self._kind is MetricKind.COUNTER and value < 0:
            raise TritonModelException(
                "TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values."
            )
        with self._lock:
            self._numbers[0] += value
            if self._kind is MetricKind.GAUGE and self._numbers[1]:
                self._numbers[1] = monotonic_ns()

    def set(self, value: float) -> None:
        """Set it.

        Raises:
            TritonModelException: it is no gauge.
        """
        if self._kind is not MetricKind.GAUGE:
            raise TritonModelException(f"TRITONSERVER_METRIC_KIND_{self._kind.name} does not support Set")
        with self._lock:
            self._numbers[:] = value, monotonic_ns()

    def observe(self, value: float) -> None:
        """Count a value in its bucket.

        Raises:
            TritonModelException: it is no histogram.
        """
        if self._kind is not MetricKind.HISTOGRAM:
            raise TritonModelException(f"TRITONSERVER_METRIC_KIND_{self._kind.name} does not support Observe")
        with self._lock:
            self._numbers[0] += value
            self._numbers[1 + bisect.bisect_left(self.bounds, value)] += 1

    def value(self) -> float:
        """What it is now, as far as this process counts it.

        Raises:
            TritonModelException: it is a histogram.
        """
        self._check(MetricKind.HISTOGRAM, "Value")
        return float(self._numbers[0])

    def _check(self, unfit: MetricKind, what: str) -> None:
        if self._kind is unfit:
            raise TritonModelException(f"TRITONSERVER_METRIC_KIND_{unfit.name} does not support {what.capitalize()}")


class MetricFamily:
    """Series of one name."""

    COUNTER = MetricKind.COUNTER
    GAUGE = MetricKind.GAUGE
    HISTOGRAM = MetricKind.HISTOGRAM
    families: ClassVar[list[MetricFamily]] = []
    """All of this process."""

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        name, description = _text(name), _text(description)
        if any(known.name == name and known.kind is not kind for known in self.families):
            raise TritonModelException(f"metric family '{name}' is there already, and is of another kind")
        self.name, self.description, self.kind = name, description, kind
        twin = next((known for known in self.families if known.name == name), None)
        self.series: list[Metric] = [] if twin is None else twin.series
        self.families.append(self)

    def Metric(self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] | None = None) -> Metric:
        """A series of it, by its labels; of a histogram with the upper bounds of its buckets.

        Raises:
            TritonModelException: a histogram has no buckets, another one has some, or the server does not take it.
        """
        if (self.kind is MetricKind.HISTOGRAM) != bool(buckets):
            raise TritonModelException(f"metric family '{self.name}': buckets are for histograms, which need them")
        bounds = sorted(map(float, buckets or ()))
        if len(bounds) > _MOST_BUCKETS:
            raise TritonModelException(f"metric family '{self.name}': a histogram has {_MOST_BUCKETS} buckets at the most")
        if not all(map(isfinite, bounds)) or len(set(bounds)) < len(bounds):
            raise TritonModelException(f"metric family '{self.name}': bounds of buckets are different numbers, not {bounds}")
        labels = {_text(key): _text(value) for key, value in (labels or {}).items()}
        with _making:
            if (known := next((metric for metric in self.series if metric.labels == labels), None)) is not None:
                return known
            metric = Metric(self.kind, labels, bounds, self._numbers(labels, bounds))
            self.series.append(metric)
            return metric

    def _numbers(self, labels: Mapping[str, str], bounds: Sequence[float]) -> Numbers:
        place, numbers = _room.take(
            {MetricKind.COUNTER: 1, MetricKind.GAUGE: 2, MetricKind.HISTOGRAM: 2 + len(bounds)}[self.kind]
        )
        told = {"name": self.name, "help": self.description, "kind": self.kind.name.lower(), "labels": labels, "bounds": bounds}
        if error := Server.ask("metric", **told, **place)["error"]:
            raise TritonModelException(error)
        return numbers


def _text(value: object) -> str:
    """As text that can be written out."""
    return str(value).encode(errors="replace").decode()


class _Room:
    """Memory for numbers, from which some are taken for ever."""

    def __init__(self) -> None:
        self._region, self._at = -1, _ROOM
        self._memory: NDArray[Any] = np.zeros(0, np.uint8)

    def take(self, count: int) -> tuple[dict[str, int], Numbers]:
        """So many numbers, and where they are."""
        nbytes = count * np.dtype(np.float64).itemsize
        if self._at + nbytes > _ROOM:
            self._region, self._memory = Server.memory(_ROOM)
            self._at = 0
        at, self._at = self._at, self._at + nbytes
        numbers = self._memory[at : self._at].view(np.float64)
        numbers[:] = 0
        return {"in": self._region, "at": at, "nbytes": nbytes}, numbers


_room, _making = _Room(), threading.Lock()
