"""Metrics of a model's own. They are counted in its process, and are not in the metrics of the server yet."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import ClassVar

from headrace.backends.triton_python.tensors import TritonModelException


class MetricKind(Enum):
    """What a metric is."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


class Metric:
    """One series of a family. Made by `MetricFamily.Metric`."""

    def __init__(self, kind: MetricKind, labels: Mapping[str, str], buckets: Sequence[float]) -> None:
        self._kind, self.labels, self._bounds = kind, dict(labels), list(buckets)
        self._value, self._counts, self._lock = 0.0, [0] * (len(self._bounds) + 1), threading.Lock()

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
            self._value += value

    def set(self, value: float) -> None:
        """Set it.

        Raises:
            TritonModelException: it is no gauge.
        """
        if self._kind is not MetricKind.GAUGE:
            raise TritonModelException(f"TRITONSERVER_METRIC_KIND_{self._kind.name} does not support Set")
        with self._lock:
            self._value = value

    def observe(self, value: float) -> None:
        """Count a value in its bucket.

        Raises:
            TritonModelException: it is no histogram.
        """
        if self._kind is not MetricKind.HISTOGRAM:
            raise TritonModelException(f"TRITONSERVER_METRIC_KIND_{self._kind.name} does not support Observe")
        with self._lock:
            self._value += value
            self._counts[bisect.bisect_left(self._bounds, value)] += 1

    def value(self) -> float:
        """What it is now.

        Raises:
            TritonModelException: it is a histogram.
        """
        self._check(MetricKind.HISTOGRAM, "Value")
        return self._value

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
        if any(known.name == name and known.kind is not kind for known in self.families):
            raise TritonModelException(f"metric family '{name}' is there already, and is of another kind")
        self.name, self.description, self.kind = name, description, kind
        self.series: list[Metric] = []
        self.families.append(self)

    def Metric(self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] | None = None) -> Metric:
        """A series of it, by its labels; of a histogram with the upper bounds of its buckets.

        Raises:
            TritonModelException: a histogram has no buckets, or another one has some.
        """
        if (self.kind is MetricKind.HISTOGRAM) != bool(buckets):
            raise TritonModelException(f"metric family '{self.name}': buckets are for histograms, which need them")
        labels = {str(key): str(value) for key, value in (labels or {}).items()}
        if (known := next((metric for metric in self.series if metric.labels == labels), None)) is not None:
            return known
        metric = Metric(self.kind, labels, sorted(buckets or ()))
        self.series.append(metric)
        return metric
