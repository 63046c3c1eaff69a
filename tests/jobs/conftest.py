"""Small models and data sets, and jobs over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.jobs import BatchJob, Options
from tests.build_models import add_model, lookup, mlp

MLP = """
max_batch_size: 64
input { name: "x" data_type: TYPE_FP32 dims: 32 }
output { name: "y" data_type: TYPE_FP32 dims: 8 }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
"""
LOOKUP = """
max_batch_size: 64
input { name: "i" data_type: TYPE_INT64 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""
TOKENS = """
max_batch_size: 8
input { name: "ids" data_type: TYPE_INT64 dims: -1 }
input { name: "mask" data_type: TYPE_INT64 dims: -1 optional: true }
output { name: "hidden" data_type: TYPE_FP32 dims: [ -1, 4 ] }
output { name: "sum" data_type: TYPE_FP32 dims: 4 }
parameters { key: "padding" value { string_value: "ids=0 mask=0" } }
parameters { key: "padding_mask" value { string_value: "mask" } }
parameters { key: "padding_buckets" value { string_value: "4 8 16" } }
"""
WORDS = """
max_batch_size: 8
inputs: {text: "BYTES[1]"}
outputs: {y: "FP32[-1,1]"}
nodes:
  words:
    run: nodes.py:Words
    inputs: {text: text}
    outputs: {i: i}
  look:
    model: lookup
    inputs: {i: i}
    outputs: {y: y}
"""
WORDS_NODE = '''
import numpy as np
from headrace.node import Rows

class Words:
    """The length of each word of a text: many rows of one, or none."""
    inputs = {"text": "BYTES[1]"}
    outputs = {"i": "INT64[1]"}
    rows = "many"

    def load(self, context):
        pass

    def run(self, tensors):
        lengths = [[len(word) for word in text.split()] for (text,) in tensors["text"]]
        flat = [length for each in lengths for length in each]
        return Rows({"i": np.array(flat, np.int64).reshape(-1, 1)}, counts=[len(each) for each in lengths])
'''


def tokens() -> onnx.ModelProto:
    """`hidden`: a vector of 4 for each id that the mask lets through; `sum` of them. Ids from 0 to 99."""
    table = np.random.default_rng(3).standard_normal((100, 4), np.float32)
    names = {"ids": TensorProto.INT64, "mask": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(name, kind, ["n", "w"]) for name, kind in names.items()]
    outputs = [
        helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["n", "w", 4]),
        helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 4]),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["own"]),
        helper.make_node("Cast", ["mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["wide"]),
        helper.make_node("Mul", ["own", "wide"], ["hidden"]),
        helper.make_node("ReduceSum", ["hidden", "middle"], ["sum"], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([2], np.int64), "last"),
        numpy_helper.from_array(np.array([1], np.int64), "middle"),
    ]
    graph = helper.make_graph(nodes, "tokens", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def build_repository(root: Path) -> Path:
    """Models `mlp`, `lookup` and `tokens`, and the graph `words`, whose rows become many."""
    add_model(root, "mlp", mlp(), MLP)
    add_model(root, "lookup", lookup(), LOOKUP)
    add_model(root, "tokens", tokens(), TOKENS)
    (root / "words").mkdir(parents=True)
    (root / "words" / "graph.yaml").write_text(WORDS)
    (root / "words" / "nodes.py").write_text(WORDS_NODE)
    return root


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_repository(tmp_path_factory.mktemp("models"))


def write_vectors(directory: Path, rows: Sequence[int], width: int = 32) -> Path:
    """A Parquet file for each of these numbers of rows: `id`, from 0 on through all of them, and `x`."""
    directory.mkdir(parents=True, exist_ok=True)
    first = 0
    for number, count in enumerate(rows):
        x = np.random.default_rng(number).standard_normal((count, width), np.float32)
        table = pa.table({"id": np.arange(first, first + count), "x": pa.FixedSizeListArray.from_arrays(x.reshape(-1), width)})
        pq.write_table(table, directory / f"{number:03}.parquet", row_group_size=500)
        first += count
    return directory


def read(output: Path, format: str = "parquet") -> pa.Table:
    """All rows of a job's output, as anybody would read them."""
    return ds.dataset(output, format="ipc" if format == "arrow" else format, partitioning="hive").to_table()


def column(table: pa.Table, name: str) -> np.ndarray[Any, Any]:
    """A column of numbers, or of lists of one size, as an array."""
    array = table.column(name).combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.flatten()).reshape(len(array), array.type.list_size)
    return np.asarray(array)


Run = Callable[..., Path]
SIXTEEN = Options(batch_rows=16)


@pytest.fixture
def run(repository: Path, tmp_path: Path) -> Run:
    """`run(graph, input, name="out", options=…, …)`: a job, from start to end; its output."""

    def start(graph: str, input: Path, name: str = "out", *, options: Options = SIXTEEN, **more: Any) -> Path:
        BatchJob(graph, repository, input, tmp_path / name, options, **more).run()
        return tmp_path / name

    return start


def digests(output: Path) -> dict[str, str]:
    """SHA-256 of every part, and of what was rejected, by its path."""
    import hashlib

    files = [*output.rglob("part-*.parquet"), *output.rglob("part-*.arrow"), *output.rglob("part-*.jsonl")]
    return {str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}
