"""The page about a load: what was asked, the numbers, and four plots. One file that needs nothing else."""

from __future__ import annotations

import html
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headrace.clock import MILLISECOND, SECOND
from headrace.errors import Code, InvalidLoad
from headrace.files import replace_file
from headrace.load.analysis import Counted
from headrace.load.generator import Recording
from headrace.load.plots import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 120
_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child, td:last-child, th:last-child { text-align: left }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1em } svg { width: 100%; height: auto }
.doubt { background: #fff3d6; padding: .3em .8em }
</style>
<h1>$title</h1>
<p>$asked</p>
$doubts
<table><tr><th></th><th>answered/s</th>$good_head<th>p50 ms</th><th>p90 ms</th><th>p99 ms</th><th>p99.9 ms</th><th>max ms</th>
<th>errors</th></tr>
$rows
</table>
<p>Latencies count from the instant a request was due. The generator kept $cores cores busy$lag.</p>
<div class="plots">$plots</div>
</html>
""")


def write_report(recording: Recording, file: Path) -> None:
    """Write the page.

    Raises:
        InvalidLoad: the file cannot be written.
    """
    plan, summary = recording.plan, recording.summary
    asked = recording.told()
    if plan.objective is not None:
        asked += f"; good is what comes within {plan.objective / MILLISECOND:g} ms"
    page = _PAGE.substitute(
        title=html.escape(f"{plan.model} at {plan.target}"),
        asked=html.escape(asked + "."),
        doubts="".join(f'<p class="doubt">{html.escape(doubt)}</p>' for doubt in summary.doubts),
        good_head="" if plan.objective is None else "<th>good/s</th>",
        rows="\n".join(_row(counted) for counted in [*summary.shares, summary.total]),
        cores=f"{summary.cpu:.2f}",
        lag=f"; 1 in 100 requests was sent more than {summary.lag[1] / MILLISECOND:.2f} ms late" if plan.is_open else "",
        plots="\n".join(_plots(recording)),
    )
    try:
        replace_file(file, page.encode())
    except OSError as error:
        raise InvalidLoad(f"{file} cannot be written: {error.strerror}") from None


def _row(counted: Counted) -> str:
    times = ["–"] * 5
    if (latency := counted.latency) is not None:
        times = [f"{time / MILLISECOND:.3f}" for time in latency.shown]
    cells = [html.escape(counted.name), f"{counted.rate:,.1f}"]
    if counted.goodput is not None:
        cells.append(f"{counted.goodput:,.1f}")
    cells += [*times, counted.told_errors]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _plots(recording: Recording) -> list[str]:
    samples, objective = recording.samples, recording.plan.objective
    if not len(samples):
        return []
    begin = int(samples["due"].min())
    width = max((int(samples["due"].max()) - begin) / SECOND / _BINS, 1e-3)
    bins = ((samples["due"] - begin) / SECOND / width).astype(int)
    at = np.arange(bins.max() + 1) * width
    answered = samples["code"] == Code.OK.value
    latency = (samples["done"] - samples["due"]) / MILLISECOND

    def a_second(which: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.bincount(bins[which], minlength=len(at)) / width

    def rates(axes: Axes) -> None:
        axes.plot(at, a_second(np.ones(len(samples), bool)), label="due", color="0.6", lw=1)
        axes.plot(at, a_second(answered), label="answered", color="tab:blue", lw=1.2)
        if not answered.all():
            axes.plot(at, a_second(~answered), label="errors", color="tab:red", lw=1.2)
        axes.set(title="rate over time", xlabel="s", ylabel="requests/s", ylim=(0, None))
        axes.legend(frameon=False)

    def goodput(axes: Axes) -> None:
        good = answered & (latency <= (objective or 0) / MILLISECOND)
        total = np.maximum(a_second(np.ones(len(samples), bool)), 1e-9)
        axes.plot(at, 100 * a_second(good) / total, color="tab:green", lw=1.2)
        axes.set(title="goodput: answered within the objective", xlabel="s", ylabel="% of what was due", ylim=(0, 102))

    def cdf(axes: Axes) -> None:
        _cdf(axes, np.sort(latency[answered]), objective)

    def over_time(axes: Axes) -> None:
        _latency_over_time(axes, at, bins[answered], latency[answered])

    draws = [cdf, rates, over_time] if objective is None else [cdf, rates, goodput, over_time]
    return [svg(draw) for draw in draws]


def _cdf(axes: Axes, latency: NDArray[np.float64], objective: int | None) -> None:
    if len(latency):
        # The tail is what people look for: the axis is that of how many are slower, each place a power of ten.
        slower = 1 - np.arange(len(latency)) / len(latency)
        axes.step(latency, slower, where="post", color="tab:blue", lw=1.2)
    axes.set_yscale("log")
    axes.set_xscale("log")
    ticks = [1, 0.5, 0.1, 0.01, 0.001]
    axes.set_yticks(ticks, ["all", "p50", "p90", "p99", "p99.9"])
    axes.invert_yaxis()
    if objective is not None:
        axes.axvline(objective / MILLISECOND, color="tab:green", ls="--", lw=1, label="objective")
        axes.legend(frameon=False)
    axes.set(title="latency: how many are at least as fast", xlabel="ms")
    axes.grid(alpha=0.3)


def _latency_over_time(axes: Axes, at: NDArray[np.float64], bins: NDArray[np.int64], latency: NDArray[np.float64]) -> None:
    for quantile, color in ((0.5, "tab:blue"), (0.99, "tab:orange")):
        points = [(at[n], np.quantile(latency[bins == n], quantile)) for n in np.unique(bins)]
        if points:
            axes.plot(*zip(*points, strict=True), label=f"p{100 * quantile:g}", color=color, lw=1.2)
    axes.set(title="latency over time", xlabel="s", ylabel="ms", ylim=(0, None))
    axes.legend(frameon=False)
