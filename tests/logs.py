"""Logging belongs to the process, and the process of a test to all tests that come after it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logging_kept() -> Iterator[None]:
    """Handlers, their filters, and the levels of loggers are put back."""
    loggers = logging.getLogger(), logging.getLogger("headrace")
    before = [(logger, logger.level, {handler: handler.filters[:] for handler in logger.handlers}) for logger in loggers]
    try:
        yield
    finally:
        for logger, level, handlers in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers
            for handler, filters in handlers.items():
                handler.filters[:] = filters
        logging.captureWarnings(False)
