"""`python -m benchmarks.sorted_loop --model FILE --data FILE`: onnxruntime over sentences that are sorted by length, one thread.

Batches are of neighbours, padded to the longest of them: a job that has all sentences in advance. It is what a server, whose
requests come as they come, can get near to. It tries powers of two as rows a batch, and says which is fastest.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pyarrow import feather

Batch = dict[str, NDArray[np.int64]]
SIZES = (1, 2, 4, 8, 16, 32)


def batches_of(ids: list[list[int]], rows: int) -> list[Batch]:
    """All sentences, neighbours in length together."""
    found: list[Batch] = []
    by_length = sorted(ids, key=len)
    for at in range(0, len(ids), rows):
        part = by_length[at : at + rows]
        lengths = np.array([len(each) for each in part])
        tokens = np.zeros((len(part), lengths.max()), np.int64)
        for row, each in zip(tokens, part, strict=True):
            row[: len(each)] = each
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        found.append({"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)})
    return found


def sentences_per_second(session: ort.InferenceSession, batches: list[Batch], seconds: float) -> float:
    """In whole passes, as many as fit, and at least one."""
    session.run(None, batches[-1])
    began, passes = time.perf_counter(), 0
    while not passes or time.perf_counter() - began < seconds:
        for batch in batches:
            session.run(None, batch)
        passes += 1
    took = time.perf_counter() - began
    return passes * sum(len(batch["input_ids"]) for batch in batches) / took


def main() -> None:
    """Print {"rows": …, "rate": …, "rates": …} as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sorted_loop", description="onnxruntime over sorted sentences.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(given.model), options, ["CPUExecutionProvider"])
    ids = feather.read_table(str(given.data)).column("input_ids").to_pylist()
    rates = {rows: sentences_per_second(session, batches_of(ids, rows), given.seconds) for rows in given.rows}
    best = max(rates, key=lambda rows: rates[rows])
    print(json.dumps({"rows": best, "rate": rates[best], "rates": rates}))


if __name__ == "__main__":
    main()
