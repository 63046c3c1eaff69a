"""`headrace bench load`: a live line while it runs, then a table, JSON or a page with plots."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from headrace.clock import MICROSECOND, MILLISECOND, SECOND
from headrace.errors import Code
from headrace.load.analysis import Counted
from headrace.load.generator import LoadPlan, Look, Recording, run


def run_load(plan: LoadPlan, *, json: bool, report: Path | None) -> int:
    """Carry out a load and show what came of it; the exit status, 1 when nothing was answered.

    Raises:
        InvalidLoad, TargetFailed, KernelsUnusable: see `load.generator.run`.
    """
    if report is not None:
        from headrace.load.plots import check_plots

        check_plots("--report", report)
    with _live_line(plan) as watch:
        recording = run(plan, watch)
    if json:
        jsonlib.dump(as_record(recording), sys.stdout, indent=2)
        print()
    else:
        _print_table(recording)
    if report is not None:
        from headrace.load.report import write_report

        write_report(recording, report)
        print(f"written: {report}", file=sys.stderr)
    return 0 if recording.summary.total.answered else 1


def as_record(recording: Recording) -> dict[str, Any]:
    """What a program wants to know; durations in ms."""
    plan, summary = recording.plan, recording.summary
    return {
        "target": plan.target,
        "model": plan.model,
        "loop": "open" if plan.is_open else "closed",
        "concurrency": plan.concurrency,
        "rate": plan.rate,
        "arrivals": plan.arrivals if plan.is_open else None,
        "seconds": round(summary.seconds, 3),
        "warm_up": round(recording.warm_up, 3),
        "cut_short": recording.is_cut,
        "offered_per_second": round(summary.offered, 2),
        **_counted_record(summary.total),
        "shares": [{"share": each.name, **_counted_record(each)} for each in summary.shares],
        "generator": {
            "cores": round(summary.cpu, 3),
            "lag_ms": {"p50": _ms(summary.lag[0]), "p99": _ms(summary.lag[1])},
        },
        "doubts": list(summary.doubts),
    }


def _counted_record(counted: Counted) -> dict[str, Any]:
    latency = counted.latency
    told: dict[str, float | None] = dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "p99.9", "max"))
    if latency is not None:
        told = dict(zip(told, map(_ms, (latency.mean, *latency.quantiles, latency.most)), strict=True))
    return {
        "requests": counted.due,
        "answered": counted.answered,
        "errors": counted.errors,
        "rate_per_second": round(counted.rate, 2),
        "goodput_per_second": None if counted.goodput is None else round(counted.goodput, 2),
        "latency_ms": told,
    }


def _ms(nanoseconds: float) -> float:
    return round(nanoseconds / MILLISECOND, 4)


@contextmanager
def _live_line(plan: LoadPlan) -> Iterator[Callable[[Look], None]]:
    """A line on stderr that says how it goes, where somebody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(bar_width=20), TimeRemainingColumn(compact=True), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) if console.is_terminal else nullcontext() as progress:
        task = progress.add_task("", total=1.0) if progress is not None else None

        def watch(look: Look) -> None:
            if progress is not None and task is not None:
                progress.update(task, completed=look.done, description=told(look, plan.objective))

        yield watch


def told(look: Look, objective: int | None) -> str:
    """The last moment of a load in one line."""
    samples = look.samples
    answered = samples[samples["code"] == Code.OK.value]
    latencies = answered["done"] - answered["due"]
    words = [f"{len(answered) / look.seconds:,.0f}/s"]
    if len(latencies):
        p50, p99 = np.quantile(latencies, (0.5, 0.99))
        words += [f"p50 {_short(p50)}", f"p99 {_short(p99)}"]
    if objective is not None and len(samples):
        words.append(f"good {(latencies <= objective).sum() / len(samples):.1%}")
    if errors := len(samples) - len(answered):
        words.append(f"errors {errors}")
    return "  ".join(words)


def _short(nanoseconds: float) -> str:
    for unit, size in (("s", SECOND), ("ms", MILLISECOND)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds / MICROSECOND:.0f} µs"


def _print_table(recording: Recording) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    plan, summary = recording.plan, recording.summary
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(escape(f"{plan.model} at {plan.target}: {recording.told()}"))
    good = ["good/s"] if plan.objective is not None else []
    table = Table("", "answered/s", *good, "p50", "p90", "p99", "p99.9", "max", "errors", box=None, header_style="bold")
    for counted in [*summary.shares, summary.total]:
        latency = counted.latency
        times = ["–"] * 5
        if latency is not None:
            times = [_short(time) for time in latency.shown]
        goods = [] if counted.goodput is None else [f"{counted.goodput:,.1f}"]
        table.add_row(escape(counted.name), f"{counted.rate:,.1f}", *goods, *times, counted.told_errors)
    console.print(table)
    lag = f", requests sent {_short(summary.lag[1])} late (p99)" if plan.is_open else ""
    console.print(f"the generator itself: {summary.cpu:.2f} cores{lag}")
    for doubt in summary.doubts:
        console.print(f"[yellow]{escape(doubt)}[/yellow]")
