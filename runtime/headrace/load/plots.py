"""Plots as SVG. The only place that imports matplotlib, which the extra `bench` brings."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from headrace.errors import InvalidLoad


def check_plots(option: str) -> None:
    """Whether the plots that `option` asks for can be made here.

    Raises:
        InvalidLoad: they cannot; the message says what to install.
    """
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ModuleNotFoundError:
        raise InvalidLoad(f"{option} needs matplotlib: pip install 'headrace[bench]'") from None


def svg(draw: Callable[[Any], None]) -> str:
    """A figure as an element for a page; `draw` gets its axes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    draw(figure.add_subplot())
    written = io.StringIO()
    FigureCanvasSVG(figure).print_svg(written)
    return written.getvalue()[written.getvalue().index("<svg") :]
