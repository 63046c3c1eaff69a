"""`python -m benchmarks.replicas REPOSITORY COUNT`: so many servers behind a balancer, as plain processes, until killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from headrace.cluster.directory import FileDirectory


def main() -> None:
    """Start them, print where they are reached."""
    repository, count = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="headrace-replicas-") as directory:
        quiet = ("--http=none", "--metrics=none", "--log-level=warning")
        serve = ("serve", f"--repository={repository}", f"--directory={directory}", "--grpc=127.0.0.1:0", *quiet)
        replicas = [start(*serve) for _ in range(count)]
        for replica in replicas:
            address(replica)
        balancer = start("balance", f"--directory={directory}", "--grpc=127.0.0.1:0")
        reached = address(balancer)
        known = FileDirectory(Path(directory))
        while any(len(each.serving) < count for each in known.view().balancers.values()):
            time.sleep(0.01)
        print(f"ready grpc={reached}", flush=True)
        signal.pause()


def start(*arguments: str) -> subprocess.Popen[str]:
    """A `headrace` process."""
    return subprocess.Popen([sys.executable, "-m", "headrace", *arguments], stdout=subprocess.PIPE, text=True)


def address(process: subprocess.Popen[str]) -> str:
    """Where it listens, once it is ready."""
    assert process.stdout is not None
    return next(word for word in process.stdout.readline().split() if word.startswith("grpc=")).removeprefix("grpc=")


if __name__ == "__main__":
    main()
