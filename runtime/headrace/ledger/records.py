"""What the ledger holds: one fixed-size record per request and per batch. The kernels write the same layout: `ledger.rs`.

Instants are ns of CLOCK_MONOTONIC; 0 means that the request never got there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Outcome(IntEnum):
    """How a request ended. Every request ends in exactly one of these."""

    ANSWERED = 0
    FAILED = 1
    REFUSED = 2
    INVALID = 3
    EXPIRED = 4
    CANCELLED = 5


class Refusal(IntEnum):
    """Why a refused request was refused."""

    NONE = 0
    QUEUE_FULL = 1
    QUEUE_CLOSED = 2
    DRAINING = 3
    CANNOT_MEET_DEADLINE = 4
    OTHER = 5
    CLASS_SHED = 6


STAGES: Mapping[str, tuple[str, str]] = {
    "receive": ("received", "queued"),
    "queue": ("queued", "taken"),
    "gather": ("taken", "gathered"),
    "execute": ("gathered", "executed"),
    "scatter": ("executed", "scattered"),
    "send": ("scattered", "sent"),
}
"""Each stage, between which two stamps of a record it lies. One begins where the other ends, and the one that a request does not
get out of lasts until `sent`: so stages always add up to the whole, from `received` to `sent`."""


class RequestRecord(NamedTuple):
    """One request.

    `model` is the ledger's number of the version (0: none was found); `batch` 0 means it never ran, `place` is which of its
    requests this is. `first` is when its first answer was scattered, `scattered` when the last one was; `predicted` how long
    its batch was to run, 0 where nobody knew. `refusal` is a `Refusal`. From `client` to `parent_model`, and in `trace_flags`
    and `context`, is where it comes from: a `headrace.request.Origin`.
    """

    number: int = 0
    batch: int = 0
    received: int = 0
    decoded: int = 0
    queued: int = 0
    taken: int = 0
    gathered: int = 0
    executed: int = 0
    first: int = 0
    scattered: int = 0
    sent: int = 0
    deadline: int = 0
    predicted: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    client: int = 0
    trace_high: int = 0
    trace_low: int = 0
    span: int = 0
    parent: int = 0
    parent_model: int = 0
    model: int = 0
    rows: int = 0
    place: int = 0
    level: int = 0
    outcome: int = 0
    code: int = 0
    refusal: int = 0
    trace_flags: int = 0
    context: int = 0


class BatchRecord(NamedTuple):
    """One batch, or one visit of a graph to a model: that has no queue, and no `number`.

    `reason` is the plan's, as its place in `scheduling.plan.Reason`; `padding` counts elements along the padded dimension that
    nobody sent: of each row, the length it was padded to less its own. `predicted` is how long the plan thought it would run.
    Of a visit, `parent` and `parent_model` are the batch of the graph that made it.
    """

    number: int
    taken: int
    gathered: int
    executed: int
    scattered: int
    model: int
    rows: int
    requests: int
    padding: int = 0
    failed: int = 0
    instance: int = 0
    reason: int = 0
    predicted: int = 0
    parent: int = 0
    parent_model: int = 0


_KINDS = {"Q": "<u8", "q": "<i8", "I": "<u4", "H": "<u2", "B": "u1"}
Records = NDArray[np.void]


def bytes_of(records: Records) -> NDArray[np.void]:
    """The same memory without its fields, one of which numpy copies after the other: that takes twenty times as long."""
    return records.view(f"V{records.dtype.itemsize}")


def at(records: Records, places: NDArray[Any]) -> Records:
    """The records at these places, given by their numbers or by a mask. Not copied, where a mask has all of them."""
    if places.dtype == bool and places.all():
        return records
    return bytes_of(records)[places].view(records.dtype)


def of_version(records: Records, number: int) -> Records:
    """Those of one version, by the ledger's number of it."""
    return at(records, records["model"] == number)


def concatenated(*parts: Records) -> Records:
    """One behind the other, laid out as they were. What is the only one that is not empty, is not copied."""
    full = [part for part in parts if len(part)]
    return np.concatenate([bytes_of(part) for part in full]).view(parts[0].dtype) if len(full) > 1 else (*full, parts[0])[0]


class Layout:
    """How one kind of record lies in memory: field after field, and nothing up to its full size.

    Args:
        record: a `NamedTuple`.
        formats: of its fields, in the words of `struct`.
        size: bytes of a record.
    """

    def __init__(self, record: type[Any], formats: str, size: int) -> None:
        names: tuple[str, ...] = record._fields
        bare = struct.Struct("<" + formats)
        self.size = size
        self.struct = struct.Struct(f"{bare.format}{size - bare.size}x")
        self.dtype: np.dtype[Any] = np.dtype(
            {
                "names": list(names),
                "formats": [_KINDS[kind] for kind in formats],
                "offsets": [struct.calcsize("<" + formats[:place]) for place in range(len(formats))],
                "itemsize": size,
            }
        )


REQUESTS = Layout(RequestRecord, "QQqqqqqqqqqqqQQQQQQQIIIIIBBHBB", 192)
BATCHES = Layout(BatchRecord, "QqqqqIIIIIHHqQI", 96)
REQUEST: np.dtype[Any] = REQUESTS.dtype
BATCH: np.dtype[Any] = BATCHES.dtype
