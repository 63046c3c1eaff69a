"""`headrace bench …`: the commands that measure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from headrace.clock import MICROSECOND, MILLISECOND, SECOND
from headrace.errors import InvalidLoad

bench = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Measure servers.")

MOST_SECONDS = 1e6
_UNITS = {"ns": 1, "us": MICROSECOND, "ms": MILLISECOND, "s": SECOND}


def duration(text: str) -> int:
    """`20ms`, `1.5s`, `250us` in ns.

    Raises:
        InvalidLoad: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ns|us|ms|s)", text.strip())
    if found is None or not 0 < float(found[1]) * _UNITS[found[2]] <= MOST_SECONDS * SECOND:
        raise InvalidLoad(f"'{text}' is no duration; expected something like 20ms, 1.5s or 250us")
    return int(float(found[1]) * _UNITS[found[2]])


@bench.command()
def load(
    target: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server, or unix:PATH.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="The model to ask.")],
    model_version: Annotated[str, typer.Option(metavar="N", help="Its version. [the default one]", show_default=False)] = "",
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=1 << 14, help="Closed loop: N clients, each waits for its answer.")
    ] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Open loop: R requests a second, come what may.")] = None,
    arrivals: Annotated[
        str, typer.Option(metavar="poisson|constant|bursts[:N]|FILE", help="When they come; FILE has one instant (s) a line.")
    ] = "poisson",
    objective: Annotated[str | None, typer.Option(metavar="20ms", help="Answers within this are good.")] = None,
    deadline: Annotated[str | None, typer.Option(metavar="50ms", help="Give a request up then, and tell its server.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Inputs: Arrow IPC or Parquet, one request a row, columns are inputs.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(metavar="INPUT=16,16", help="Size of open dimensions, without the rows; repeatable.")
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(metavar="'weight=3 rows=4'", help="A share; also priority=, timeout_us=, shape.INPUT=; repeatable."),
    ] = None,
    channels: Annotated[int, typer.Option(metavar="K", min=1, max=1024, help="Connections.")] = 1,
    seconds: Annotated[float, typer.Option(metavar="S", help="How long to measure.")] = 10.0,
    warm_up: Annotated[
        float | None,
        typer.Option(metavar="S", help="Warm up for so long before, and on until it is steady. [1; 0 for a FILE of arrivals]"),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of whatever is random.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page with plots.")] = None,
) -> None:
    """Ask a V2 server (Headrace, Triton, any other) and say what it was like.

    Latencies count from the instant a request was due, so a server that stalls cannot hide it; errors are counted by code, and
    never as latencies. Ctrl-C ends it early, and what there is counts. Exit status 1 when nothing was answered.

    \b
    Examples:
      headrace bench load --target 127.0.0.1:8001 --model magika --concurrency 16
      headrace bench load --target 127.0.0.1:8001 --model magika --rate 200 --objective 50ms --report load.html
      headrace bench load --target 127.0.0.1:8001 --model tiny --rate 5000 --arrivals bursts:64 --deadline 20ms --json
      headrace bench load --target 127.0.0.1:8001 --model tiny --concurrency 8 --mix 'weight=3' --mix 'rows=16 priority=2'
    """
    from headrace.cli.load import run_load
    from headrace.load.arrivals import is_file
    from headrace.load.generator import LoadPlan
    from headrace.load.messages import Share, parse_shape, parse_share

    if (concurrency is None) != (rate is not None or is_file(arrivals)):
        raise InvalidLoad("say either --concurrency N (closed loop) or --rate R (open loop)")
    if warm_up is None:
        warm_up = 0.0 if is_file(arrivals) else 1.0
    if not 0 < seconds <= MOST_SECONDS or not 0 <= warm_up <= MOST_SECONDS or (rate is not None and not 0 < rate < 1e7):
        raise InvalidLoad("--seconds and --rate must be positive, --warm-up not negative, and all of them within reason")
    if data is not None and (mix or shape):
        raise InvalidLoad("--data brings its own shapes and priorities; leave out --mix and --shape")
    shapes = dict(map(parse_shape, shape or ()))
    plan = LoadPlan(
        target,
        model,
        model_version,
        concurrency,
        rate,
        arrivals,
        objective=None if objective is None else duration(objective),
        deadline=None if deadline is None else duration(deadline),
        data=data,
        shares=[parse_share(text, shapes) for text in mix] if mix else [Share(shapes=shapes)],
        channels=channels,
        warm_up=warm_up,
        seconds=seconds,
        seed=seed,
    )
    raise typer.Exit(run_load(plan, json=json, report=report))
