"""`python -m benchmarks.raw_loop --model M --rows N`: onnxruntime in a loop, one thread, nothing around it. The limit.

With `--best`, it tries powers of two and says which is fastest.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.models import MODELS, Model, build_repository
from benchmarks.servers import REPOSITORY
from headrace.tensor import DTYPES

MOST_ROWS = 64
"""The largest batch that is tried where nobody asks for more."""


def session_of(repository: Path, model: Model) -> ort.InferenceSession:
    """The model as the servers load it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(repository / model.name / "1" / "model.onnx"), options, ["CPUExecutionProvider"])


def rows_per_second(session: ort.InferenceSession, model: Model, rows: int, seconds: float) -> float:
    """Rows a second at so many rows a batch."""
    random = np.random.default_rng(0)
    name, datatype, size = model.input
    batch = random.standard_normal((rows, size), np.float32)
    batch = batch if datatype == "FP32" else random.integers(0, 256, (rows, size)).astype(DTYPES[datatype])
    session.run(None, {name: batch})
    began, runs = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        session.run(None, {name: batch})
        runs += 1
    return runs * rows / took


def sizes(most: int) -> list[int]:
    """The sizes of batches that are tried: 1, 2, 4 … up to `most`."""
    return [1 << power for power in range(most.bit_length())]


def best_batch(session: ort.InferenceSession, model: Model, most: int = MOST_ROWS) -> tuple[int, float]:
    """The size of batches, up to `most`, at which most rows are done, and how many a second."""
    rates = {size: rows_per_second(session, model, size, 0.5) for size in sizes(most)}
    return max(rates.items(), key=lambda each: each[1])


def main() -> None:
    """Print {"rows": …, "rate": …} as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.raw_loop", description="onnxruntime in a loop.")
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--best", action="store_true", help=f"try 1, 2, 4 … up to {MOST_ROWS} rows")
    given = parser.parse_args()
    model = MODELS[given.model]
    session = session_of(build_repository(REPOSITORY), model)
    tried = sizes(MOST_ROWS) if given.best else [given.rows]
    rates = {rows: rows_per_second(session, model, rows, given.seconds) for rows in tried}
    best = max(rates, key=lambda rows: rates[rows])
    print(json.dumps({"rows": best, "rate": rates[best], "rates": rates}))


if __name__ == "__main__":
    main()
