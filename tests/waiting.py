"""Waiting for what has no event to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

_STEP_SECONDS = 0.001
"""Between two looks. Who looks without a break takes a core from what it waits for."""


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Give way to other threads and processes until something is so; for what has no event to wait for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(_STEP_SECONDS)
