"""What of a budget is on disk, and whose it is."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from headrace.budgets.budgets import Budgets
from headrace.budgets.keeping import Keeping
from headrace.budgets.report import read_report
from headrace.clock import SECOND, VirtualClock
from headrace.errors import InvalidObjective
from headrace.ledger.ledger import Ledger
from headrace.ledger.records import RequestRecord
from headrace.model import ModelSpec
from tests.budgets.making import NOON, objective, request


class Server:
    """A ledger, the budgets it feeds, and who keeps them."""

    def __init__(self, directory: Path | None, published: Path | None = None, **changes: object) -> None:
        self.clock = VirtualClock(NOON)
        self.budgets = Budgets([objective(**changes)], lambda number: self.ledger.model(number), 0)
        self.ledger = Ledger(self.budgets.fold)
        self.ledger.register(ModelSpec("m", 1, "d", "fake", "", 8, (), ()))
        self.keeping = Keeping(self.budgets, self.ledger, published, directory, clock=self.clock)

    def had(self, count: int, execute: float = 1) -> None:
        for _ in range(count):
            self.ledger.write(RequestRecord(**request(self.clock.now(), execute=execute)))

    def goes_on(self, seconds: int) -> None:
        self.clock.advance(seconds * SECOND)
        self.keeping.beat()

    @property
    def counted(self) -> tuple[float, float]:
        """Requests of the last 30 days, and bad ones, as far as it knows."""
        told = self.ledger.read(
            lambda: self.budgets.accounts["m-soon"].history.counts(self.clock.now() + SECOND, 720 * 3600 * SECOND)
        )
        return told[0], told[1]


def kept(directory: Path) -> float:
    """Requests of the latest hour that are on disk."""
    told = json.loads((directory / "budgets.json").read_text())
    return told["objectives"]["m-soon"]["3600"][-1][1]


def test_it_is_written_every_minute_so_a_server_that_is_killed_loses_no_more(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.had(3)
    server.goes_on(59)
    assert not (tmp_path / "budgets.json").exists()
    server.goes_on(1)
    assert kept(tmp_path) == 3
    server.had(2)
    server.goes_on(59)
    assert kept(tmp_path) == 3
    server.keeping.close()
    assert kept(tmp_path) == 5


def test_of_two_servers_one_keeps_and_the_other_takes_over_and_adds_its_own(tmp_path: Path) -> None:
    first, second = Server(tmp_path), Server(tmp_path)
    first.had(3)
    second.had(4, execute=99)
    for server in (first, second):
        server.goes_on(60)
    assert kept(tmp_path) == 3
    first.keeping.close()
    second.goes_on(60)
    assert kept(tmp_path) == 7
    assert second.counted == (7, 4)
    second.keeping.close()
    assert Server(tmp_path).counted == (7, 4)


def test_what_is_broken_is_kept_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "budgets.json").write_text('{"format": 1, "objecti')
    server = Server(tmp_path)
    assert "cannot be read, budgets begin anew" in caplog.text
    assert (tmp_path / "budgets.broken").read_text() == '{"format": 1, "objecti'
    server.had(1)
    server.keeping.close()
    assert kept(tmp_path) == 1


def test_what_another_release_has_written_is_kept_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "budgets.json").write_text('{"format": 2, "objectives": {}}')
    Server(tmp_path)
    assert "its format is 2, not 1" in caplog.text


def test_objectives_that_are_gone_may_come_back(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.had(3)
    server.keeping.close()
    Server(tmp_path, name="other").keeping.close()
    assert Server(tmp_path).counted == (3, 0)


def test_a_disk_that_cannot_be_written_is_told_once_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "ledger"
    directory.mkdir()
    server = Server(directory)
    server.had(3)
    (directory / ".budgets.lock").unlink()
    directory.rmdir()
    for _ in range(3):
        server.goes_on(60)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage().partition(":")[0] for record in errors] == [f"{directory}/budgets.json cannot be written"]
    directory.mkdir()
    server.goes_on(60)
    assert kept(directory) == 3


def test_what_a_server_says_is_there_for_others_at_every_beat(tmp_path: Path) -> None:
    server = Server(None, tmp_path)
    with pytest.raises(InvalidObjective, match="has no objectives: start it with --slo DIR"):
        read_report(tmp_path)
    server.had(99)
    server.had(1, execute=50)
    server.goes_on(1)
    (told,) = read_report(tmp_path)["objectives"]
    assert (told["requests"], told["bad"], told["left"]) == (100, 1, pytest.approx(0))
    assert told["burn"]["slow"] == pytest.approx(1)
    assert told["spent"]["slow"]["charges"]["execute"] == pytest.approx(1)
