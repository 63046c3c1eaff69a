"""The page on the ledger: its questions are questions, its columns are the columns, its bytes the bytes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headrace.ledger.query import Desk, Sources
from headrace.ledger.records import BATCHES, REQUESTS
from headrace.ledger.tables import BATCHES_SCHEMA, REQUESTS_SCHEMA

PAGE = (Path(__file__).parents[2] / "docs/ledger.md").read_text()
QUESTIONS = re.search(r"```sql\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("sql", [part for part in (QUESTIONS[1] if QUESTIONS else "").split(";") if part.strip()])
def test_its_questions_are_answered(sql: str) -> None:
    assert Desk(Sources()).ask(sql).num_columns > 1


def test_it_has_every_column_and_no_other() -> None:
    requests = PAGE.partition("### `requests`")[2].partition("`stages` is")[0]
    told = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", requests, re.MULTILINE)))
    assert sorted(told) == sorted(REQUESTS_SCHEMA.names)
    batches = PAGE.partition("### `batches`")[2].partition("## Keeping")[0]
    assert set(re.findall(r"`(\w+)`", batches)) - {"reason", "visits"} | {"reason"} == set(BATCHES_SCHEMA.names)


def test_it_has_the_sizes() -> None:
    assert f"bytes of a record: {REQUESTS.size} of requests, {BATCHES.size} of batches" in PAGE
