"""Servers as processes: started, asked, charged for their CPU time, stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import tritonclient.grpc as triton

ROOT = Path(__file__).resolve().parent.parent


class Server:
    """A process that prints `ready … grpc=HOST:PORT …` when it is up."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name, self._command = name, list(command)

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        found = re.search(r"grpc=(\S+)", line := self._process.stdout.readline())
        if found is None:
            self._process.kill()
            raise RuntimeError(f"{self.name} did not come up: {line!r} from {' '.join(self._command)}")
        self.address = found[1]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def cpu_seconds(self) -> float:
        """User and system time of the process and of its children, so far."""
        ticks = 0.0
        for pid in _family(self._process.pid):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def counts(self, model: str) -> tuple[int, int]:
        """Requests answered, batches run."""
        with triton.InferenceServerClient(self.address) as client:
            told = client.get_inference_statistics(model)
        assert told is not None
        return told.model_stats[0].inference_stats.success.count, told.model_stats[0].execution_count


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _family(int(child))
    return found


def headrace(repository: Path, transport: str) -> Server:
    """`headrace serve` on one transport."""
    command = [sys.executable, "-m", "headrace", "serve", f"--repository={repository}", f"--transport={transport}"]
    return Server(f"headrace-{transport}", [*command, "--grpc=127.0.0.1:0", "--http=none", "--metrics=none"])


def reference(repository: Path, model: str) -> Server:
    """The bare grpc.aio front."""
    return Server("grpc.aio", [sys.executable, "-m", "benchmarks.reference_aio", model, str(repository)])
