"""A node written in Python: what a step of a graph, or the class in a `model.py`, looks like.

    class Lengths:
        inputs = {"text": "BYTES[1]"}
        outputs = {"length": "INT64[1]"}

        def load(self, context):
            self.least = context.parameters.get("least", 0)

        def run(self, tensors):
            return {"length": np.array([[max(self.least, len(text))] for text, in tensors["text"]])}

A node sees batches of rows and knows nothing of requests: the first dimension of every array is the rows, whatever is written
in `inputs` and `outputs` is what follows it. BYTES are object arrays of `bytes`; a node may return text, too. `run` may be called
from several threads at once where a graph has several instances.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from numpy.typing import NDArray

from headrace.errors import InvalidRepository
from headrace.tensor import DTYPES, TensorSpec

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Context:
    """What a node is told when it is loaded: its name, the directory its files are in, and its parameters."""

    name: str
    directory: Path
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Rows:
    """Outputs of which the rows are not simply those of the inputs: what a node returns whose `rows` is `ragged` or `many`.

    Each tensor is a sequence of rows, one array a row (without the first dimension), which may differ in shape; a stacked
    array is such a sequence, too. `counts` has, of each input row, how many of them are its own, in order; None is one each.
    """

    tensors: Mapping[str, Sequence[Any] | Array]
    counts: Sequence[int] | None = None


SAME, RAGGED, MANY = "same", "ragged", "many"


@runtime_checkable
class Node(Protocol):
    """See the head of this file. Two more things are optional.

    `inputs` and `outputs` may be set by `load`, where they depend on parameters; -1 is a dimension that varies.
    `rows`, a class attribute, says what becomes of the rows: `same` (the default) returns as many as it got; `ragged` returns
    one for each, of shapes that differ; `many` returns any number for each, none included. The last two return `Rows`, and what
    follows them runs in batches of its own, of rows that are alike. `close()`, if there is one, is called once, at the end.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    def load(self, context: Context) -> None:
        """Get ready. Called once.

        Raises:
            Exception: it cannot be used; the text is for whoever loads the graph.
        """
        ...

    def run(self, tensors: Mapping[str, Array]) -> Mapping[str, Any] | Rows:
        """Outputs by name, for the inputs by name.

        Raises:
            Exception: whatever goes wrong; its text reaches the clients of this batch. `headrace.errors.InvalidRequest` says
                that it is a client's fault.
        """
        ...


_TYPE = re.compile(r"\s*(\w+)\s*\[([-\d,\s]*)\]\s*")


def tensor_of(name: str, text: str) -> TensorSpec:
    """A tensor as it is written down: `FP32[3,-1]`, a V2 datatype and the dimensions behind the rows.

    Raises:
        InvalidRepository: it is no such text.
    """
    found = _TYPE.fullmatch(text) if isinstance(text, str) else None
    datatype = found[1] if found else ""
    try:
        dims = tuple(int(size) for size in found[2].split(",") if size.strip()) if found else ()
    except ValueError:
        dims = (0,)
    if datatype not in {*DTYPES, "BYTES"} or any(size < 1 and size != -1 for size in dims):
        raise InvalidRepository(
            f"tensor '{name}' is written as {text!r}; write a datatype and its dimensions, such as FP32[3,-1] or BYTES[1]; "
            f"the datatypes are {', '.join((*DTYPES, 'BYTES'))}"
        )
    return TensorSpec(name, datatype, dims)
