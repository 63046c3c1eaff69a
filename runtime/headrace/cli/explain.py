"""`headrace budget --explain`: what a running server decided because of its budgets, and why, in words."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from headrace.budgets.decisions import FILE, in_words
from headrace.budgets.report import read_report
from headrace.cli.observe import server_of
from headrace.errors import InvalidLedger

if TYPE_CHECKING:
    from headrace.ledger.home import Neighbour


def explain_decisions(of: str | None, *, watch: bool, json: bool) -> None:
    """Print the latest decisions of a server, the oldest first, and with `watch` those that follow until it ends.

    Raises:
        InvalidLedger: there is no such server.
        InvalidObjective: it has no objectives, so it decides nothing.
    """
    server = server_of(of)
    if not server.is_alive:
        raise InvalidLedger(f"the server of {server.path} has ended")
    read_report(server.path)
    is_any = False
    for told in _decisions(server, watch=watch):
        is_any = True
        print(jsonlib.dumps(told) if json else in_words(told), flush=True)
    if not is_any and not json:
        print("nothing was decided yet: the server decides once a second, and tells what it changes")


def _decisions(server: Neighbour, *, watch: bool) -> Iterator[Mapping[str, Any]]:
    last = 0.0
    while True:
        try:
            told = jsonlib.loads((server.path / FILE).read_text(encoding="utf-8"))["decisions"]
        except FileNotFoundError:
            told = []
        new = [each for each in told if each["wall"] > last]
        yield from new
        last = max((each["wall"] for each in new), default=last)
        if not watch or not server.is_alive:
            return
        time.sleep(1)
