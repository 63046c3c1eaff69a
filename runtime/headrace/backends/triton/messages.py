"""Batches to messages of the V2 protocol, and answers to tensors. BYTES go over without becoming Python objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tritonclient.grpc import service_pb2
from typing_extensions import Buffer

from headrace.errors import BackendFailed, HeadraceError
from headrace.model import GraphTensor
from headrace.protocol.validate import decode_bytes, encode_tensor
from headrace.request import Parameter
from headrace.tensor import DTYPES, BytesTensor, Tensor, datatype_of, format_shape

pb: Any = service_pb2
"""The messages; their names are made at run time."""

_FIELDS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


class Place(NamedTuple):
    """Where a tensor is in shared memory."""

    region: str
    offset: int
    nbytes: int


class Header(NamedTuple):
    """What goes along with the tensors of a request."""

    model: str
    version: str
    id: str = ""
    parameters: Mapping[str, Parameter] = {}
    timeout_us: int = 0

    def all_parameters(self) -> list[tuple[str, Parameter]]:
        """Those of the message."""
        timeout = [("timeout", self.timeout_us)] if self.timeout_us else []
        return [*timeout, *self.parameters.items()]


class Asking(NamedTuple):
    """A request to a server: what is placed is in shared memory, or goes there."""

    header: Header
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    placed_inputs: Mapping[str, Place] = {}
    placed_outputs: Mapping[str, Place] = {}


class Described(NamedTuple):
    """What an answer says of an output."""

    name: str
    datatype: str
    shape: Sequence[int]


class Answer(NamedTuple):
    """What a server answered: its version of the model, the outputs, and their raw contents in the same order."""

    version: str
    outputs: Sequence[Described]
    contents: Sequence[Buffer]


def request_of(asking: Asking) -> Any:
    """The `ModelInferRequest`."""
    header = asking.header
    message = pb.ModelInferRequest(model_name=header.model, model_version=header.version, id=header.id)
    for key, value in header.all_parameters():
        setattr(message.parameters[key], _FIELDS[type(value)], value)
    raw = message.raw_input_contents
    for name, tensor in asking.inputs.items():
        added = message.inputs.add(name=name, datatype=datatype_of(tensor), shape=tensor.shape)
        if name in asking.placed_inputs:
            _place(added.parameters, asking.placed_inputs[name])
        else:
            raw.append(encode_tensor(tensor))
    for name in asking.outputs:
        asked = message.outputs.add(name=name)
        if name in asking.placed_outputs:
            _place(asked.parameters, asking.placed_outputs[name])
    return message


def _place(parameters: Any, place: Place) -> None:
    parameters["shared_memory_region"].string_param = place.region
    parameters["shared_memory_byte_size"].int64_param = place.nbytes
    if place.offset:
        parameters["shared_memory_offset"].int64_param = place.offset


def answer_of(response: Any) -> Answer:
    """What a `ModelInferResponse` says."""
    described = [Described(each.name, each.datatype, each.shape) for each in response.outputs]
    return Answer(response.model_version, described, response.raw_output_contents)


def tensors_of(answer: Answer, memory: Mapping[str, memoryview]) -> dict[str, Tensor]:
    """The outputs of an answer; those in `memory`, by name, are there, and are copied.

    Raises:
        BackendFailed: it is none that can be read.
    """
    if len(answer.contents) != len(answer.outputs):
        raise BackendFailed(
            f"the server answered {len(answer.outputs)} outputs with the raw contents of {len(answer.contents)}; it must "
            "answer raw"
        )
    return {
        name: _tensor(name, datatype, tuple(shape), memory.get(name), memoryview(data))
        for (name, datatype, shape), data in zip(answer.outputs, answer.contents, strict=True)
    }


def _tensor(name: str, datatype: str, shape: tuple[int, ...], placed: memoryview | None, data: memoryview) -> Tensor:
    if datatype == "BYTES":
        try:
            return decode_bytes(data, shape, f"output '{name}'", "")
        except HeadraceError as error:
            raise BackendFailed(error.message) from None
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise BackendFailed(f"the server answered output '{name}' with datatype '{datatype}', which is none of V2")
    count = math.prod(shape)
    source = data if placed is None else placed
    nbytes = count * dtype.itemsize
    if len(source) < nbytes or (placed is None and len(source) > nbytes):
        raise BackendFailed(
            f"the server answered output '{name}' with {len(source)} bytes, and {datatype}{format_shape(shape)} has {nbytes}"
        )
    array = np.ndarray(shape, dtype, source)
    # The region is used again by the next batch, and answers may still be on their way to clients then.
    return array if placed is None else array.copy()


Signature = tuple[tuple[GraphTensor, ...], tuple[GraphTensor, ...]]
"""Inputs and outputs, as `ModelMetadata` tells them."""


def signature_of(metadata: Any) -> Signature:
    """What a `ModelMetadataResponse` says."""
    inputs, outputs = (
        tuple(GraphTensor(each.name, each.datatype, tuple(each.shape)) for each in tensors)
        for tensors in (metadata.inputs, metadata.outputs)
    )
    return inputs, outputs


def difference(was: Signature, now: Signature) -> str:
    """What has changed, in a few words; empty when nothing has."""
    for what, before, after in zip(("input", "output"), was, now, strict=True):
        old = {each.name: f"{each.datatype}{format_shape(each.shape)}" for each in before}
        new = {each.name: f"{each.datatype}{format_shape(each.shape)}" for each in after}
        for name in [*old, *new]:
            if old.get(name) != new.get(name):
                return f"{what} '{name}' was {old.get(name, 'not there')} and is {new.get(name, 'not there')}"
    return ""


class Size(NamedTuple):
    """How large an output is: `nbytes`, of each row or of all of it."""

    nbytes: int
    is_of_row: bool

    def of(self, rows: int) -> int:
        """Bytes of so many rows."""
        return self.nbytes * rows if self.is_of_row else self.nbytes


def size_of(tensor: GraphTensor, has_rows: bool) -> Size | None:
    """How large an output will be; None when that is not known beforehand."""
    dims = tensor.shape[1:] if has_rows else tensor.shape
    if tensor.datatype not in DTYPES or any(size < 0 for size in dims):
        return None
    return Size(math.prod(dims) * DTYPES[tensor.datatype].itemsize, has_rows)


def nbytes_of(tensor: Tensor) -> int:
    """How large a tensor is in memory that both sides map; 0 for text, which does not go there."""
    return 0 if isinstance(tensor, BytesTensor) else tensor.nbytes
