"""A `headrace serve` of our own, as a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType


class ServerFailed(Exception):
    """The server did not come up, or did not go down as it should."""


class Server:
    """Starts on entering, is stopped by SIGTERM on leaving.

    Its logs go to `log`; `grpc` is where clients find it, `addresses` all of where it listens.
    """

    def __init__(self, repository: Path, log: Path) -> None:
        self._repository = repository
        self.log = log
        self.grpc = self.addresses = ""
        self.ready_line = ""

    def __enter__(self) -> Server:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "headrace", "serve", f"--repository={self._repository}"]
        command += ["--grpc=127.0.0.1:0", "--http=127.0.0.1:0", "--metrics=127.0.0.1:0"]
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C is for the demo, which then stops the server in order.
            self._process = subprocess.Popen(
                [*command, "--drain-grace=0"], stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self._process.stdout is not None
        overdue = threading.Timer(60, self._process.kill)
        overdue.start()
        self.ready_line = self._process.stdout.readline().strip()
        overdue.cancel()
        found = re.match(r"ready (grpc=(\S+) http=\S+ metrics=\S+) models=(\d+)/\3 ", self.ready_line)
        if found is None:
            self._process.terminate()
            self._process.communicate()
            raise ServerFailed(f"the server did not come up with its models: {self.ready_line or 'no ready line'}")
        self.addresses, self.grpc = found[1].replace("=", " ").replace(" h", "   h").replace(" m", "   m"), found[2]
        return self

    def wait(self) -> int:
        """Wait for the server to end by itself; its exit status."""
        return self._process.wait()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGTERM)
        try:
            _, status = self._process.communicate(timeout=60), self._process.returncode
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            status = self._process.returncode
        if status != 0 and kind is None:
            raise ServerFailed(f"the server was stopped and exited with status {status} instead of 0")
