"""`headrace ledger`: what servers have kept, for people who ask. `headrace.ledger` says what that is."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headrace.errors import InvalidLedger

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.ledger.home import Neighbour

ledger = typer.Typer(
    rich_markup_mode=None, help="Ask about the requests that servers have had, and watch them.", no_args_is_help=True
)

_OfOption = Annotated[
    str | None,
    typer.Option("--of", metavar="PID|DIR", help="The server, or its directory in memory; left out: the only one that runs."),
]
_POLL_SECONDS = 0.1


@ledger.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT; - reads it from stdin.")],
    directory: Annotated[
        Path | None, typer.Option("--ledger", metavar="DIR", help="What servers have kept there, with serve --ledger DIR.")
    ] = None,
    of: _OfOption = None,
    form: Annotated[Literal["table", "json", "csv"], typer.Option("--format", metavar="table|json|csv")] = "table",
) -> None:
    """Answer a question in SQL (DuckDB's) about requests and batches, of files and of servers that run. Nothing is changed.

    Without --ledger, one running server is asked: all that it has kept, else its latest. With it, all that is there, of whatever
    server, and what those that run have not written yet.
    Tables: requests, batches. Views: stages (requests with the duration of each stage in µs), visits (what graphs ran).
    `DESCRIBE requests` lists the columns; docs/ledger.md says what they are.

    \b
    Examples:
      headrace ledger query "SELECT outcome, count(*) FROM requests GROUP BY ALL"
      headrace ledger query "SELECT model, quantile_cont(execute_us, 0.99) FROM stages GROUP BY ALL" --ledger ledger
      headrace ledger query "SELECT reason, avg(rows) FROM batches GROUP BY ALL" --format json
    """
    from headrace.server.extras import check_extra

    check_extra("duckdb", "pyarrow")
    from headrace.ledger.query import Desk, gather_sources

    if directory is not None and not directory.is_dir():
        raise InvalidLedger(f"there is no ledger in {directory}: it is no directory")
    servers = _servers(directory, of)
    sources = gather_sources(directory or servers[0].ledger, servers)
    for warning in sources.warnings:
        print(f"headrace: {warning}", file=sys.stderr)
    answer = Desk(sources).ask(sys.stdin.read() if sql == "-" else sql)
    {"table": _print_table, "json": _print_json, "csv": _print_csv}[form](answer)


@ledger.command()
def tail(
    of: _OfOption = None,
    count: Annotated[int, typer.Option("--lines", "-n", metavar="N", help="So many of the latest.", min=0)] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
) -> None:
    """Print the latest requests of a running server, one a line: when, how it ended, which model, and where its time went.

    \b
    Examples:
      headrace ledger tail
      headrace ledger tail -f
      headrace ledger tail --of 4711 -n 100
    """
    from headrace.cli.observe import server_of
    from headrace.ledger.collect import Collector
    from headrace.ledger.tail import HEAD, lines_of

    server = server_of(of)
    if not server.is_alive:
        raise InvalidLedger(f"the server of {server.path} has ended")
    # Of each ring so many: the latest of all are among them.
    collector = Collector(server, behind=count)
    shown = _printer()
    shown(HEAD)
    first, overrun = collector.take()
    for line in lines_of(first, server.learn())[-count:] if count else []:
        shown(line)
    while follow:
        is_alive = server.is_alive
        chunks, overrun = collector.take()
        if overrun:
            print(f"headrace: {overrun} records came faster than they could be read", file=sys.stderr)
        for line in lines_of(chunks, server.learn()) if chunks else []:
            shown(line)
        if not is_alive:
            return
        time.sleep(_POLL_SECONDS)


def _servers(directory: Path | None, of: str | None) -> list[Neighbour]:
    """Those that are asked: the one that was named; else all that run, or, without files, the only one."""
    from headrace.cli.observe import server_of
    from headrace.ledger.home import neighbours

    if of is not None or directory is None:
        server = server_of(of)
        if not server.is_alive:
            raise InvalidLedger(f"the server of {server.path} has ended; ask about its files with --ledger DIR")
        return [server]
    return neighbours()


def _printer() -> Any:
    """How lines are printed: in colours where somebody sees them."""
    if not sys.stdout.isatty():
        return lambda line: print(line.text, flush=True)
    from rich.console import Console
    from rich.text import Text

    from headrace.ledger.tail import HEAD

    console = Console(highlight=False, soft_wrap=True)

    def show(line: Any) -> None:
        style = "bold" if line is HEAD else "" if line.outcome == "answered" else "red" if "failed" in line.outcome else "yellow"
        console.print(Text(line.text, style))

    return show


def _print_table(answer: pa.Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name, column in zip(answer.column_names, answer.columns, strict=True):
        is_number = str(column.type).startswith(("int", "uint", "double", "float", "decimal"))
        table.add_column(Text(name), justify="right" if is_number else "left", overflow="fold")
    for row in zip(*(column.to_pylist() for column in answer.columns), strict=True):
        table.add_row(*(Text("" if value is None else _text(value)) for value in row))
    # What goes into a file or a pipe is not cut to the width of anything.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _print_json(answer: pa.Table) -> None:
    import json

    for row in answer.to_pylist():
        print(json.dumps(row, default=str))


def _print_csv(answer: pa.Table) -> None:
    import csv

    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(answer.column_names)
    rows.writerows(zip(*(column.to_pylist() for column in answer.columns), strict=True))
