"""Servers as processes of their own, with a model that runs when the test lets it, and what their ledger says."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from headrace.ledger.home import Neighbour, the_neighbour
from headrace.ledger.query import Desk, gather_sources
from tests.python.conftest import write_node
from tests.waiting import until

GATED = """
import fcntl, os
open({entered!r}, "a").close()
with open({gate!r}) as gate:
    fcntl.flock(gate, fcntl.LOCK_SH)
return {{"y": x}}
"""
CONFIG = """
max_batch_size: {rows}
input {{ name: "x" data_type: TYPE_FP32 dims: -1 }}
output {{ name: "y" data_type: TYPE_FP32 dims: -1 }}
instance_group {{ count: 1 kind: KIND_CPU }}
dynamic_batching {{ default_queue_policy {{ max_queue_size: {waiting} }} }}
parameters {{ key: "isolation" value {{ string_value: "thread" }} }}
"""


class Gate:
    """Runs of the model wait while it is closed."""

    def __init__(self, directory: Path) -> None:
        self._path, self._entered = directory / "gate", directory / "entered"
        self._path.touch()
        self._file = self._path.open("w")

    def add_model(self, repository: Path, rows: int = 1, waiting: int = 2) -> None:
        """The model `m`: so many rows a batch at most, and so many requests that wait."""
        (repository / "m" / "1").mkdir(parents=True)
        write_node(repository / "m" / "1", GATED.format(entered=str(self._entered), gate=str(self._path)))
        (repository / "m" / "config.pbtxt").write_text(CONFIG.format(rows=rows, waiting=waiting))

    def close(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._entered.unlink(missing_ok=True)

    def open(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def end(self) -> None:
        self._file.close()

    def wait_for_somebody(self) -> None:
        until(self._entered.exists, 30)


@dataclass
class Served:
    process: subprocess.Popen[str]
    client: triton.InferenceServerClient
    metrics: str
    http: str
    grpc: str

    @property
    def neighbour(self) -> Neighbour:
        return the_neighbour(self.process.pid)

    @property
    def side(self) -> int:
        """The process number of the side process, when it is there."""
        tally = self.neighbour.tally
        until(lambda: tally.pid > 0, 30)
        return tally.pid

    def page(self) -> str:
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=30) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        page = self.page()
        found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
        assert found is not None, f"{name} is not in\n{page}"
        return float(found[1])

    def post(self, model: str, **headers: str) -> None:
        """Ask over REST; whatever is answered."""
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}
        call = urllib.request.Request(f"http://{self.http}/v2/models/{model}/infer", json.dumps(body).encode())
        for name, value in headers.items():
            call.add_header(name.replace("_", "-"), value)
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(call, timeout=30) as answer:
            answer.read()

    def infer(self, count: int = 1, **options: Any) -> None:
        for _ in range(count):
            self.client.infer("m", [one()], **options)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        self.process.send_signal(number)
        _, told = self.process.communicate(timeout=50)
        return told


def one(name: str = "x", width: int = 1) -> triton.InferInput:
    given = triton.InferInput(name, [1, width], "FP32")
    return given.set_data_from_numpy(np.ones((1, width), np.float32))


@contextmanager
def served(repository: Path, *options: str | Path, transport: str = "auto") -> Iterator[Served]:
    command = [
        sys.executable,
        "-m",
        "headrace",
        "serve",
        "--repository",
        str(repository),
        "--grpc=127.0.0.1:0",
        "--http=127.0.0.1:0",
    ]
    command += ["--metrics=127.0.0.1:0", "--drain-grace=0", "--no-probe", f"--transport={transport}", *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("ready "), line + (process.communicate()[1])
            told = dict(part.split("=") for part in line.split()[1:])
            with triton.InferenceServerClient(told["grpc"]) as client:
                yield Served(process, client, told["metrics"], told["http"], told["grpc"])
        finally:
            process.kill()


def ask(sql: str, directory: Path | None, *servers: Neighbour) -> list[tuple[Any, ...]]:
    """Rows of the answer, from these sources."""
    answer = Desk(gather_sources(directory, servers)).ask(sql)
    return list(zip(*(column.to_pylist() for column in answer.columns), strict=True))


def counts(directory: Path | None, *servers: Neighbour) -> dict[str, int]:
    return dict(ask("SELECT outcome, count(*) FROM requests GROUP BY ALL", directory, *servers))
