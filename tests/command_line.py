"""The command line within the process of a test: for all that it refuses, where a process each takes its time."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from headrace.cli.app import main


def refusal(*arguments: object, capture: pytest.CaptureFixture[str]) -> str:
    """What `headrace` says of arguments that are a mistake, on stderr; it ends with status 2."""
    with pytest.MonkeyPatch.context() as patch, _process_kept():
        patch.setattr(sys, "argv", ["headrace", *map(str, arguments)])
        capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
    told = capture.readouterr().err
    assert ended.value.code == 2, told
    return told


@contextmanager
def _process_kept() -> Iterator[None]:
    """What a command does to its process, for which there is no other one, is undone."""
    root, own, hook = logging.getLogger(), logging.getLogger("headrace"), threading.excepthook
    handlers, levels = root.handlers[:], (root.level, own.level)
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in signals.items():
            signal.signal(number, handler)
        root.handlers[:], threading.excepthook = handlers, hook
        for logger, level in zip((root, own), levels, strict=True):
            logger.setLevel(level)
        logging.captureWarnings(False)
