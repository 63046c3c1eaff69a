"""Records as tables, with names instead of numbers: what segments hold and queries see. `docs/ledger.md` has every column.

Instants stay ns of CLOCK_MONOTONIC, null where a request never got; `received_at` and `taken_at` are the same on the wall clock,
in UTC. What is one of few is a dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.clock import MICROSECOND
from headrace.errors import Code
from headrace.ledger.collect import REQUEST_KIND, Chunk
from headrace.ledger.home import Name
from headrace.ledger.records import Outcome, Records, Refusal
from headrace.protocol.origin import GIVEN, MALFORMED
from headrace.scheduling.plan import Reason

_STAMPS = ("received", "decoded", "queued", "taken", "gathered", "executed", "first", "scattered", "sent")
_NAMES = pa.dictionary(pa.int32(), pa.string())
_VERSION = [("server", _NAMES), ("model", _NAMES), ("version", pa.int64()), ("digest", _NAMES)]

REQUESTS_SCHEMA = pa.schema(
    [
        *_VERSION,
        ("received_at", pa.timestamp("us")),
        ("outcome", _NAMES),
        ("code", _NAMES),
        ("refusal", _NAMES),
        ("class", pa.uint32()),
        ("client", _NAMES),
        ("rows", pa.uint32()),
        ("bytes_in", pa.uint64()),
        ("bytes_out", pa.uint64()),
        ("number", pa.uint64()),
        ("batch", pa.uint64()),
        ("place", pa.uint32()),
        *[(stamp, pa.int64()) for stamp in (*_STAMPS, "deadline")],
        ("predicted_ns", pa.int64()),
        ("trace_id", pa.string()),
        ("parent_span", pa.string()),
        ("trace_flags", pa.uint8()),
        ("malformed_trace", pa.bool_()),
        ("parent", pa.uint64()),
        ("parent_model", _NAMES),
    ]
)
BATCHES_SCHEMA = pa.schema(
    [
        *_VERSION,
        ("taken_at", pa.timestamp("us")),
        ("reason", _NAMES),
        ("number", pa.uint64()),
        ("rows", pa.uint32()),
        ("requests", pa.uint32()),
        ("failed", pa.uint32()),
        ("padding", pa.uint32()),
        ("instance", pa.uint16()),
        *[(stamp, pa.int64()) for stamp in ("taken", "gathered", "executed", "scattered")],
        ("predicted_ns", pa.int64()),
        ("parent", pa.uint64()),
        ("parent_model", _NAMES),
    ]
)
SCHEMAS: Mapping[str, pa.Schema] = {"requests": REQUESTS_SCHEMA, "batches": BATCHES_SCHEMA}

_Column = Any
_OUTCOMES = {outcome.value: outcome.name.lower() for outcome in Outcome}
_CODES = {code.value: code.name for code in Code}
_REFUSALS = {refusal.value: refusal.name.lower() for refusal in Refusal if refusal is not Refusal.NONE}
_REASONS = {reason.value: reason.name.lower() for reason in Reason}


def table_of(chunks: Sequence[Chunk], kind: str, server: str, names: Mapping[int, Name]) -> pa.Table:
    """Chunks of one kind as one table.

    Args:
        chunks: of it.
        kind: `requests` or `batches`.
        server: the id of the one that wrote them.
        names: what the numbers of models mean.
    """
    make = _requests if kind == REQUEST_KIND else _batches
    schema = SCHEMAS[kind]
    tables = [pa.table(make(chunk, server, names), schema) for chunk in chunks]
    # Each chunk has dictionaries of its own; whoever writes or asks wants one.
    return pa.concat_tables(tables).unify_dictionaries() if tables else schema.empty_table()


def _requests(chunk: Chunk, server: str, names: Mapping[int, Name]) -> dict[str, _Column]:
    records = chunk.records
    traced = records["context"] == GIVEN
    columns: dict[str, _Column] = {
        **_version(records, server, names),
        "received_at": _wall(records["received"], chunk.wall_ahead),
        "outcome": _named(records["outcome"], _OUTCOMES),
        "code": _named(records["code"], _CODES),
        "refusal": _named(records["refusal"], _REFUSALS, without=0),
        "class": records["level"],
        "client": _clients(records["client"]),
        "predicted_ns": _unless(records["predicted"] == 0, records["predicted"]),
        "trace_id": _hex(traced, records["trace_high"], records["trace_low"]),
        "parent_span": _hex(traced, records["span"]),
        "trace_flags": _unless(~traced, records["trace_flags"]),
        "malformed_trace": records["context"] == MALFORMED,
        **_parent(records, names),
    }
    for name in ("rows", "bytes_in", "bytes_out", "place"):
        columns[name] = np.ascontiguousarray(records[name])
    for name in ("number", "batch", *_STAMPS, "deadline"):
        columns[name] = _unless(records[name] == 0, records[name])
    return columns


def _batches(chunk: Chunk, server: str, names: Mapping[int, Name]) -> dict[str, _Column]:
    records = chunk.records
    columns: dict[str, _Column] = {
        **_version(records, server, names),
        "taken_at": _wall(records["taken"], chunk.wall_ahead),
        "reason": _named(records["reason"], _REASONS),
        "predicted_ns": _unless(records["predicted"] == 0, records["predicted"]),
        **_parent(records, names),
    }
    for name in ("rows", "requests", "failed", "padding", "instance"):
        columns[name] = np.ascontiguousarray(records[name])
    for name in ("number", "taken", "gathered", "executed", "scattered"):
        columns[name] = _unless(records[name] == 0, records[name])
    return columns


def _version(records: Records, server: str, names: Mapping[int, Name]) -> dict[str, _Column]:
    numbers = records["model"]
    known = {number: names.get(number, (f"#{number}", 0, "")) for number in np.unique(numbers).tolist()}
    versions = np.zeros(len(numbers), np.int64)
    for number, (_, version, _) in known.items():
        versions[numbers == number] = version
    return {
        "server": pa.DictionaryArray.from_arrays(np.zeros(len(records), np.int32), pa.array([server], pa.string())),
        "model": _named(numbers, {number: model for number, (model, _, _) in known.items()}, without=0),
        "version": _unless(numbers == 0, versions),
        "digest": _named(numbers, {number: digest for number, (_, _, digest) in known.items()}, without=0),
    }


def _parent(records: Records, names: Mapping[int, Name]) -> dict[str, _Column]:
    numbers = records["parent_model"]
    known = {number: names.get(number, (f"#{number}", 0, ""))[0] for number in np.unique(numbers).tolist()}
    return {
        "parent": _unless(records["parent"] == 0, records["parent"]),
        "parent_model": _named(numbers, known, without=0),
    }


def _named(numbers: NDArray[Any], names: Mapping[int, str], without: int | None = None) -> pa.DictionaryArray:
    """Names of numbers; null for the number `without` one, and for those that have none."""
    found, places = np.unique(numbers, return_inverse=True)
    words = [names.get(number, f"#{number}") for number in found.tolist()]
    is_null = numbers == without if without is not None else None
    return pa.DictionaryArray.from_arrays(pa.array(places.astype(np.int32), mask=is_null), pa.array(words, pa.string()))


def _clients(numbers: NDArray[np.uint64]) -> pa.DictionaryArray:
    return _named(numbers, {number: f"{number:016x}" for number in np.unique(numbers).tolist()}, without=0)


def _unless(is_null: NDArray[np.bool_], values: NDArray[Any]) -> pa.Array:
    return pa.array(np.ascontiguousarray(values), mask=is_null)


def _wall(instants: NDArray[np.int64], ahead: int) -> pa.Array:
    wall = (instants + ahead) // MICROSECOND
    return pa.array(wall.astype("datetime64[us]"), pa.timestamp("us"), mask=instants == 0)


def _hex(where: NDArray[np.bool_], *parts: NDArray[np.uint64]) -> pa.Array:
    """Numbers as one hexadecimal text; only few requests have one."""
    texts: list[str | None] = [None] * len(where)
    for place in np.flatnonzero(where).tolist():
        texts[place] = "".join(f"{int(part[place]):016x}" for part in parts)
    return pa.array(texts, pa.string())
