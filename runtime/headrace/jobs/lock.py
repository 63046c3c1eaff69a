"""One run at a time on one output.

The lock is the system's, on an open file: it ends with its process, whatever that died of. What the file says is for people.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from headrace.errors import JobLocked

log = logging.getLogger(__name__)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock `file`, which is made where there is none.

    Raises:
        JobLocked: another run has it.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobLocked(
                f"another run works on {file.parent.parent}: {_holder(descriptor)}; wait for it, or choose another output"
            ) from None
        if os.fstat(descriptor).st_size:
            log.warning("the last run did not come to its end: %s. Its lock is taken over", _holder(descriptor))
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(who).encode(), 0)
        try:
            yield
        finally:
            # Empty, and still there: whoever waits for a file that is removed has the lock of nothing.
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        who = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (ValueError, KeyError, TypeError):
        return "who, it does not say"
