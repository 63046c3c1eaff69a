"""Load whose every request has a number, one outcome and, in the log of the backend, the runs it had."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.python.conftest import write_node

ALLOWED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""What may become of a request in a process that is killed."""
NODE = """
import os
import numpy as np
LOG = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
class Model:
    inputs = {{"n": "INT64[1]"}}
    outputs = {{"y": "INT64[2]"}}
    def run(self, tensors):
        n = tensors["n"]
        os.write(LOG, b"".join(b"%d %d\\n" % (os.getpid(), number) for number in n[:, 0].tolist()))
        return {{"y": np.concatenate([n * {factor} + 7, np.full_like(n, os.getpid())], axis=1)}}
"""
CONFIG = """
max_batch_size: 8
input { name: "n" data_type: TYPE_INT64 dims: 1 }
output { name: "y" data_type: TYPE_INT64 dims: 2 }
instance_group { count: 1 kind: KIND_CPU }
dynamic_batching {}
parameters { key: "isolation" value { string_value: "thread" } }
"""


def add_numbered(repository: Path, log: Path, factor: int = 3, version: int = 1, name: str = "numbered") -> None:
    """The model: n → [n * factor + 7, the process that ran it]; each run of a row is a line in `log`."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    write_node(folder, NODE.format(log=str(log), factor=factor))
    (folder.parent / "config.pbtxt").write_text(CONFIG)


@dataclass
class Load:
    """What has become of each request so far: its number, the code of its call, the answer."""

    outcomes: list[tuple[int, grpc.StatusCode, tuple[int, int] | None]] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)

    @property
    def processes(self) -> Counter[int]:
        """How many answers came from which process."""
        return Counter(answer[1] for _, _, answer in list(self.outcomes) if answer is not None)

    @property
    def failed(self) -> list[tuple[int, grpc.StatusCode]]:
        return [(number, code) for number, code, answer in self.outcomes if answer is None]

    def check(self, log: Path, factors: tuple[int, ...] = (3,)) -> None:
        """One outcome each, right answers, at most one run, and one run of each that was answered, by whom it says."""
        numbers = [number for number, _, _ in self.outcomes]
        assert sorted(numbers) == list(range(len(numbers)))
        runs: dict[int, list[int]] = {}
        for line in log.read_text().splitlines():
            process, number = map(int, line.split())
            runs.setdefault(number, []).append(process)
        assert {number: ran for number, ran in runs.items() if len(ran) > 1} == {}
        for number, _, answer in self.outcomes:
            if answer is not None:
                assert answer[0] in [number * factor + 7 for factor in factors]
                assert runs[number] == [answer[1]]


@contextmanager
def loaded(address: str, clients: int = 8, timeout: float = 20.0, model: str = "numbered") -> Iterator[Load]:
    """Ask all the time, on one channel and without a second try, until the block ends; then wait for what is under way."""
    load, stop, numbers = Load(), threading.Event(), itertools.count()
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer

        def ask() -> None:
            while not stop.is_set():
                number = next(numbers)
                request = pb.ModelInferRequest(model_name=model, raw_input_contents=[np.int64(number).tobytes()])
                request.inputs.add(name="n", datatype="INT64", shape=[1, 1])
                try:
                    answer = infer(request, timeout=timeout)
                except grpc.RpcError as error:
                    load.errors.append((number, error.details()))
                    load.outcomes.append((number, error.code(), None))
                else:
                    value, process = np.frombuffer(answer.raw_output_contents[0], np.int64).tolist()
                    load.outcomes.append((number, grpc.StatusCode.OK, (value, process)))

        threads = [threading.Thread(target=ask) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield load
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def many(load: Load, more: int) -> Callable[[], bool]:
    """Whether there have been so many outcomes more than now."""
    goal = len(load.outcomes) + more
    return lambda: len(load.outcomes) >= goal
