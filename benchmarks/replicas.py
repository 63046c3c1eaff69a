"""`python -m benchmarks.replicas REPOSITORY COUNT`: so many servers behind a balancer, as plain processes, until SIGTERM."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from headrace.cluster.directory import FileDirectory


def main() -> None:
    """Start them, and print where they are reached."""
    repository, count = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="headrace-replicas-") as directory:
        serve = ("serve", f"--repository={repository}", "--http=none", "--metrics=none", "--log-level=warning")
        started = [start(*serve, f"--directory={directory}", "--grpc=127.0.0.1:0") for _ in range(count)]
        for replica in started:
            address(replica)
        started.append(start("balance", f"--directory={directory}", "--grpc=127.0.0.1:0"))
        reached = address(started[-1])
        known = FileDirectory(Path(directory))
        while any(len(each.serving) < count for each in known.view().balancers.values()):
            time.sleep(0.01)
        print(f"ready grpc={reached}", flush=True)
        wait_for_the_end()
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait()


def start(*arguments: str) -> subprocess.Popen[str]:
    """A `headrace` process."""
    return subprocess.Popen([sys.executable, "-m", "headrace", *arguments], stdout=subprocess.PIPE, text=True)


def address(process: subprocess.Popen[str]) -> str:
    """Where it listens, once it is ready."""
    assert process.stdout is not None
    return next(word for word in process.stdout.readline().split() if word.startswith("grpc=")).removeprefix("grpc=")


def wait_for_the_end() -> None:
    """Return when SIGTERM comes."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: told.set())
    told.wait()


if __name__ == "__main__":
    main()
