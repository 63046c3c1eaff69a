"""`headrace batch`: a graph over a data set, for whoever watches, and for programs."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from headrace.errors import InvalidJob, JobStopped
from headrace.machine import SWITCH_SECONDS

if TYPE_CHECKING:
    from headrace.jobs.job import BatchJob, Progress

_NICENESS = 10
"""Of a job that shares a server."""
_LOOK_SECONDS = {True: 0.1, False: 1.0}
"""How often is told how far it is, to a terminal or not."""


class _Group(TyperGroup):
    """`headrace batch GRAPH` is `headrace batch run GRAPH`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if not args or args[0] in (*self.commands, "--help") else ["run", *args])


batch = typer.Typer(
    cls=_Group,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Run a graph, or a model, over a data set: headrace batch GRAPH --repository DIR --input FILES --output DIR.",
)


@batch.command()
def run(
    graph: Annotated[str, typer.Argument(metavar="GRAPH", help="The graph, or model.", show_default=False)],
    input: Annotated[
        list[str],
        typer.Option(metavar="PATH", help="Files, directories, patterns, URLs; repeatable.", show_default=False),
    ],
    output: Annotated[str, typer.Option(metavar="DIR", help="Where the parts go; or a URL.", show_default=False)],
    repository: Annotated[
        Path | None, typer.Option("--repository", "-r", metavar="DIR", help="The folder of models.", show_default=False)
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="A server that runs the graph instead, as far as its other requests do not miss anything."
        ),
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(metavar="TENSOR=COLUMN", help="Where an input comes from, if its column has another name.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Input columns in the output. [all that the graph does not read]")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(metavar="TENSOR", help="BYTES outputs that are text.")] = None,
    null: Annotated[
        list[str] | None, typer.Option(metavar="TENSOR=VALUE", help="What stands for null; else such rows are rejected.")
    ] = None,
    null_mask: Annotated[
        list[str] | None, typer.Option(metavar="TENSOR=MASK", help="The input that is told what was null: 0, and else 1.")
    ] = None,
    reject_nan: Annotated[bool, typer.Option("--reject-nan", help="Reject rows with NaN in an input.")] = False,
    input_format: Annotated[
        str | None, typer.Option(metavar="parquet|arrow|csv|json|files", help="[by the names of the files]")
    ] = None,
    format: Annotated[Literal["parquet", "arrow"], typer.Option(metavar="parquet|arrow", help="Of the parts.")] = "parquet",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was begun there, if something was.")] = False,
    limit_rows: Annotated[int | None, typer.Option(metavar="N", help="Only the first rows.", min=1)] = None,
    batch_rows: Annotated[
        str, typer.Option(metavar="auto|N", help="Rows of a batch; auto: what is measured to be best.")
    ] = "auto",
    max_rejects: Annotated[int, typer.Option(metavar="N", help="Stop when more rows than that are rejected.", min=0)] = 1000,
    memory: Annotated[
        int, typer.Option(metavar="BYTES", help="What may be on its way between input and output.", min=1 << 20)
    ] = 512 << 20,
    on: Annotated[
        Literal["ray"] | None,
        typer.Option(metavar="ray", help="Spread it over actors: of the Ray of RAY_ADDRESS, else of one that ends with the job."),
    ] = None,
    actors: Annotated[int | None, typer.Option(metavar="N", help="[as many as Ray has room for]", min=1)] = None,
    actor_cpus: Annotated[int | None, typer.Option(metavar="N", help="CPUs of each actor. [1]", min=1)] = None,
    actor_gpus: Annotated[float, typer.Option(metavar="N", help="GPUs of each actor.", min=0)] = 0,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option(metavar="LEVEL")] = "warning",
) -> None:
    """Run a graph over a data set: Parquet, Arrow, CSV, JSON lines, or files as rows; into Parquet or Arrow.

    Every row is in the output once, in order, or told of in DIR/_rejects. A job that was stopped or killed goes on with --resume,
    and its output is the same as if nothing had happened. On a terminal a bar says how far it is; else a line of JSON a second.
    Exit status 1 when rows were rejected.

    \b
    Examples:
      headrace batch embed -r models --input 'texts/*.parquet' --output vectors --columns text=body
      headrace batch filetype -r models --input documents --output kinds --columns content=bytes --text label
      headrace batch embed -r models --input 'texts/*.parquet' --output vectors --columns text=body --resume
      headrace batch embed -r models --input 's3://texts/2026/*.parquet' --output s3://vectors/2026 --columns text=body
      headrace batch embed --share 127.0.0.1:8001 --input 'texts/*.parquet' --output vectors --columns text=body
      headrace batch embed -r models --input 'texts/*.parquet' --output vectors --columns text=body --on ray --actors 4
      headrace batch verify vectors
    """
    from headrace.server.logs import configure_logs

    configure_logs(log_level, "auto")
    _check_extra()
    from headrace.jobs.beginning import Server
    from headrace.jobs.columns import Nulls
    from headrace.jobs.job import BatchJob
    from headrace.jobs.manifest import Options

    options = Options(
        columns=_pairs("--columns", columns),
        keep=None if keep is None else tuple(keep),
        text=tuple(text or ()),
        nulls=Nulls(fill=_pairs("--null", null), masks=_pairs("--null-mask", null_mask), reject_nan=reject_nan),
        input_format=input_format,
        format=format,
        limit_rows=limit_rows,
        batch_rows=_rows(batch_rows),
    )
    where = Server(share) if share is not None else repository
    if where is None or (share is not None and repository is not None):
        raise InvalidJob("give --repository, the folder of models, or --share, the server that runs the graph")
    if share is not None:
        if on is not None:
            raise InvalidJob("--share and --on do not go together: a job that shares a server runs nothing itself")
        os.nice(_NICENESS)  # it may be on this machine
    kind = BatchJob if on is None else _ray_job(actors, actor_cpus, actor_gpus)
    job = kind(graph, where, input, output, options, resume=resume, memory=memory, most_rejected=max_rejects)
    sys.setswitchinterval(SWITCH_SECONDS)
    raise typer.Exit(_run(job, output))


