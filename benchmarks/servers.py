"""Servers as processes: started, asked, charged for their CPU time, stopped."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import tritonclient.grpc as triton

from benchmarks.models import build_triton_repository
from tools import triton_server
from tools.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "benchmarks"
REPOSITORY = BUILD / "repository"
_PATIENCE = 60.0


class Server:
    """A process group that serves gRPC.

    Args:
        name: for messages.
        command: what to start.
        address: where it listens; None: it prints `ready … grpc=HOST:PORT …`.
        health: a URL that answers 200 when it is ready; with `address` only.
        environment: instead of ours.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        address: str | None = None,
        health: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self._command, self._environment = name, list(command), environment
        self.address, self._health = address or "", health
        self._log = BUILD / f"{name}.log"
        self.started_in = 0.0
        """Seconds from the start of the process until it was ready."""

    def __enter__(self) -> Server:
        BUILD.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                stdout=log if self._health else subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
                process_group=0,
            )
        try:
            self._wait_ready()
        except BaseException:
            self._kill()
            raise
        self.started_in = time.monotonic() - began
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._kill()

    def cpu_seconds(self, program: str = "") -> float:
        """User and system time of the process and of its children, so far; or of those of them that run this program."""
        ticks = 0.0
        for pid in _family(self._process.pid):
            head, _, told = _told(f"/proc/{pid}/stat").rpartition(")")
            if (fields := told.split()) and program in ("", head.partition("(")[2]):
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Resident memory of the process and of its children; what they share counts in parts, once in all (PSS)."""
        return resident_bytes(_family(self._process.pid))

    def signal(self, number: int) -> None:
        """Send a signal to the process and its children."""
        os.killpg(self._process.pid, number)

    def end(self) -> None:
        """Have it end by itself: what it has started elsewhere ends with it."""
        self._process.terminate()
        self._process.wait(_PATIENCE)

    def counts(self, model: str) -> tuple[int, int]:
        """Requests answered, batches run."""
        with triton.InferenceServerClient(self.address) as client:
            told = client.get_inference_statistics(model)
        assert told is not None
        return told.model_stats[0].inference_stats.success.count, told.model_stats[0].execution_count

    def _wait_ready(self) -> None:
        if self._health is None:
            assert self._process.stdout is not None
            found = re.search(r"grpc=(\S+)", line := self._process.stdout.readline())
            if found is None:
                raise RuntimeError(f"{self.name} did not come up: {line!r} from {' '.join(self._command)}; see {self._log}")
            self.address = found[1]
            return
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until and self._process.poll() is None:
            try:
                with urllib.request.urlopen(self._health, timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not become ready: {' '.join(self._command)}; see {self._log}")

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


Start = Callable[[], Server]


def _family(pid: int) -> list[int]:
    found = [pid]
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in _told(task / "children").split():
                found += _family(int(child))
    return found


def resident_bytes(pids: Iterable[int]) -> int:
    """Resident memory of processes; what they share counts in parts, once in all (PSS)."""
    rollups = (_told(f"/proc/{pid}/smaps_rollup") for pid in pids)
    return sum(int(kb) << 10 for rollup in rollups for kb in re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE))


def _told(file: Path | str) -> str:
    """What is in a file of procfs; nothing if its process, or thread, has ended meanwhile."""
    try:
        return Path(file).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def headrace(
    repository: Path, transport: str, *, python: str = sys.executable, environment: Mapping[str, str] | None = None
) -> Server:
    """`headrace serve` on one transport, with more of an environment."""
    command = [python, "-m", "headrace", "serve", f"--repository={repository}", f"--transport={transport}"]
    command += ["--grpc=127.0.0.1:0", "--http=none", "--metrics=none"]
    return Server(f"headrace-{transport}", command, environment={**os.environ, **(environment or {})})


def reference(repository: Path, model: str) -> Server:
    """The bare grpc.aio front."""
    return Server("grpc.aio", [sys.executable, "-m", "benchmarks.reference_aio", model, str(repository)])


def triton_python(repository: Path) -> Server:
    """A real Triton whose Python backend runs onnxruntime on our files; not Triton's own ONNX Runtime backend."""
    return triton_on(build_triton_repository(BUILD / "triton-repository", repository))


def triton_on(repository: Path) -> Server:
    """A real Triton on a repository of its own."""
    grpc_port, http_port = free_port(), free_port()
    start = triton_server.start(repository, grpc_port, http_port)
    health = f"http://127.0.0.1:{http_port}/v2/health/ready"
    return Server("triton-python", start.command, f"127.0.0.1:{grpc_port}", health, start.environment)
