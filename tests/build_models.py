"""Small ONNX models, each for one thing that a server has to get right, and repositories of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DATATYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}
"""ONNX's element types by V2 name: all of them."""

Shape = Sequence[int | str]
"""A string is a dimension that varies."""


def twice(datatype: str) -> onnx.ModelProto:
    """`same` is x; `twice` is each row of x two times over. Every row on its own, for any datatype."""
    kind = DATATYPES[datatype]
    return _model(
        [helper.make_node("Identity", ["x"], ["same"]), helper.make_node("Concat", ["x", "x"], ["twice"], axis=1)],
        [_tensor("x", kind, ["n", "w"])],
        [_tensor("same", kind, ["n", "w"]), _tensor("twice", kind, ["n", "w2"])],
    )


def scalar(datatype: str) -> onnx.ModelProto:
    """Rank 0 in and out: `same` is x, `rank` is the rank of x as the model sees it."""
    kind = DATATYPES[datatype]
    return _model(
        [
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Size", ["shape"], ["rank"]),
        ],
        [_tensor("x", kind, [])],
        [_tensor("same", kind, []), _tensor("rank", TensorProto.INT64, [])],
    )


def sums() -> onnx.ModelProto:
    """Two inputs, two outputs: `sum` and `difference`, in widths that vary."""
    return _model(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
        [_tensor(name, TensorProto.FLOAT, ["n", "w"]) for name in ("a", "b")],
        [_tensor(name, TensorProto.FLOAT, ["n", "w"]) for name in ("sum", "difference")],
    )


def optional_bias() -> onnx.ModelProto:
    """Y = x + bias, where the file has a default for `bias`: (1, 2, 3). Does not batch."""
    return _model(
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        [_tensor("x", TensorProto.FLOAT, [3]), _tensor("bias", TensorProto.FLOAT, [3])],
        [_tensor("y", TensorProto.FLOAT, [3])],
        [numpy_helper.from_array(np.array([1, 2, 3], np.float32), "bias")],
    )


def lookup() -> onnx.ModelProto:
    """Y = table[i], i = 0 … 9; ONNX Runtime raises for any other i, and so fails a whole batch."""
    return _model(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [_tensor("i", TensorProto.INT64, ["n", 1])],
        [_tensor("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.arange(10, dtype=np.float32) * 1.5, "table")],
    )


def drops_rows() -> onnx.ModelProto:
    """The rows of x that are above 0: fewer than it was given, for some data."""
    return _model(
        [
            helper.make_node("Greater", ["x", "zero"], ["positive"]),
            helper.make_node("Squeeze", ["positive", "one"], ["kept"]),
            helper.make_node("Compress", ["x", "kept"], ["y"], axis=0),
        ],
        [_tensor("x", TensorProto.FLOAT, ["n", 1])],
        [_tensor("y", TensorProto.FLOAT, ["m", 1])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "zero"), numpy_helper.from_array(np.ones(1, np.int64), "one")],
    )


def nonzero() -> onnx.ModelProto:
    """Where x is not 0: a shape that depends on the data, rightly declared. Does not batch."""
    return _model(
        [helper.make_node("NonZero", ["x"], ["where"])],
        [_tensor("x", TensorProto.FLOAT, ["n"])],
        [_tensor("where", TensorProto.INT64, [1, "found"])],
    )


def fixed() -> onnx.ModelProto:
    """Negates exactly four rows of two: a first dimension that is no batch."""
    return _model(
        [helper.make_node("Neg", ["x"], ["y"])],
        [_tensor("x", TensorProto.FLOAT, [4, 2])],
        [_tensor("y", TensorProto.FLOAT, [4, 2])],
    )


def mlp(width: int = 32, hidden: int = 64, classes: int = 8) -> onnx.ModelProto:
    """Two layers and a softmax, with weights from a fixed seed."""
    random = np.random.default_rng(7)
    weights = {
        "w1": random.standard_normal((width, hidden), np.float32) / 8,
        "b1": random.standard_normal(hidden, np.float32),
        "w2": random.standard_normal((hidden, classes), np.float32) / 8,
    }
    return _model(
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"]),
            helper.make_node("Add", ["h", "b1"], ["g"]),
            helper.make_node("Relu", ["g"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["y"], axis=-1),
        ],
        [_tensor("x", TensorProto.FLOAT, ["n", width])],
        [_tensor("y", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )


def add_model(repository: Path, name: str, model: onnx.ModelProto | None, config: str = "", version: int = 1) -> Path:
    """Put a model into a repository; `model` None leaves the version without a file, as backend `fake` wants it.

    Returns:
        The path of the model file.
    """
    home = repository / name
    folder = home / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        (home / "config.pbtxt").write_text(config)
    if model is not None:
        onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def _tensor(name: str, kind: int, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model
