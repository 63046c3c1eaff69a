"""The models that are measured, in a repository that serves them, and in one for Triton's Python backend.

Perceptrons with weights from a fixed seed, a model that moves much and computes little, and Magika's classifier of files.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tools.fetch_models import fetch

PERCEPTRONS = {"tiny": (64, 64, 8), "mid": (512, 2048, 2048, 256)}
"""Widths of the layers, by name."""


@dataclass(frozen=True)
class Model:
    """One model: its one input and output, and how many rows a batch may have."""

    name: str
    input: tuple[str, str, int]
    output: tuple[str, str, int]
    max_rows: int = 64


MODELS = {
    model.name: model
    for model in (
        Model("tiny", ("x", "FP32", 64), ("y", "FP32", 8)),
        Model("mid", ("x", "FP32", 512), ("y", "FP32", 256)),
        # Larger batches are slower: of this model, `raw_loop --best` finds the fastest at 4 rows.
        Model("magika", ("bytes", "INT32", 2048), ("target_label", "FP32", 214), max_rows=4),
        Model("wide", ("x", "FP32", 1 << 20), ("y", "FP32", 1 << 20), max_rows=8),
    )
}
"""`wide` adds one to 4 MiB."""

CONFIG = """\
backend: "{backend}"
max_batch_size: {rows}
input {{ name: "{input[0]}" data_type: TYPE_{input[1]} dims: {input[2]} }}
output {{ name: "{output[0]}" data_type: TYPE_{output[1]} dims: {output[2]} }}
dynamic_batching {{{batching}}}
instance_group {{ count: 1 kind: KIND_CPU }}
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
"""

TRITON_MODEL = '''\
"""Triton's Python backend running onnxruntime: all requests of a call as one batch, as its documentation advises."""

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
        self.input, self.output = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        batch = np.concatenate(inputs) if len(inputs) > 1 else inputs[0]
        (outputs,) = self.session.run(None, {self.input: batch})
        answers, at = [], 0
        for rows in inputs:
            part = outputs[at : at + len(rows)]
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor(self.output, part)]))
            at += len(rows)
        return answers
'''


def build_repository(root: Path) -> Path:
    """A repository with all of `MODELS`; model files that are there stay."""
    for model in MODELS.values():
        file = root / model.name / "1" / "model.onnx"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            if model.name == "magika":
                shutil.copy2(fetch("magika") / "model.onnx", file)
            else:
                onnx.save(perceptron(PERCEPTRONS[model.name]) if model.name in PERCEPTRONS else plus_one(model), file)
        (root / model.name / "config.pbtxt").write_text(_config(model, "onnxruntime"))
    return root


def build_triton_repository(root: Path, ours: Path) -> Path:
    """The same for Triton: its Python backend with the same files."""
    for model in MODELS.values():
        build_variant(root, ours, model, "python")
    return root


def build_variant(root: Path, ours: Path, model: Model, backend: str, batching: str = "", parameters: str = "") -> Path:
    """A repository with one model of `ours` alone, configured in its own way: text for `dynamic_batching`, and more of it."""
    version = root / model.name / "1"
    version.mkdir(parents=True, exist_ok=True)
    shutil.copy2(ours / model.name / "1" / "model.onnx", version)
    if backend == "python":
        (version / "model.py").write_text(TRITON_MODEL)
    (root / model.name / "config.pbtxt").write_text(_config(model, backend, batching) + parameters)
    return root


def _config(model: Model, backend: str, batching: str = "") -> str:
    return CONFIG.format(backend=backend, rows=model.max_rows, input=model.input, output=model.output, batching=batching)


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
    return _model("perceptron", nodes, weights, widths[0], widths[-1])


def plus_one(model: Model) -> onnx.ModelProto:
    """[n, size] → [n, size], FP32: each number and one."""
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    return _model("plus_one", [helper.make_node("Add", ["x", "one"], ["y"])], [one], model.input[2], model.output[2])


def _model(name: str, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], given: int, made: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", given])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", made])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
