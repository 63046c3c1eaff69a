"""Series that models count by themselves, for whoever scrapes the server: what they are, and how those of several become one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


@dataclass(frozen=True, slots=True)
class Series:
    """One series, as one process of a model has it. Units are the model's.

    `value` is what was counted or set, or the sum of what a histogram observed. `counts` are its buckets: up to each of `bounds`,
    and above all of them. `set_at` is when a gauge was set last, in ns; 0 if it was only moved.
    """

    name: str
    help: str
    kind: str
    labels: tuple[tuple[str, str], ...]
    value: float
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    set_at: int = 0


def merged(series: Iterable[Series]) -> list[Series]:
    """One series for each name and labels, as in a Triton, where all processes of all models write to the same.

    What was counted adds up; of a gauge that was set, the last word counts. The kind of a name is that of its first series, and
    series of another kind, or histograms with other bounds, are left out.
    """
    found: dict[tuple[str, tuple[tuple[str, str], ...]], Series] = {}
    kinds: dict[str, str] = {}
    for new in series:
        if kinds.setdefault(new.name, new.kind) != new.kind:
            continue
        known = found.setdefault((new.name, new.labels), new)
        if known is not new and known.bounds == new.bounds:
            found[new.name, new.labels] = _together(known, new)
    return list(found.values())


def _together(one: Series, other: Series) -> Series:
    if one.set_at or other.set_at:
        return max(one, other, key=lambda series: series.set_at)
    counts = tuple(a + b for a, b in zip(one.counts, other.counts, strict=True))
    return replace(one, value=one.value + other.value, counts=counts)
