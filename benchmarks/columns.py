"""`python -m benchmarks.columns`: what it costs to make tensors of columns, and columns of tensors, and to read and write files.

Of each layout: CPU time a row, and how many bytes are allocated for each byte that the column has: 0 is no copy. Of each format:
CPU time a row of reading, of decompressing and of all that lies between a file and an array; and of writing. The rows are 64
floats, or texts of about 400 bytes. Writes benchmarks/results/columns.json and prints what it found.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.feather as feather
import pyarrow.parquet as pq

from benchmarks.harness import write
from headrace.clock import MICROSECOND
from headrace.jobs.columns import Nulls, decode
from headrace.jobs.dataset import DataSet
from headrace.jobs.encoding import encode, field
from headrace.jobs.outputs import PartFormat, PartWriter
from headrace.tensor import BytesTensor, Tensor, TensorSpec

ROWS, WIDTH, WINDOW = 1 << 16, 64, 4096
VALUES = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)
FLAT = pa.array(VALUES.reshape(-1))
FIXED = pa.FixedSizeListArray.from_arrays(FLAT, WIDTH)
LISTS = pa.ListArray.from_arrays(pa.array(np.arange(0, ROWS * WIDTH + 1, WIDTH, dtype=np.int32)), FLAT)
TEXTS = pa.array(["words " * (20 + row % 100) for row in range(ROWS)])
VECTOR, VARIES, TEXT = TensorSpec("x", "FP32", (WIDTH,)), TensorSpec("x", "FP32", (-1,)), TensorSpec("x", "BYTES", (1,))

LAYOUTS: dict[str, tuple[pa.Array, TensorSpec]] = {
    "number": (pa.array(VALUES[:, 0].copy()), TensorSpec("x", "FP32", (1,))),
    "fixed-size list": (FIXED, VECTOR),
    "fixed-shape tensor": (
        pa.FixedShapeTensorArray.from_numpy_ndarray(VALUES.reshape(ROWS, 8, 8)),
        TensorSpec("x", "FP32", (8, 8)),
    ),
    "list, as fixed dims": (LISTS, VECTOR),
    "list, as dims that vary": (LISTS, VARIES),
    "text": (TEXTS, TEXT),
    "large text": (TEXTS.cast(pa.large_string()), TEXT),
    "text, in a dictionary": (TEXTS.dictionary_encode(), TEXT),
    "doubles for floats": (pa.FixedSizeListArray.from_arrays(FLAT.cast(pa.float64()), WIDTH), VECTOR),
}
OUTPUTS: dict[str, tuple[TensorSpec, Tensor]] = {
    "vectors": (VECTOR, VALUES),
    "text": (TEXT, BytesTensor.of(TEXTS.to_pylist(), (ROWS, 1))),
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.columns", description="Measure columns, tensors and files.")
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    found: dict[str, Any] = {
        "columns to tensors": {name: _told(_decoded(*LAYOUTS[name]), LAYOUTS[name][0].nbytes, rounds) for name in LAYOUTS},
        "tensors to columns": {
            name: _told(lambda spec=spec, values=values: encode(spec, values), values.nbytes, rounds)
            for name, (spec, values) in OUTPUTS.items()
        },
    }
    with tempfile.TemporaryDirectory() as directory:
        found["reading, us a row"] = _reading(Path(directory), rounds)
        found["writing, us a row"] = _writing(Path(directory), rounds)
    print(json.dumps(found, indent=1))
    write("columns", found)


def _decoded(array: pa.Array, spec: TensorSpec) -> Callable[[], object]:
    batch = pa.RecordBatch.from_arrays([array], ["x"])
    return lambda: decode(batch, [spec], {"x": "x"}, Nulls())


def _told(once: Callable[[], object], nbytes: int, rounds: int) -> dict[str, float]:
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    kept = once()
    allocated = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow
    tracemalloc.stop()
    del kept
    return {"us_a_row": _cost(once, rounds), "bytes_allocated_a_byte": round(allocated / nbytes, 3)}


def _cost(once: Callable[[], object], rounds: int) -> float:
    """CPU time a row, in us."""
    took: list[int] = []
    for _ in range(rounds):
        began = time.process_time_ns()
        once()
        took.append(time.process_time_ns() - began)
    return round(statistics.median(took) / ROWS / MICROSECOND, 4)


def _reading(directory: Path, rounds: int) -> dict[str, float]:
    vectors, texts = pa.table({"x": FIXED}), pa.table({"x": TEXTS})
    writers: dict[str, Callable[[pa.Table, Path], object]] = {
        "parquet": lambda table, path: pq.write_table(table, path, use_dictionary=False),
        "arrow": lambda table, path: feather.write_feather(table, str(path), compression="uncompressed"),
        "csv": lambda table, path: pcsv.write_csv(table, path),
        "jsonl": lambda table, path: path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist())),
    }
    found: dict[str, float] = {}
    for name, table in (("vectors", vectors), ("text", texts)):
        for suffix, put in writers.items():
            if (name, suffix) == ("vectors", "csv"):
                continue  # which has no lists
            path = directory / f"{name}.{suffix}"
            put(table, path)
            inputs = DataSet.open([str(path)], types={"x": pa.float32() if name == "vectors" else pa.string()}).select()
            splits = inputs.splits(ROWS)
            found[f"{name}, {suffix}"] = _cost(lambda i=inputs, s=splits: [list(i.read(split, WINDOW)) for split in s], rounds)
    return found


def _writing(directory: Path, rounds: int) -> dict[str, float]:
    formats: tuple[PartFormat, ...] = ("parquet", "arrow")
    found: dict[str, float] = {}
    for name, (spec, values) in OUTPUTS.items():
        schema = pa.schema([field(spec)])
        batch = pa.RecordBatch.from_arrays([encode(spec, values)], schema=schema)
        for form in formats:

            def once(schema: pa.Schema = schema, batch: pa.RecordBatch = batch, form: PartFormat = form) -> None:
                with PartWriter(directory / "part", schema, form) as part:
                    for at in range(0, ROWS, WINDOW):
                        part.write(batch.slice(at, WINDOW))
                    part.close()

            found[f"{name}, {form}"] = _cost(once, rounds)
    return found


if __name__ == "__main__":
    main()
