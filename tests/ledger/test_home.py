from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import InvalidLedger
from headrace.ledger import home as homes
from headrace.ledger.home import neighbour, neighbours, open_home, remove_leftovers, the_neighbour
from headrace.ledger.ledger import Ledger
from headrace.ledger.records import BatchRecord, Records, RequestRecord
from headrace.ledger.ring import RingReader
from headrace.model import ModelSpec


def spec(name: str) -> ModelSpec:
    return ModelSpec(name, 1, "d", "fake", "", 8, (), ())


SERVER = """
import sys
from headrace.ledger.home import open_home
home = open_home()
print(home.path, flush=True)
sys.stdin.read()
home.close()
"""


def started() -> tuple[subprocess.Popen[str], Path]:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, Path(server.stdout.readline().strip())


def test_what_a_killed_server_left_is_removed_by_the_next_and_a_live_one_is_left_alone(runtime_directory: Path) -> None:
    (killed, left), (lives, kept) = started(), started()
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.is_dir()
        assert [each.pid for each in neighbours()] == [lives.pid]
        home = open_home()
        assert not left.exists()
        assert kept.is_dir()
        home.close()
        home.close()
        assert set(runtime_directory.iterdir()) == {kept}
    finally:
        lives.communicate("")
        killed.communicate("")
    assert list(runtime_directory.iterdir()) == [], "a server that ends removes its own"


def test_a_directory_that_is_only_being_made_is_left_alone(runtime_directory: Path) -> None:
    (path := runtime_directory / f"headrace-{os.getpid()}-new").mkdir()
    remove_leftovers()
    assert path.is_dir()
    os.utime(path, (1, 1))
    remove_leftovers()
    assert not path.exists()


def test_a_ledger_goes_on_in_files_and_loses_nothing() -> None:
    seen: list[Records] = []
    ledger = Ledger(lambda requests, batches: seen.append(requests), capacity=8)
    number = ledger.register(spec("before"))
    ledger.write(RequestRecord(number=1, model=number))
    home = open_home()
    ledger.share(home)
    later = ledger.register(spec("later"))
    for count in range(2, 30):
        ledger.write(RequestRecord(number=count, model=later))
    ledger.write_batch(BatchRecord(1, 2, 3, 4, 5, model=later, rows=1, requests=1, predicted=77))
    ledger.drain()
    assert np.concatenate([part["number"] for part in seen]).tolist() == list(range(1, 30))
    assert ledger.written == (29, 1)
    found = the_neighbour(os.getpid())
    assert found.learn() == {0: ("", 0, ""), number: ("before", 1, "d"), later: ("later", 1, "d")}
    requests, batches = (RingReader(path).take() for path in sorted(found.rings(), reverse=True))
    assert (requests.records["number"].tolist(), requests.overrun) == (list(range(23, 30)), 21)
    assert batches.records["predicted"].tolist() == [77]
    home.close()
    assert neighbours() == []


def test_a_clock_that_was_set_is_noted_and_one_that_only_drifts_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = [1_000_000_000]
    monkeypatch.setattr(homes, "_wall_ahead", lambda: ahead[0])
    home = open_home()
    Ledger(lambda requests, batches: None, capacity=8).share(home)
    reader = RingReader(the_neighbour(None).rings()[0])
    assert reader.wall_ahead == 1_000_000_000
    ahead[0] += 999_999
    home.look_at_clocks()
    assert reader.wall_ahead == 1_000_000_000
    ahead[0] -= 3_600_000_000_000
    home.look_at_clocks()
    assert reader.wall_ahead == 1_000_999_999 - 3_600_000_000_000
    home.close()


def test_whoever_is_not_there_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidLedger, match="no server of this user runs"):
        the_neighbour(None)
    with pytest.raises(InvalidLedger, match="process number 4711"):
        the_neighbour(4711)
    with pytest.raises(InvalidLedger, match="no directory of a running server"):
        neighbour(tmp_path)
    one, other = open_home(), open_home()
    with pytest.raises(InvalidLedger, match="several servers"):
        the_neighbour(None)
    one.close()
    other.close()


def test_without_a_place_in_memory_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADRACE_RUNTIME_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match="No such file"):
        open_home()