@batch.command()
def verify(
    output: Annotated[str, typer.Argument(metavar="DIR", help="The output of a job.", show_default=False)],
    sample: Annotated[int, typer.Option(metavar="N", help="So many windows of rows are computed again.", min=0)] = 4,
    seed: Annotated[int, typer.Option(metavar="N", help="Which.")] = 0,
    repository: Annotated[
        Path | None, typer.Option("--repository", "-r", metavar="DIR", help="The folder of models. [where it was]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Check the output of a job: the digest of every part, and a sample of rows, which must come out the same to the last bit.

    Exit status 1 when something is not as it was recorded.

    \b
    Example:
      headrace batch verify vectors
    """
    from headrace.server.logs import configure_logs

    configure_logs("warning", "auto")
    _check_extra()
    from headrace.jobs.verify import verify_output

    found = verify_output(output, sample=sample, seed=seed, repository=repository)
    if json:
        print(_json(asdict(found)))
    else:
        for problem in found.problems:
            print(problem)
        print(f"{found.parts} parts and {found.rows} rows as recorded, {found.sampled_rows} rows computed again")
    raise typer.Exit(1 if found.problems else 0)


def _check_extra() -> None:
    if find_spec("pyarrow") is None:
        raise InvalidJob("batch jobs need pyarrow: pip install 'headrace[jobs]'")


def _ray_job(count: int | None, cpus: int | None, gpus: float) -> Callable[..., BatchJob]:
    if find_spec("ray") is None:
        raise InvalidJob("--on ray needs Ray: pip install 'headrace[jobs,ray]'")
    if "RAY_ADDRESS" not in os.environ:
        from headrace.cluster.launch import let_in

        let_in(secrets.token_hex(32))  # into the Ray that is started
    from headrace.cluster.batch import Actors, RayJob

    return partial(RayJob, Actors(count, cpus, gpus))


def _run(job: BatchJob, output: str) -> int:
    with _stopping(job), _told(job):
        try:
            progress = job.run()
        except JobStopped:
            progress = job.progress
            again = shlex.join(word for word in sys.argv[1:] if word != "--resume")
            print(
                f"headrace: stopped; {progress.splits} of {progress.total_splits} splits are finished. Go on with:",
                file=sys.stderr,
            )
            print(f"  headrace {again} --resume", file=sys.stderr)
            return 130
    if sys.stdout.isatty():
        _print_summary(progress, output)
    else:
        print(_json({"event": "done", "output": output, **_record(progress)}))
    return 1 if progress.rejected else 0


@contextmanager
def _stopping(job: BatchJob) -> Iterator[None]:
    """The first Ctrl-C, or SIGTERM, ends the job in order; the next one as it comes."""

    def stop(number: int, frame: object) -> None:
        job.stop()
        for each in before:
            signal.signal(each, before[each])

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _told(job: BatchJob) -> Iterator[None]:
    """How far it is, from a thread of its own."""
    is_terminal = sys.stdout.isatty()
    ended = threading.Event()
    thread = threading.Thread(target=_draw if is_terminal else _write_lines, args=(job, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _write_lines(job: BatchJob, ended: threading.Event) -> None:
    while not ended.wait(_LOOK_SECONDS[False]):
        print(_json({"event": "progress", **_record(job.progress)}), flush=True)


def _draw(job: BatchJob, ended: threading.Event) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows · {task.fields[rate]:,.0f}/s · batches of {task.fields[batches]} · {task.fields[rejected]} rejected"),
        TextColumn("{task.fields[actors]}·"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("", total=None, rate=0.0, batches="", rejected=0, actors="")
        while not ended.wait(_LOOK_SECONDS[True]):
            now = job.progress
            if now.total_rows:
                told = {"rate": now.rate, "batches": _batches(now), "rejected": now.rejected}
                told["actors"] = f"· {len(now.actors)} actors " if now.actors else ""
                bar.update(task, completed=now.rows, total=now.total_rows, **told)


def _print_summary(progress: Progress, output: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False)
    for name, value in (
        ("rows", f"{progress.rows:,}" + (f", {progress.before:,} of them before" if progress.before else "")),
        ("rejected", f"{progress.rejected:,}" + (f", see {output}/_rejects" if progress.rejected else "")),
        ("parts", f"{progress.splits:,}, {progress.nbytes / 2**20:,.1f} MiB in this run"),
        ("batches of", _batches(progress)),
        *[(f"actor {each.name}", f"{each.rows:,} rows, {each.rows_per_second:,.0f} rows/s") for each in progress.actors],
        ("time", f"{progress.seconds:,.1f} s, {progress.rate:,.0f} rows/s"),
        ("output", output),
    ):
        table.add_row(name, value)
    Console(highlight=False).print(table)


def _batches(progress: Progress) -> str:
    least, most = progress.batch_rows
    return str(most) if least == most else f"{least} to {most}"


def _record(progress: Progress) -> dict[str, Any]:
    left, told = progress.left_seconds, asdict(progress)
    if not progress.actors:
        del told["actors"]
    return {
        **told,
        "rows_per_second": round(progress.rate, 1),
        "left_seconds": None if left is None else round(left, 1),
    }


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)


def _pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    pairs = [each.partition("=") for each in given or ()]
    for name, sign, value in pairs:
        if not (name and sign):
            raise InvalidJob(f"{option} is '{name}{sign}{value}', expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _rows(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InvalidJob(f"--batch-rows is '{text}', expected auto or a number from 1 on")
    return int(text)
