"""A ledger is only read, whatever is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.cli.app import app
from headrace.errors import InvalidLedger
from headrace.ledger.home import open_home
from headrace.ledger.query import Desk, Sources


@pytest.fixture
def desk() -> Desk:
    return Desk(Sources())


@pytest.mark.parametrize(
    "sql",
    ["SELECT * FROM requests", "FROM batches", "DESCRIBE requests", "SHOW TABLES", "WITH a AS (SELECT 1 AS x) SELECT x FROM a",
     "SELECT class, sum(rows) FROM stages GROUP BY ALL", "SELECT * FROM visits;", "VALUES (1)", "SUMMARIZE requests"],
)  # fmt: skip
def test_questions_are_answered(desk: Desk, sql: str) -> None:
    assert desk.ask(sql).num_columns > 0


@pytest.mark.parametrize(
    ("sql", "kind"),
    [("DELETE FROM requests", "DELETE"), ("UPDATE requests SET rows = 1", "UPDATE"), ("DROP VIEW stages", "DROP"),
     ("INSERT INTO requests SELECT * FROM requests", "INSERT"), ("CREATE TABLE mine AS SELECT 1", "CREATE"),
     ("COPY requests TO '{file}'", "COPY"), ("EXPORT DATABASE '{file}'", "EXPORT"), ("ATTACH '{file}' AS f", "ATTACH"),
     ("SET enable_external_access = true", "SET"), ("INSTALL httpfs", "LOAD"), ("LOAD json", "LOAD"),
     ("PRAGMA version", "PRAGMA"), ("EXPLAIN ANALYZE COPY requests TO '{file}'", "EXPLAIN"), ("CALL pragma_version()", "CALL")],
)  # fmt: skip
def test_what_is_no_question_is_refused(desk: Desk, sql: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "out"
    with pytest.raises(InvalidLedger, match=f"the ledger is only read: SELECT is answered, {kind} is not"):
        desk.ask(sql.format(file=file))
    assert not file.exists()


@pytest.mark.parametrize(
    "sql",
    ["SELECT * FROM read_text('{file}')", "SELECT * FROM read_csv('{file}')", "SELECT * FROM '{file}'",
     "SELECT * FROM glob('{folder}/*')", "SELECT * FROM read_parquet('{file}')", "SELECT getenv('HOME')",
     "SELECT * FROM tmp_path", "SELECT * FROM query('DROP VIEW stages')"],
)  # fmt: skip
def test_files_and_this_process_are_out_of_reach(desk: Desk, sql: str, tmp_path: Path) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(InvalidLedger):
        desk.ask(sql.format(file=file, folder=tmp_path))


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT nothing FROM requests", "", ";", "SELECT 1; SELECT 2", "SELECT '"])
def test_wrong_questions_are_told_what_is_wrong(desk: Desk, sql: str) -> None:
    with pytest.raises(InvalidLedger) as caught:
        desk.ask(sql)
    assert caught.value.message


@pytest.fixture
def servers() -> Iterator[None]:
    homes = [open_home(), open_home()]
    yield
    for home in homes:
        home.close()


def refused(*words: object) -> str:
    with pytest.raises(InvalidLedger) as caught:
        app([str(word) for word in words], standalone_mode=False)
    return caught.value.message


def test_whom_to_ask_has_to_be_clear(tmp_path: Path) -> None:
    assert "no server of this user runs" in refused("ledger", "query", "SELECT 1")
    assert "no server with process number 99 keeps a ledger" in refused("ledger", "tail", "--of", 99)
    assert "is no directory of a running server" in refused("ledger", "tail", "--of", tmp_path)
    assert "there is no ledger in" in refused("ledger", "query", "SELECT 1", "--ledger", tmp_path / "nowhere")
    assert "no server of this user runs" in refused("observe", "--ledger", tmp_path / "l")


@pytest.mark.usefixtures("servers")
def test_several_servers_are_told_apart_by_their_number() -> None:
    assert "several servers run here: choose one with --of PID" in refused("ledger", "tail")
