"""`headrace budget`: the error budgets of a running server, for people who ask."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from headrace.budgets.burn import duration_text
from headrace.budgets.offenders import offenders_of
from headrace.budgets.outside import FAR, FAR_WAY, OUTSIDE
from headrace.budgets.report import objective_of, read_report
from headrace.cli.observe import server_of
from headrace.clock import SECOND
from headrace.errors import InvalidLedger, InvalidObjective
from headrace.ledger.collect import Collector
from headrace.ledger.report import read_outside

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headrace.ledger.home import Neighbour

_STALE_NS = 5 * SECOND
_SHOWN = 5
"""Offenders in the table; JSON has all of them."""
_BAR = 24


def show_budgets(of: str | None, *, watch: bool, json: bool) -> None:
    """Print the budgets of a server, once or every second until it ends.

    Raises:
        InvalidLedger: there is no such server.
        InvalidObjective: it has no objectives.
    """
    server = server_of(of)
    if not server.is_alive:
        raise InvalidLedger(f"the server of {server.path} has ended")
    show: Callable[[dict[str, Any]], None] = _print_json if json else _print
    if watch and not json and sys.stdout.isatty():
        _watch(server)
        return
    for told in _looks(server) if watch else (_look(server),):
        show(told)


def _looks(server: Neighbour) -> Iterator[dict[str, Any]]:
    """What there is to see, once a second, until the server ends."""
    while server.is_alive:
        try:
            report = _look(server)
        except InvalidObjective:
            if server.is_alive:
                raise
            return  # it has ended meanwhile
        yield report
        time.sleep(1)


def _look(server: Neighbour) -> dict[str, Any]:
    """The server's report, what others told of its latest requests, and whose of them were bad."""
    report = read_report(server.path)
    late = time.monotonic_ns() - report["at_ns"]
    if late > _STALE_NS:
        print(f"headrace: the server said this {late / SECOND:.0f} s ago, and nothing since", file=sys.stderr)
    chunks, _ = Collector(server).take()
    names, outside = server.learn(), read_outside(server.path).objectives
    for told in report["objectives"]:
        if told["name"] in outside:
            told["outside"] = outside[told["name"]]
        told["offenders"] = [asdict(each) for each in offenders_of(*objective_of(told), chunks, names)]
    return report


def _print_json(report: Mapping[str, Any]) -> None:
    print(jsonlib.dumps(report), flush=True)


def _print(report: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    with console.capture() as capture:
        console.print(_page(report))
    print("\n".join(line.rstrip() for line in capture.get().splitlines()), flush=True)


def _watch(server: Neighbour) -> None:
    from rich.live import Live

    with Live(screen=True, auto_refresh=False) as live:
        for report in _looks(server):
            live.update(_page(report), refresh=True)


def _page(report: Mapping[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts = [part for told in report["objectives"] for part in (*_lines(told), "")]
    return Group(*(part if isinstance(part, Text) else Text(part) for part in parts[:-1]))


def _lines(told: Mapping[str, Any]) -> Iterator[Any]:
    """One objective."""
    from rich.text import Text

    yield Text.assemble((told["name"], "bold"), f"  {told['promise']}, over {_duration(told['window_s'])}")
    left = told["left"]
    colour = "red" if left <= 0 else "yellow" if left < 0.5 else "green"
    yield Text.assemble(
        "  budget     ", (_bar(left), colour), f" {left:.1%} left, {_lasting(told)}; {_count(told['bad'], told['requests'])}"
    )
    rates = "  ".join(
        f"{window} {rate:.3g}" for window, rate in {_window(name): rate for name, rate in told["burn"].items()}.items()
    )
    firing = ", ".join(dict.fromkeys(pair["severity"] for pair in told["firing"]))
    yield Text.assemble("  burn rate  ", rates, (f"  alert: {firing}" if firing else "", "red"))
    spent = told["spent"]["hour"]
    yield f"  spent at   (burn rate {spent['burn']:.3g} over {_duration(spent['window_s'])})"
    for stage, rate in sorted(spent["charges"].items(), key=lambda pair: -pair[1]):
        may = told["stages_ms"].get(stage)
        usually = "" if may is None or may["usual"] is None else f", usually {may['usual']:.3g} ms"
        budget = "" if may is None else f"  may take {may['budget']:.3g} ms{usually}"
        if rate > 0 or may is not None:
            share = rate / spent["burn"] if spent["burn"] else 0.0
            yield Text.assemble(f"    {stage:<8} ", (_bar(share), "cyan"), f" {rate:>7.3g} {share:>4.0%}{budget}")
    for reason, words in (
        ("ahead", "waiting for batches ahead"),
        ("window", "held for company"),
        ("padding", "padded to the longest"),
    ):
        if spent["externalities"][reason] > 0:
            yield f"    of it {words}: {spent['externalities'][reason]:.3g}"
    yield from _outside(told.get("outside", {}))
    yield from _offenders(told["offenders"])


def _outside(outside: Mapping[str, Any]) -> Iterator[Any]:
    """What others told: of the time around ours, and of that at a Triton."""
    from rich.text import Text

    if clients := outside.get("clients"):
        yield f"  outside    (of {clients['requests']} of the latest requests; {clients['late']} were late for their clients)"
    for name in OUTSIDE:
        if name in outside:
            told = outside[name]
            charged = f", {clients['charged'][name]:.3g} of those late" if clients and clients["late"] else ""
            usually = f"usually {told['usual_ms']:.3g} ms, at most {told['long_ms']:.3g} ms for 95%{charged}"
            yield Text.assemble(f"    {name:<8} ", (_bar(told["share"]), "cyan"), f" {'':>7} {told['share']:>4.0%}  {usually}")
    if FAR_WAY in outside:
        parts = (name for name in (*FAR, FAR_WAY) if name in outside)
        usual = ", ".join(f"{name.removeprefix('far_')} {outside[name]['usual_ms']:.3g} ms" for name in parts)
        yield f"  far away   (of {outside[FAR_WAY]['requests']} executions at a Triton) usually {usual}"


def _offenders(offenders: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not offenders:
        return
    yield "  of whom    (of the latest requests)"
    for each in offenders[:_SHOWN]:
        spoilt = f", spoilt {each['spoilt']:.3g} of others" if each["spoilt"] else ""
        yield f"    {each['client'] or '(unknown)':<16}  {each['bad']} of {each['requests']} were bad{spoilt}"


def _lasting(told: Mapping[str, Any]) -> str:
    seconds = told["exhausted_in_s"]
    if seconds is None:
        return "nothing is being spent"
    return f"exhausted in {_duration(max(1, round(seconds)))} at this rate" if seconds > 0 else "exhausted"


def _count(bad: float, requests: float) -> str:
    return f"{bad:.0f} of {requests:.0f} requests were bad"


def _window(name: str) -> str:
    return {"fast": "5s", "slow": "30s"}.get(name, name)


def _duration(seconds: float) -> str:
    """To two units: `3d4h`."""
    for unit in (86400, 3600, 60, 1):
        if seconds >= unit:
            finest = {86400: 3600, 3600: 60}.get(unit, 1)
            return duration_text(round(seconds / finest) * finest * SECOND)
    return duration_text(round(seconds * SECOND))


def _bar(share: float) -> str:
    full = round(min(max(share, 0.0), 1.0) * _BAR)
    return "█" * full + "░" * (_BAR - full)
