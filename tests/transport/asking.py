"""The models of the default server of these tests, and requests to them, right and wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from tests.transport.serving import ECHO, PATIENCE, Server, message

M = """
backend: "fake"
max_batch_size: 4
input { name: "a" data_type: TYPE_INT32 dims: 3 }
input { name: "s" data_type: TYPE_STRING dims: -1 }
output { name: "y" data_type: TYPE_INT32 dims: 3 }
output { name: "t" data_type: TYPE_STRING dims: -1 }
dynamic_batching {}
"""
WHOLE = """
backend: "fake"
input { name: "x" data_type: TYPE_INT32 dims: [2, -1] }
output { name: "y" data_type: TYPE_INT32 dims: [2, -1] }
"""
OPTIONAL = """
input { name: "x" data_type: TYPE_FP32 dims: 3 }
input { name: "bias" data_type: TYPE_FP32 dims: 3 optional: true }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
"""
DECOUPLED = ECHO + "model_transaction_policy { decoupled: true }"
BROKEN = ECHO + 'parameters { key: "answers" value { string_value: "many" } }'
FAKES = {"m": M, "whole": WHOLE, "decoupled": DECOUPLED}

A, S = np.arange(3, dtype=np.int32).tobytes(), b"\x02\x00\x00\x00hi"
INPUTS = (("a", "INT32", (1, 3)), ("s", "BYTES", (1, 1)))


def ask(inputs: Any = INPUTS, raw: Any = (A, S), model: str = "m", **fields: Any) -> pb.ModelInferRequest:
    fields.setdefault("id", "r1")
    return message(model, inputs, raw, **fields)


def shaped(*shape: int, raw: bytes = A, **fields: Any) -> pb.ModelInferRequest:
    """A request whose `a` has this shape."""
    return ask((("a", "INT32", shape), INPUTS[1]), (raw, S), **fields)


def text(raw: bytes, *shape: int, **fields: Any) -> pb.ModelInferRequest:
    """A request whose `s` has this content and shape."""
    return ask((INPUTS[0], ("s", "BYTES", shape)), (A, raw), **fields)


def whole(*shape: int, raw: bytes = b"") -> pb.ModelInferRequest:
    return ask((("x", "INT32", shape),), (raw,), "whole")


def typed(datatype: str, **contents: Any) -> pb.ModelInferRequest:
    request = ask((), ())
    request.inputs.add(name="a", datatype=datatype, shape=(1, 3), contents=pb.InferTensorContents(**contents))
    request.inputs.add(name="s", datatype="BYTES", shape=(1, 1), contents=pb.InferTensorContents(bytes_contents=[b"hi"]))
    return request


def mixed() -> pb.ModelInferRequest:
    request = ask(raw=(A,))
    request.inputs[1].contents.bytes_contents.append(b"hi")
    return request


def value(**choice: Any) -> pb.InferParameter:
    return pb.InferParameter(**choice)


def parameter(key: str, **choice: Any) -> pb.ModelInferRequest:
    return ask(parameters={key: value(**choice)})


def region(where: str = "input", contents: bool = False, **parameters: dict[str, Any]) -> pb.ModelInferRequest:
    request = ask(raw=(S,))
    target = request.inputs[0] if where == "input" else request.outputs.add(name="y")
    for key, choice in parameters.items():
        target.parameters[f"shared_memory_{key}"].CopyFrom(value(**choice))
    if where != "input":
        request.raw_input_contents[:] = (A, S)
    if contents:
        request.inputs[0].contents.int_contents.extend([1, 2, 3])
    return request


def outputs(*names: str, **fields: Any) -> pb.ModelInferRequest:
    return ask(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names], **fields)


JUNK = {
    "noise": b"\xff\xfe\xfd" * 7,
    "cut short": ask().SerializeToString()[:-1],
    "text that is no UTF-8": b"\x0a\x02\xff\xfe",
    "endless varint": b"\x08" + b"\x80" * 20,
    "too deep": b"\x0b" * 300,
}


def is_well(server: Server) -> bool:
    """Whether the server answers a good request rightly."""
    answer = server.stub.ModelInfer(ask(id="well"), timeout=PATIENCE)
    return answer.id == "well" and list(answer.raw_output_contents) == [A, S]
