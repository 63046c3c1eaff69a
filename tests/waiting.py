"""Waiting for what has no event to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

_NAP_SECONDS = 0.002


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Look again and again until something is so; for what has no event to wait for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(_NAP_SECONDS)  # whom we wait for may need this core
