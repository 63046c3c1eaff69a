"""Reading a page of metrics, and making something happen that is on it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any, TypeAlias

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from headrace.engine.engine import Engine
from headrace.engine.observed import metrics_of
from headrace.ledger.tally import Tally
from headrace.telemetry.pulse import Pulse

Series: TypeAlias = tuple[str, frozenset[tuple[str, str]]]


def parse(page: bytes) -> dict[Series, float]:
    """Every sample, as Prometheus keeps it: an empty label is none."""
    families = text_string_to_metric_families(page.decode())
    return {
        (_bare(sample.name), frozenset((key, value) for key, value in sample.labels.items() if value)): sample.value
        for family in families
        for sample in family.samples
    }


def _bare(name: str) -> str:
    """The parser gives every counter the suffix that Triton's do not have."""
    return name.removesuffix("_total") if name.startswith("nv_") else name


class Observed:
    """An engine, the folder of its models, and its metrics."""

    def __init__(
        self, engine: Engine, root: Path, pulse: Pulse | None = None, side: Tally | None = None, directory: Path | None = None
    ) -> None:
        self.engine, self.root = engine, root
        self.metrics = metrics_of(engine, "portable", pulse, side, directory)

    def page(self) -> dict[Series, float]:
        return parse(self.metrics.render()[0])

    def value(self, name: str, **labels: str) -> float:
        return self.page()[name, frozenset(labels.items())]

    def values(self, name: str, by: str, **labels: str) -> dict[str, float]:
        """What a metric says that is not zero, by one of its labels; `labels` are the others."""
        found: dict[str, float] = {}
        for (known, pairs), value in self.page().items():
            rest = dict(pairs)
            key = rest.pop(by, None)
            if known == name and key is not None and rest == labels and value:
                found[key] = value
        return found

    def ask(self, model: str = "echo", rows: int = 1, width: int = 3, **options: Any) -> Mapping[str, Any]:
        return self.engine.infer(model, {"x": np.zeros((rows, width), np.int32)}, **options)

    def ask_later(self, model: str = "echo", rows: int = 1, width: int = 3) -> Future[Mapping[str, Any]]:
        """Ask in a thread of its own."""
        future: Future[Mapping[str, Any]] = Future()

        def run() -> None:
            try:
                future.set_result(self.ask(model, rows, width))
            except BaseException as error:
                future.set_exception(error)

        Thread(target=run, daemon=True).start()
        return future
