"""Replicas that are plain processes, a balancer in front of them, and load whose every request has a number and one outcome."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from headrace.cluster.balancer import end_orphans
from headrace.cluster.directory import FileDirectory
from tests.waiting import until

PATIENCE = 30.0
OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a channel is a connection
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # So that a balancer that was killed is found again at once.
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
]

CONFIG = """
max_batch_size: 64
input {{ name: "x" data_type: TYPE_INT64 dims: -1 }}
output {{ name: "y" data_type: TYPE_INT64 dims: -1 }}
instance_group {{ count: 1 kind: KIND_CPU }}
parameters {{ key: "isolation" value {{ string_value: "thread" }} }}
{more}
"""
MODEL = """
import os, time
from pathlib import Path
import numpy as np
class Model:
    inputs = {{"x": "INT64[-1]"}}
    outputs = {{"y": "INT64[-1]"}}
    def load(self, context):
        if (Path({log!r}).parent / f"refuses-{{os.getpid()}}").exists():
            raise ValueError("this replica will not")
        self.log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    def run(self, tensors):
        x = tensors["x"]
        if x.any():  # not what warms up
            os.write(self.log, "".join(f"{{os.getpid()}} {{row[0]}}\\n" for row in x).encode())
            time.sleep({pace})
        return {{"y": x + 1}}
"""
"""Adds one, and writes down which process ran which request, by the first number of its row."""


def add_logged_model(repository: Path, name: str, log: Path, more: str = "", pace: float = 0.001) -> None:
    """`MODEL`, under a name, and its log, empty; `pace` is what a batch takes, in seconds."""
    log.touch()
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text(dedent(MODEL).format(log=str(log), pace=pace))
    (repository / name / "config.pbtxt").write_text(CONFIG.format(more=more))


def message(number: int, model: str = "m", width: int = 1, sequence: int = 0) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[np.full((1, width), number, np.int64).tobytes()])
    request.inputs.add(name="x", datatype="INT64", shape=[1, width])
    if sequence:
        request.parameters["sequence_id"].int64_param = sequence
    return request


def answer_of(response: pb.ModelInferResponse) -> int:
    """The number that was asked for: one less than each of those that came back."""
    values = np.frombuffer(response.raw_output_contents[0], np.int64)
    assert (values == values[0]).all()
    return int(values[0]) - 1


def executions(log: Path) -> dict[int, list[int]]:
    """By the number of a request, the processes that ran it."""
    found: dict[int, list[int]] = {}
    for line in log.read_text().splitlines():
        pid, number = map(int, line.split())
        found.setdefault(number, []).append(pid)
    return found


@dataclass
class Process:
    """A process of ours, and the words of its ready line."""

    process: subprocess.Popen[str]
    told: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def grpc(self) -> str:
        return self.told["grpc"]

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready "), line + self.process.communicate()[1]
        self.told = dict(part.split("=") for part in line.split()[1:])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Send it a signal, and wait for its end; what it said on stderr."""
        self.process.send_signal(number)
        _, told = self.process.communicate(timeout=50)
        return told


def run_of(address: str, pid: int) -> Path:
    """The directory of the run of a balancer that was told this address."""
    name = f"{address}.{pid}" if address.endswith(":0") else address
    return Path(os.environ["HEADRACE_RUNTIME_DIR"]) / f"headrace-balancer.{name.replace(':', '_')}"


