"""What is written, what is left out, and what happens when there is no room."""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from headrace.clock import SECOND
from headrace.errors import InvalidLedger
from headrace.ledger.home import Home, Neighbour, open_home, the_neighbour
from headrace.ledger.ledger import Ledger
from headrace.ledger.query import Desk, gather_sources
from headrace.ledger.records import BatchRecord, Outcome, RequestRecord
from headrace.ledger.segments import Limits, read_segments, remove_old, remove_unfinished
from headrace.ledger.spill import Spill
from headrace.model import ModelSpec


class Writer:
    """A server's ledger without a server: requests of the model `m`, numbered from 1 on."""

    def __init__(self, capacity: int = 1 << 12) -> None:
        self.home: Home = open_home()
        self.ledger = Ledger(lambda requests, batches: None, capacity)
        self.ledger.share(self.home)
        self.model = self.ledger.register(ModelSpec("m", 1, "d", "fake", "", 8, (), ()))
        self.written = 0

    @property
    def me(self) -> Neighbour:
        return the_neighbour(os.getpid())

    def write(self, count: int) -> None:
        for _ in range(count):
            self.written += 1
            self.ledger.write(
                RequestRecord(number=self.written, model=self.model, received=SECOND, sent=2 * SECOND, outcome=Outcome.ANSWERED)
            )


@pytest.fixture
def writer() -> Iterator[Writer]:
    writer = Writer()
    yield writer
    writer.home.close()


def spill_of(writer: Writer, directory: Path, segment_bytes: int = 1 << 20) -> Spill:
    return Spill(writer.me, directory, Limits(), segment_bytes, 60 * SECOND)


def numbers(directory: Path, *servers: Neighbour) -> list[int]:
    table = Desk(gather_sources(directory, servers)).ask("SELECT number FROM requests ORDER BY ALL")
    return table.column("number").to_pylist()


def test_a_segment_is_made_of_enough_records_or_of_old_ones(writer: Writer, tmp_path: Path) -> None:
    spill = spill_of(writer, tmp_path, segment_bytes=192 * 100)
    writer.write(99)
    spill.tick(0)
    spill.tick(59 * SECOND)
    assert (spill.held, list(tmp_path.iterdir())) == (99, [])
    writer.write(1)
    spill.tick(59 * SECOND)
    assert (spill.held, numbers(tmp_path)) == (0, [*range(1, 101)])
    writer.write(1)
    spill.tick(60 * SECOND)
    spill.tick(119 * SECOND)
    assert spill.held == 1
    spill.tick(120 * SECOND)
    assert (spill.held, writer.home.tally.spilled) == (0, 101)


def test_names_and_instants_are_those_of_people(writer: Writer, tmp_path: Path) -> None:
    arrived = time.monotonic_ns()
    writer.ledger.write(RequestRecord(number=1, model=writer.model, received=arrived, sent=arrived + 1))
    made = BatchRecord(0, 1, 2, 3, 4, model=writer.model, rows=1, requests=1, reason=8, parent=5, parent_model=writer.model)
    writer.ledger.write_batch(made)
    spill_of(writer, tmp_path).finish(0)
    segments, broken = read_segments(tmp_path)
    assert not broken
    rows = {segment.kind: pq.read_table(segment.path).to_pylist() for segment in segments}
    (request,), (visit,) = rows["requests"], rows["batches"]
    assert (request["model"], request["version"], request["digest"], request["outcome"]) == ("m", 1, "d", "answered")
    assert (request["batch"], request["queued"], request["client"], request["trace_id"], request["refusal"]) == (None,) * 5
    wall = request["received_at"].replace(tzinfo=UTC).timestamp()
    assert abs(wall - time.time()) < 600, "the wall clock's, in UTC"
    assert (visit["reason"], visit["number"], visit["parent"], visit["parent_model"]) == ("graph", None, 5, "m")


def test_what_is_in_a_segment_and_in_a_ring_is_told_once(writer: Writer, tmp_path: Path) -> None:
    spill = spill_of(writer, tmp_path)
    writer.write(10)
    spill.finish(0)
    writer.write(5)
    assert numbers(tmp_path, writer.me) == [*range(1, 16)]
    # As after a crash: another one goes on where the segments end.
    again = spill_of(writer, tmp_path)
    again.finish(0)
    assert numbers(tmp_path) == numbers(tmp_path, writer.me) == [*range(1, 16)]


