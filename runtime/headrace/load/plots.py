"""Plots as SVG. The only place that imports matplotlib, which the extra `bench` brings."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.errors import InvalidLoad
from headrace.files import check_writable


def check_plots(option: str, file: Path) -> None:
    """Whether the plots that `option` asks for can be made here, and written to `file`: before the work, not after it.

    Raises:
        InvalidLoad: they cannot; the message says what to install, or what is wrong with the file.
    """
    try:
        check_writable(file)
    except OSError as error:
        raise InvalidLoad(f"{file} cannot be written: {error.strerror}") from None
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
