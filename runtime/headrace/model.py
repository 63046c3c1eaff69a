"""What is known of a model: what its file holds, what it declares, how its requests may be batched."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from headrace.clock import SECOND
from headrace.tensor import DTYPES, TensorSpec


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """An input or output as the model file itself has it: the full shape, -1 where a dimension is symbolic.

    `datatype` is a V2 name, or empty when V2 has none for it. `initializer` marks an input with a default in the file.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    initializer: bool = False


@dataclass(frozen=True, slots=True)
class GraphIO:
    """The inputs and outputs of a model file, in the file's order.

    `max_batch_size` is how many rows it takes at once, 0 for one that has no rows; None where only the shapes tell.
    """

    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    max_batch_size: int | None = None


class State(Enum):
    """Where a version is in its life; the names are the protocol's."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


_FALLBACK_NS = 10 * SECOND
"""The target of requests of which nobody says when they are due: for the order, in which none of them must wait for ever."""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Triton's `ModelQueuePolicy`: how long a request may wait before it is taken, and how many may wait (0: no own limit)."""

    timeout_ns: int = 0
    allow_override: bool = False
    delay: bool = False
    max_requests: int = 0


@dataclass(frozen=True, slots=True)
class Batching:
    """How a version's requests may be batched.

    `enabled` False runs every request alone (a configuration without `dynamic_batching`). `preferred` sizes are ascending
    row counts. `priority_levels` 0 ignores priorities; policies are per level, `policy` is for the rest.
    """

    enabled: bool = False
    preferred: tuple[int, ...] = ()
    delay_ns: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority: int = 0
    policy: QueuePolicy = QueuePolicy()
    level_policies: Mapping[int, QueuePolicy] = field(default_factory=dict[int, QueuePolicy])
    objective_ns: int = _FALLBACK_NS
    """How soon a request should be answered: its target, by which the queue is ordered and batches are sized."""
    sheds_target: bool = False
    """Whether a request is refused that would miss its target, and not only one that would miss its deadline."""
    predicts: bool = True
    """Whether execution times are learned, and requests refused and dropped because of what they foretell."""
    splits_oversize: bool = False
    """Whether a request with more rows than `max_batch_size` is taken, and runs in slices, instead of being refused."""

    @property
    def has_objective(self) -> bool:
        """Whether the model says how soon a request should be answered."""
        return self.objective_ns != _FALLBACK_NS


@dataclass(frozen=True, slots=True)
class Padding:
    """How requests of different lengths share a batch: those up to the same of `edges` are padded to the longest of them.

    Their outputs are cut back.

    `axis` is the dimension that varies, counted without the batch dimension; `values` has the pad value of each input that is
    padded. `mask` is one of those, or empty: where a request leaves it out, it is made, 1 for what is real. A batch holds at
    most `max_elements` (rows times padded length); 0 is no limit. Outputs in `whole` are not cut back.
    """

    axis: int
    values: Mapping[str, float]
    edges: tuple[int, ...]
    mask: str = ""
    max_elements: int = 0
    whole: tuple[str, ...] = ()

    def edge(self, length: int) -> int:
        """Where the bucket of an input of this length, which is at most the last edge, ends."""
        return self.edges[bisect_left(self.edges, length)]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What one version of a model takes and gives: all that validation, queue and engine need to know of it."""

    name: str
    version: int
    digest: str
    backend: str
    platform: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batching: Batching = Batching()
    decoupled: bool = False
    sequences: bool = False
    instances: int = 1
    padding: Padding | None = None

    @property
    def pads(self) -> list[tuple[int, bytes, bytes]]:
        """Of each padded input: its place, one element of its padding, and a 1, of which a mask is made."""
        if self.padding is None:
            return []
        padded = [(place, DTYPES[i.datatype], i.name) for place, i in enumerate(self.inputs) if i.name in self.padding.values]
        return [
            (place, np.array(self.padding.values[name], dtype).tobytes(), np.ones((), dtype).tobytes())
            for place, dtype, name in padded
        ]

    def __repr__(self) -> str:
        return f"<ModelSpec {self.name}/{self.version} {self.digest[:12]}>"