def test_what_comes_faster_than_it_is_read_is_counted(tmp_path: Path) -> None:
    writer = Writer(capacity=64)
    spill = spill_of(writer, tmp_path)
    writer.write(164)
    spill.finish(0)
    assert numbers(tmp_path) == [*range(102, 165)]
    assert writer.home.tally.overrun == 101
    writer.home.close()


@contextmanager
def no_room() -> Iterator[None]:
    """The disk is full: no file may grow beyond a few bytes. The operating system says so, not we."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_nobody_and_is_told_once(writer: Writer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    spill = spill_of(writer, tmp_path, segment_bytes=192 * 100)
    writer.write(100)
    with no_room():
        spill.tick(0)
        writer.write(150)
        spill.tick(SECOND)
        spill.tick(6 * SECOND)
    assert spill.held == 250, "there is memory for these"
    assert list(tmp_path.iterdir()) == [], "nothing half-written is left"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "File too large" in caplog.text
    with no_room():
        writer.write(150)
        spill.tick(7 * SECOND)
    assert (writer.home.tally.unwritten, spill.held) == (100, 300), "the oldest were dropped"
    spill.tick(20 * SECOND)
    assert numbers(tmp_path) == [*range(101, 401)]
    assert "segments can be written again; 100 records are not in them" in caplog.text


def test_what_cannot_be_written_at_the_end_is_counted(writer: Writer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spill = spill_of(writer, tmp_path)
    writer.write(5)
    with no_room():
        spill.finish(0)
    assert writer.home.tally.unwritten == 5
    assert "5 records were not written" in caplog.text


def test_what_is_broken_is_left_out_and_told(writer: Writer, tmp_path: Path) -> None:
    spill = spill_of(writer, tmp_path)
    for _ in range(3):
        writer.write(10)
        spill.finish(0)
    whole, truncated, _ = sorted(tmp_path.iterdir())
    truncated.write_bytes(truncated.read_bytes()[:-20])
    (tmp_path / "requests-garbage.parquet").write_bytes(os.urandom(4096))
    (tmp_path / "requests-empty.parquet").touch()
    pq.write_table(pq.read_table(whole).select(["model"]).replace_schema_metadata({}), tmp_path / "foreign.parquet")
    (tmp_path / "notes.txt").write_text("mine")
    sources = gather_sources(tmp_path, [])
    assert len(sources.warnings) == 4
    assert all(warning.endswith("it is left out") for warning in sources.warnings)
    assert any("foreign.parquet is no segment of a ledger" in warning for warning in sources.warnings)
    assert numbers(tmp_path) == [*range(1, 11), *range(21, 31)]
    spill_of(writer, tmp_path)
    assert truncated.exists(), "whoever writes leaves it as it is, too"


def test_what_somebody_left_half_written_goes_and_what_somebody_writes_stays(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / ".requests-1.parquet.part").write_bytes(b"PAR1")
    with (tmp_path / ".requests-2.parquet.part").open("wb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        remove_unfinished(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".requests-2.parquet.part"]


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    for age in range(5):
        path = tmp_path / f"requests-{age}.parquet"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    left = lambda: sorted(path.name[9] for path in tmp_path.iterdir())  # noqa: E731
    remove_old(tmp_path, Limits(total_bytes=500, age_seconds=None), 1000)
    assert left() == ["0", "1", "2", "3", "4"]
    remove_old(tmp_path, Limits(total_bytes=399, age_seconds=None), 1000)
    assert left() == ["0", "1", "2"]
    remove_old(tmp_path, Limits(total_bytes=None, age_seconds=1.5), 1000)
    assert left() == ["0", "1"]


def test_a_directory_that_is_none(writer: Writer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidLedger, match="cannot keep a ledger in"):
        spill_of(writer, tmp_path / "file")
    with pytest.raises(InvalidLedger, match="cannot read the ledger in"):
        gather_sources(tmp_path / "nowhere", [])
