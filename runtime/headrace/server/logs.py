"""Logs go to stderr: text for a person at a terminal, one JSON object a line for everything else."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Literal

LogFormat = Literal["auto", "text", "json"]


def configure_logs(level: str, form: LogFormat) -> None:
    """Send everything that is logged in this process to stderr; `level` is `debug`, `info`, `warning` or `error`."""
    logging.basicConfig(level=level.upper(), handlers=[_handler(form)], force=True)
    logging.captureWarnings(True)
    threading.excepthook = _log_thread_failure


class TextFormatter(logging.Formatter):
    """A line for people; what a record carries besides its message follows as `key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        own = {key: value for key, value in vars(record).items() if key not in _PLAIN and not key.startswith("_")}  # Ray's does
        return super().format(record) + "".join(f" {key}={value}" for key, value in own.items() if value not in ("", ()))


_PLAIN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
"""What every record has."""


def _handler(form: LogFormat) -> logging.Handler:
    terminal = sys.stderr.isatty()
    if form == "json" or (form == "auto" and not terminal):
        from pythonjsonlogger.json import JsonFormatter

        handler = logging.StreamHandler()
        renamed = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=renamed))
        return handler
    if terminal:
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(TextFormatter("%(message)s"))
        return handler
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _log_thread_failure(failure: threading.ExceptHookArgs) -> None:
    name = failure.thread.name if failure.thread else "a thread"
    if failure.exc_value is not None:
        logging.getLogger("headrace").critical("%s died", name, exc_info=failure.exc_value)
