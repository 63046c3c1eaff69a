"""The models that are measured: multilayer perceptrons with weights from a fixed seed, in a repository that serves them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MODELS = {"tiny": (64, 64, 8), "mid": (512, 2048, 2048, 256)}
"""Widths of the layers, by name."""
MAX_ROWS = 64

CONFIG = """\
backend: "onnxruntime"
max_batch_size: {rows}
input {{ name: "x" data_type: TYPE_FP32 dims: {inputs} }}
output {{ name: "y" data_type: TYPE_FP32 dims: {outputs} }}
dynamic_batching {{}}
instance_group {{ count: 1 kind: KIND_CPU }}
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
"""


def build_repository(root: Path) -> Path:
    """A repository with all of `MODELS`; what is there stays."""
    for name, widths in MODELS.items():
        file = root / name / "1" / "model.onnx"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            onnx.save(perceptron(widths), file)
        text = CONFIG.format(rows=MAX_ROWS, inputs=widths[0], outputs=widths[-1])
        (root / name / "config.pbtxt").write_text(text)
    return root


def perceptron(widths: tuple[int, ...]) -> onnx.ModelProto:
    """Gemm and ReLU by turns, [n, first] → [n, last], FP32."""
    random = np.random.default_rng(7)
    nodes, weights, last = [], [], "x"
    for layer, (given, made) in enumerate(pairwise(widths)):
        weights.append(numpy_helper.from_array(random.standard_normal((given, made), np.float32) / given**0.5, f"w{layer}"))
        weights.append(numpy_helper.from_array(random.standard_normal(made, np.float32), f"b{layer}"))
        is_last = layer == len(widths) - 2
        gemm = "y" if is_last else f"g{layer}"
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [gemm]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [gemm], [f"r{layer}"]))
            last = f"r{layer}"
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", widths[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", widths[-1]])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