class Cluster:
    """Processes of one directory."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path, self.repository, self.log = path, path / "repository", path / "executed"
        self.directory = FileDirectory(path / "directory")
        self._stack = stack
        self.replicas: list[Process] = []
        self._runs: set[Path] = set()
        self.log.touch()

    def start(self, *arguments: str | Path) -> Process:
        """A `headrace` process, which may not be ready yet."""
        command = [sys.executable, "-m", "headrace", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        return Process(process)

    def add_replicas(self, count: int, *options: str) -> list[Process]:
        given = ("--repository", self.repository, "--directory", self.path / "directory", "--grpc=127.0.0.1:0", "--http=none")
        more = ("--metrics=none", "--no-probe", "--drain-grace=0.1", "--model-control=explicit", *options)
        added = [self.start("serve", *given, *more) for _ in range(count)]
        for replica in added:
            replica.wait_ready()
        self.replicas += added
        return added

    def balance(self, address: str = "127.0.0.1:0") -> Process:
        balancer = self.start_balancer(address)
        balancer.wait_ready()
        until(lambda: self.serving() == set(self.directory.view().replicas), PATIENCE)
        return balancer

    def start_balancer(self, address: str) -> Process:
        """`headrace balance`, which may not come up. Its HAProxy, which outlives it when it is killed, ends with this cluster."""
        balancer = self.start("balance", "--directory", self.path / "directory", "--grpc", address, "--drain-seconds=5")
        self._runs.add(run_of(address, balancer.pid))
        return balancer

    def end_haproxies(self) -> None:
        """Of the balancers that were started here, when they are gone."""
        for run in self._runs:
            end_orphans(run, 0)

    def serving(self) -> set[str]:
        """To whom balancers send new requests."""
        return {name for balancer in self.directory.view().balancers.values() for name in balancer.serving}

    def wait_taken_in(self) -> None:
        """Until balancers have the replicas that live, and no others."""
        living = [replica for replica in self.replicas if replica.process.poll() is None]
        until(lambda: len(self.directory.view().replicas) == len(living), PATIENCE)
        until(lambda: self.serving() == set(self.directory.view().replicas), PATIENCE)

    def executions(self) -> dict[int, list[int]]:
        """See `executions`."""
        return executions(self.log)


@contextmanager
def cluster(path: Path) -> Iterator[Cluster]:
    """Nothing runs yet; whatever is started ends."""
    with ExitStack() as stack:
        started = Cluster(path, stack)
        try:
            yield started
        finally:
            stack.close()
            started.end_haproxies()


@contextmanager
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address, options=OPTIONS) as opened:
        yield opened


def stub(opened: grpc.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(opened)


_numbers = itertools.count(1)


class Load:
    """Clients that ask one request after the other, over one channel, while this is entered. No two requests have one number.

    Each takes a breath of `pause` seconds between two, for the sake of who else needs the machine.
    """

    def __init__(
        self, address: str, clients: int = 16, most: int = 1 << 30, timeout: float = PATIENCE, pause: float = 0.0
    ) -> None:
        self.outcomes: dict[int, str] = {}
        """By number: `answered`, or the name of the code."""
        self.details: Counter[str] = Counter()
        """What was said of requests that were not answered."""
        self._address, self._clients, self._most, self._timeout, self._pause = address, clients, most, timeout, pause
        self._stop = threading.Event()
        self._asked = itertools.count()

    def __enter__(self) -> Load:
        self._channel = grpc.insecure_channel(self._address, options=OPTIONS)
        self._infer = stub(self._channel).ModelInfer
        self._threads = [threading.Thread(target=self._ask) for _ in range(self._clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self.wait()
        self._channel.close()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def wait_for(self, more: int) -> None:
        """Until so many further requests were answered."""
        least = self.answered + more
        until(lambda: self.answered >= least, PATIENCE)

    @property
    def answered(self) -> int:
        return self.codes["answered"]

    @property
    def codes(self) -> Counter[str]:
        """How often each outcome there was."""
        return Counter(self.outcomes.copy().values())

    def _ask(self) -> None:
        while not self._stop.wait(self._pause) and next(self._asked) < self._most:
            number = next(_numbers)
            try:
                response = self._infer(message(number), timeout=self._timeout)
                self.outcomes[number] = "answered" if answer_of(response) == number else "wrong"
            except grpc.RpcError as error:
                self.outcomes[number] = error.code().name  # pyright: ignore[reportAttributeAccessIssue]
                self.details[error.details()] += 1  # pyright: ignore[reportAttributeAccessIssue]
