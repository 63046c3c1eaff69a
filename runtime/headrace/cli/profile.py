"""`headrace models --profile`: how long each model runs here, at which batch it does most, and how it is best called."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.clock import MILLISECOND
from headrace.engine.profile import Point, Profile
from headrace.errors import InvalidRepository
from headrace.files import replace_file

if TYPE_CHECKING:
    from rich.console import Console

    from headrace.engine.engine import Engine, ModelStatus

_LOOK_NS = 100 * MILLISECOND
_BAR = 32


@dataclass(frozen=True, slots=True)
class Measured:
    """A version, and its profile or why it has none."""

    model: str
    version: int
    digest: str
    profile: Profile | None
    why: str

    @property
    def name(self) -> str:
        """Model and version."""
        return f"{self.model} {self.version}"


def measure(engine: Engine) -> list[Measured]:
    """Wait until everything that runs is measured, telling a person how far it is."""
    assert engine.probe is not None
    with _told() as tell:
        while not engine.probe.wait(engine.clock.now() + _LOOK_NS):
            tell(engine.probe.doing)
    found = [
        Measured(one.opened.spec.name, one.opened.spec.version, one.opened.spec.digest, one.profile, one.unprofiled)
        for one in engine.catalog.running()
    ]
    return sorted(found, key=lambda one: (one.model, one.version))


@contextmanager
def _told() -> Iterator[Any]:
    """What goes on, in a line on stderr that disappears; nothing where nobody looks."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("loaded") as status:
        yield lambda doing: status.update(f"measuring {doing}")


def print_profiles(console: Console, measured: Sequence[Measured], broken: Sequence[ModelStatus]) -> None:
    """A table for each version, and what follows from it."""
    from rich.markup import escape

    for one in measured:
        if one.profile is None:
            console.print(f"[bold]{escape(one.name)}[/bold] has no profile: {escape(one.why)}\n", soft_wrap=True)
            continue
        console.print(f"[bold]{escape(one.name)}[/bold] {one.digest[:12]}")
        _print_table(console, one.profile)
        if one.profile.calls is not None:
            console.print(_told_calls(one.profile))
        console.print()
    for status in broken:
        reason = " ".join(status.reason.split())
        console.print(f"[red]{escape(status.model)} is broken:[/red] {escape(reason)}", soft_wrap=True)


def _print_table(console: Console, profile: Profile) -> None:
    from rich.table import Table

    has_lengths = profile.lengths != (0,)
    table = Table(box=None)
    for heading in (*(["length"] if has_lengths else []), "rows", "median ms", "p95 ms", "rows/s"):
        table.add_column(heading, justify="right")
    table.add_column("")
    most = max(point.rate for point in profile.points)
    for length in profile.lengths:
        best = profile.best(length)
        for point in profile.at(length):
            is_best = point is best
            bar = "━" * max(1, round(_BAR * point.rate / most)) + (" best" if is_best else "")
            table.add_row(*([str(length)] if has_lengths else []), *_cells(point), bar, style="green" if is_best else None)
    console.print(table)


def _cells(point: Point) -> list[str]:
    return [str(point.rows), f"{point.median / MILLISECOND:.3f}", f"{point.p95 / MILLISECOND:.3f}", f"{point.rate:,.0f}"]


def _told_calls(profile: Profile) -> str:
    calls = profile.calls
    assert calls is not None
    return (
        f"{calls.count} calls on 1 thread each: {calls.gain:.1f}x the rows/s of 1 call on {calls.count} threads "
        f"({calls.parallel:,.0f} and {calls.threads_per_call:,.0f}, {calls.rows} rows a call)"
    )


def print_records(measured: Sequence[Measured]) -> None:
    """The same as JSON."""
    records = [
        {
            "model": one.model,
            "version": one.version,
            "digest": one.digest,
            "profile": None if one.profile is None else one.profile.record(),
            "why": one.why,
        }
        for one in measured
    ]
    jsonlib.dump(records, sys.stdout, indent=2)
    print()


def write_svg(measured: Sequence[Measured], file: Path) -> None:
    """Plot rows/s over rows.

    Raises:
        InvalidLoad: matplotlib is missing.
        InvalidRepository: the file cannot be written.
    """
    from headrace.load.plots import svg

    def draw(axes: Any) -> None:
        for one in measured:
            for length in one.profile.lengths if one.profile is not None else ():
                assert one.profile is not None
                points = one.profile.at(length)
                label = one.name + (f", length {length}" if length else "")
                axes.plot([p.rows for p in points], [p.rate for p in points], marker="o", ms=3, lw=1.2, label=label)
        axes.set_xscale("log", base=2)
        axes.set(title="rows/s by size of batch", xlabel="rows", ylabel="rows/s", ylim=(0, None))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)

    try:
        replace_file(file, svg(draw).encode())
    except OSError as error:
        raise InvalidRepository(f"{file} cannot be written: {error.strerror}") from None
    print(f"written: {file}", file=sys.stderr)


def show_profiles(repository: Path, names: Sequence[str], *, json: bool, fresh: bool, file: Path | None) -> int:
    """Load, measure and print; the exit status, 1 when a model is broken.

    Raises:
        InvalidRepository: there is no repository at that path, no model of such a name, or the plot cannot be written.
        InvalidLoad: a plot is asked for, and matplotlib is missing.
    """
    from rich.console import Console

    from headrace.cli.models import is_broken, load_all
    from headrace.engine.profiles import Profiles

    if file is not None:
        from headrace.load.plots import check_plots

        check_plots("--svg", file)
    with load_all(repository, names, Profiles(fresh=fresh)) as engine:
        measured = measure(engine)
        broken = [status for status in engine.statuses() if is_broken(status)]
    if json:
        print_records(measured)
    else:
        print_profiles(Console(width=None if sys.stdout.isatty() else 160, highlight=False), measured, broken)
    if file is not None:
        write_svg(measured, file)
    return 1 if broken else 0
