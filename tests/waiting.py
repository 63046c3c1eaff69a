"""Waiting for what has no event to wait for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Give way to the other threads until something is so; for what has no event to wait for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        os.sched_yield()
