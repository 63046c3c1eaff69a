"""The command line within the process of a test: for all that it refuses, where a process each takes its time."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from headrace.cli.app import main
from tests.logs import logging_kept


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
    hook = threading.excepthook
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with logging_kept():
            yield
    finally:
        for number, handler in signals.items():
            signal.signal(number, handler)
        threading.excepthook = hook
