from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import InvalidLedger
from headrace.ledger.records import (
    BATCH,
    BATCHES,
    REQUEST,
    REQUESTS,
    BatchRecord,
    RequestRecord,
    at,
    concatenated,
    of_version,
)
from headrace.ledger.ring import Ring, RingReader, make_ring_file
from tests.waiting import until


def ring_at(path: Path, capacity: int = 8) -> Ring:
    descriptor = make_ring_file(path, REQUESTS, capacity)
    try:
        return Ring(REQUESTS, 0, descriptor)
    finally:
        os.close(descriptor)


def numbers(records: np.ndarray) -> list[int]:
    return records["number"].tolist()


def write(ring: Ring, first: int, end: int) -> None:
    for number in range(first, end):
        ring.take_unread()
        ring.write(RequestRecord(number=number))


def test_every_field_comes_back_where_it_was_put() -> None:
    for layout, dtype, kind in ((REQUESTS, REQUEST, RequestRecord), (BATCHES, BATCH, BatchRecord)):
        record = kind(*range(1, len(kind._fields) + 1))
        packed = layout.struct.pack(*record)
        assert len(packed) == layout.size == dtype.itemsize
        assert np.frombuffer(packed, dtype)[0].tolist() == tuple(record)


def test_a_reader_sees_what_is_written_after_it_came_and_what_is_still_there(tmp_path: Path) -> None:
    ring = ring_at(tmp_path / "a.ring")
    write(ring, 0, 3)
    reader, late = RingReader(tmp_path / "a.ring"), RingReader(tmp_path / "a.ring", behind=1)
    assert numbers(reader.take().records) == [0, 1, 2]
    write(ring, 3, 5)
    assert reader.unread == 2
    assert numbers(reader.take().records) == [3, 4]
    assert numbers(late.take().records) == [2, 3, 4]
    assert numbers(late.take().records) == []


def test_a_reader_that_is_lapped_counts_what_it_missed(tmp_path: Path) -> None:
    ring = ring_at(tmp_path / "a.ring", capacity=8)
    reader = RingReader(tmp_path / "a.ring")
    write(ring, 0, 20)
    seen = reader.take()
    # The slot of the oldest one may be in the middle of being written over: 7 of 8 are sure.
    assert (numbers(seen.records), seen.overrun) == (list(range(13, 20)), 13)
    write(ring, 20, 22)
    assert (numbers(reader.take().records), reader.take().overrun) == ([20, 21], 0)


def test_what_is_written_over_while_it_is_copied_is_not_returned(tmp_path: Path) -> None:
    ring = ring_at(tmp_path / "a.ring", capacity=8)
    reader = RingReader(tmp_path / "a.ring")
    write(ring, 0, 7)

    class Overtaken:
        """Records that are written over in the moment in which they are copied."""

        def __init__(self, records: np.ndarray) -> None:
            self.records, self.dtype = records, records.dtype

        def view(self, kind: str) -> Overtaken:
            return Overtaken(self.records.view(kind))

        def __getitem__(self, slots: np.ndarray) -> np.ndarray:
            copied = self.records[slots]
            write(ring, 7, 11)
            return copied

    reader._records = Overtaken(reader._records)  # type: ignore[assignment]
    seen = reader.take()
    assert (numbers(seen.records), seen.overrun) == ([4, 5, 6], 4)


WRITER = """
import os, sys
from headrace.ledger.records import REQUESTS, RequestRecord
from headrace.ledger.ring import Ring
ring = Ring(REQUESTS, 0, os.open(sys.argv[1], os.O_RDWR))
number = 0
while True:
    number += 1
    ring.take_unread()
    ring.write(RequestRecord(*[number] * 20))
"""


def test_a_reader_of_a_writer_that_is_killed_sees_whole_records_only(tmp_path: Path) -> None:
    os.close(make_ring_file(tmp_path / "a.ring", REQUESTS, 64))
    reader = RingReader(tmp_path / "a.ring")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "a.ring")])
    seen: list[np.ndarray] = []
    overrun = 0
    try:
        until(lambda: reader.unread > 0)
        while sum(map(len, seen)) < 5_000 or not overrun:
            took = reader.take()
            seen.append(took.records)
            overrun += took.overrun
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    took = reader.take()
    records = np.concatenate([*seen, took.records])
    overrun += took.overrun
    assert reader.unread == 0
    for field in RequestRecord._fields[:20]:
        assert (records[field].astype(np.int64) == records["number"].astype(np.int64)).all(), f"{field} is of another record"
    assert (np.diff(records["number"].astype(np.int64)) > 0).all()
    assert len(records) + overrun == records["number"][-1], "every record was seen, or counted"


def test_in_the_same_process_nothing_is_lost() -> None:
    ring = Ring(REQUESTS, 4)
    for number in range(4):
        ring.write(RequestRecord(number=number))
    assert ring.is_full
    assert numbers(ring.take_unread()) == [0, 1, 2, 3]
    ring.write(RequestRecord(number=4))
    assert numbers(ring.take_unread()) == [4]


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [(0, b"NOTHING.", "no ring"), (8, struct.pack("<I", 99), "another release"), (12, struct.pack("<I", 8), "another release"),
     (16, struct.pack("<Q", 0), "shorter"), (16, struct.pack("<Q", 10**6), "shorter"), (24, struct.pack("<I", 7), "another")],
)  # fmt: skip
def test_what_is_no_ring_is_refused_with_a_reason(tmp_path: Path, at: int, value: bytes, why: str) -> None:
    path = tmp_path / "a.ring"
    descriptor = make_ring_file(path, REQUESTS, 8)
    os.pwrite(descriptor, value, at)
    os.close(descriptor)
    with pytest.raises(InvalidLedger, match=why):
        RingReader(path)
    path.write_bytes(b"short")
    with pytest.raises(InvalidLedger, match="too short"):
        RingReader(path)


def test_records_are_taken_out_and_put_together_with_all_their_fields() -> None:
    records = np.zeros(5, REQUEST)
    for place, field in enumerate(REQUEST.names or ()):
        records[field] = np.arange(5) * (1 + place % 7)
    records["model"] = [1, 2, 1, 1, 2]
    some = at(records, np.array([3, 0]))
    assert some.tolist() == [records[3].tolist(), records[0].tolist()]
    masked = at(records, records["number"] > 2)
    assert masked.tolist() == records[3:].tolist()
    masked["rows"] = 99
    assert 99 not in records["rows"]
    assert at(records, np.ones(5, bool)) is records
    assert of_version(records, 2).tolist() == [records[1].tolist(), records[4].tolist()]
    assert concatenated(records[:0], some, records[1:2]).tolist() == [*some.tolist(), records[1].tolist()]
    assert concatenated(records[:0], some) is some
    assert concatenated(records[:0]).dtype == REQUEST
