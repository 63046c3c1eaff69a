"""`python -m benchmarks.record`: how long real models run, for the simulator: tests/scheduling/service_times.json.

One session with the threads that a server would give it, no server around it; of each length and row count a few dozen runs, in
microseconds. What is wanted is the shape of the distributions, not their level: the tests compare policies on the same times.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.models import MODELS, build_repository
from benchmarks.servers import REPOSITORY
from demo.minilm import model_file
from headrace.files import replace_file
from headrace.machine import usable_cpus
from headrace.tensor import DTYPES

FILE = Path(__file__).parents[1] / "tests/scheduling/service_times.json"
ROWS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (16, 32, 64, 128)
RUNS = 30
LONGEST_SECONDS = 6.0
"""For one row count: what is slow is recorded less often."""


def session(file: Path) -> ort.InferenceSession:
    """The model as a server with one instance loads it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(file), options, ["CPUExecutionProvider"])


def recorded(runs: ort.InferenceSession, inputs: dict[str, np.ndarray]) -> list[int]:
    """Runs of one batch, in us."""
    runs.run(None, inputs)
    times: list[int] = []
    until = time.monotonic() + LONGEST_SECONDS
    while len(times) < RUNS and (len(times) < 5 or time.monotonic() < until):
        began = time.perf_counter_ns()
        runs.run(None, inputs)
        times.append((time.perf_counter_ns() - began) // 1000)
    return times


def main() -> None:
    """Write the file."""
    random = np.random.default_rng(0)
    found: dict[str, dict[str, dict[str, list[int]]]] = {}
    repository = build_repository(REPOSITORY)
    for name in ("mid", "magika"):
        model = MODELS[name]
        runs = session(repository / name / "1/model.onnx")
        tensor, datatype, size = model.input
        found[name] = {"1": {}}
        for rows in ROWS:
            batch = random.integers(0, 256, (rows, size)).astype(DTYPES[datatype])
            found[name]["1"][str(rows)] = recorded(runs, {tensor: batch})
    runs = session(model_file())
    found["minilm"] = {}
    for length in LENGTHS:
        found["minilm"][str(length)] = {}
        for rows in ROWS[:6]:
            words = random.integers(1000, 20000, (rows, length))
            ones = np.ones_like(words)
            given = {"input_ids": words, "attention_mask": ones, "token_type_ids": 0 * ones}
            wanted = {tensor.name for tensor in runs.get_inputs()}
            found["minilm"][str(length)][str(rows)] = recorded(runs, {k: v for k, v in given.items() if k in wanted})
    lines = [
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(
            f"    {json.dumps(length)}: {{\n"
            + ",\n".join(f"      {json.dumps(rows)}: {json.dumps(times)}" for rows, times in by_rows.items())
            + "\n    }"
            for length, by_rows in lengths.items()
        )
        + "\n  }"
        for name, lengths in found.items()
    ]
    replace_file(FILE, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


if __name__ == "__main__":
    main()
