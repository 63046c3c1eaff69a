"""A real Triton on loopback, and the models that it runs: each for one thing that has to arrive there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import dedent
from types import TracebackType
from typing import IO, Any

import tritonclient.grpc as triton

from tools import triton_server
from tools.ports import free_port

PATIENCE = 60.0

_MODEL = """
import json, os
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.directory = args["model_repository"]
        self.version = args["model_version"]

    def note(self, line):
        with open(os.path.join(self.directory, "runs"), "a") as file:
            file.write(line + "\\n")

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def of(self, request, name="x"):
        return pb_utils.get_input_tensor_by_name(request, name).as_numpy()

    def give(self, **outputs):
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])

    def answer(self, request):
{body}
"""
"""A model whose `answer` is `body`; what it notes is in `Triton.runs`."""

DOUBLES = """
max_batch_size: 16
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 4 }
"""

MODELS: dict[str, tuple[str, str]] = {
    # Every row that ever came, by its first number.
    "doubles": (
        DOUBLES,
        """
        x = self.of(request)
        self.note(json.dumps([float(row[0]) for row in x]))
        return self.give(y=x * 2)
        """,
    ),
    # What came along: the timeout in us, and the parameters, to which headers belong.
    "tells": (
        """
        max_batch_size: 16
        input { name: "x" data_type: TYPE_FP32 dims: 1 }
        output { name: "timeout" data_type: TYPE_INT64 dims: 1 }
        output { name: "told" data_type: TYPE_STRING dims: 1 }
        """,
        """
        rows = len(self.of(request))
        self.note(str(rows))
        told = json.dumps([request.request_id(), json.loads(request.parameters()), rows], sort_keys=True)
        return self.give(
            timeout=np.full((rows, 1), request.timeout(), np.int64), told=np.array([[told.encode()]] * rows, np.object_)
        )
        """,
    ),
    # Large enough for shared memory; `open` has a size that nobody knows beforehand.
    "wide": (
        """
        max_batch_size: 4
        input { name: "x" data_type: TYPE_FP32 dims: 65536 }
        output { name: "y" data_type: TYPE_FP32 dims: 65536 }
        output { name: "open" data_type: TYPE_FP32 dims: -1 }
        """,
        """
        x = self.of(request)
        return self.give(y=x + 1, open=x[:, ::2].copy())
        """,
    ),
    # Answers once there is a file `let` beside what it notes.
    "held": (
        """
        max_batch_size: 4
        input { name: "x" data_type: TYPE_FP32 dims: 65536 }
        output { name: "y" data_type: TYPE_FP32 dims: 65536 }
        """,
        """
        import time
        x = self.of(request)
        if x[0, 0]:  # else it is warmed up
            self.note("held")
        while x[0, 0] and not os.path.exists(os.path.join(self.directory, "let")):
            time.sleep(0.01)
        return self.give(y=x + 1)
        """,
    ),
    "text": (
        """
        max_batch_size: 8
        input { name: "x" data_type: TYPE_STRING dims: [ -1 ] }
        output { name: "y" data_type: TYPE_STRING dims: [ -1 ] }
        """,
        """
        x = self.of(request)
        y = np.array([value.upper() for value in x.reshape(-1)], np.object_).reshape(x.shape)
        return self.give(y=y)
        """,
    ),
    "kinds": (
        """
        max_batch_size: 8
        input { name: "bool" data_type: TYPE_BOOL dims: [ 2 ] }
        input { name: "fp16" data_type: TYPE_FP16 dims: [ -1 ] }
        input { name: "int64" data_type: TYPE_INT64 dims: [ 1, 2 ] }
        input { name: "uint8" data_type: TYPE_UINT8 dims: [ -1 ] }
        output { name: "bool_" data_type: TYPE_BOOL dims: [ 2 ] }
        output { name: "fp16_" data_type: TYPE_FP16 dims: [ -1 ] }
        output { name: "int64_" data_type: TYPE_INT64 dims: [ 1, 2 ] }
        output { name: "uint8_" data_type: TYPE_UINT8 dims: [ -1 ] }
        """,
        """
        return self.give(**{name + "_": self.of(request, name) for name in ("bool", "fp16", "int64", "uint8")})
        """,
    ),
    "alone": (
        """
        input { name: "x" data_type: TYPE_FP32 dims: [ -1, 2 ] }
        output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }
        """,
        """
        return self.give(y=self.of(request).sum(axis=0))
        """,
    ),
    # Fails with the code and the words that it is sent.
    "fails": (
        """
        max_batch_size: 4
        input { name: "code" data_type: TYPE_STRING dims: 1 }
        output { name: "y" data_type: TYPE_FP32 dims: 1 }
        """,
        """
        code = self.of(request, "code")[0, 0].decode()
        if not code:
            return self.give(y=np.zeros((len(self.of(request, "code")), 1), np.float32))
        error = pb_utils.TritonError("it is " + code, getattr(pb_utils.TritonError, code))
        return pb_utils.InferenceResponse(error=error)
        """,
    ),
    "decoupled": (
        """
        input { name: "x" data_type: TYPE_FP32 dims: 1 }
        output { name: "y" data_type: TYPE_FP32 dims: 1 }
        model_transaction_policy { decoupled: true }
        """,
        "return None",
    ),
    "sequential": (
        """
        max_batch_size: 1
        input { name: "x" data_type: TYPE_FP32 dims: 1 }
        output { name: "y" data_type: TYPE_FP32 dims: 1 }
        sequence_batching { }
        """,
        "return self.give(y=self.of(request))",
    ),
}


def write_model(repository: Path, name: str, config: str, body: str, version: int = 1) -> None:
    """Add a model of Triton's Python backend."""
    directory = repository / name
    (directory / str(version)).mkdir(parents=True, exist_ok=True)
    (directory / "config.pbtxt").write_text(f'backend: "python"\n{dedent(config)}')
    lines = dedent(body).strip("\n").split("\n")
    (directory / str(version) / "model.py").write_text(_MODEL.format(body="\n".join(f"        {line}" for line in lines)))


class Triton:
    """A Triton that can be killed, and brought back where it was; `options` are more of its own."""

    def __init__(self, repository: Path, log: Path, *options: str) -> None:
        self.repository, self._log, self._options = repository, log, options
        self.port, self._http = free_port(), free_port()
        self.url = f"127.0.0.1:{self.port}"
        # The regions of its own models stay in /dev/shm when it is killed.
        self._prefix = f"headrace_test_{uuid.uuid4().hex[:8]}"
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded: set[str] = set()

    def start(self, *models: str) -> None:
        """With `doubles`, and these; others are loaded when they are asked for."""
        self.kill()  # what is left of one that has crashed
        self._loaded = {"doubles", *models}
        start = triton_server.start(self.repository, self.port, self._http)
        options = [
            "--grpc-header-forward-pattern=^trace(parent|state)$",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in sorted(self._loaded)),
            "--exit-on-error=false",
            "--disable-auto-complete-config",  # which takes two seconds a model; their configurations are complete
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            "--backend-config=python,shm-default-byte-size=1048576",
            *self._options,
        ]
        self._process = subprocess.Popen(
            [*start.command, *options],
            env=start.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._told = threading.Event()
        self._reading = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reading.start()
        assert self._told.wait(PATIENCE), "Triton did not start"
        assert self._process.poll() is None, f"Triton ended: {self._log.read_text()[-3000:]}"

    def _read(self, output: IO[bytes]) -> None:
        """Keep what it says; the last thing it says when it has started is that it listens."""
        with output, self._log.open("ab", buffering=0) as log:
            for line in output:
                log.write(line)
                if b"Started HTTPService" in line:
                    self._told.set()
        self._told.set()

    def load(self, model: str) -> None:
        """Let it load a model, unless it has."""
        if model in MODELS and model not in self._loaded:
            self._loaded.add(model)
            with self.client() as client:
                client.load_model(model)

    def kill(self) -> None:
        """End it as if it had crashed, with the processes of its models; and clear away what is left of one that has."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # it has crashed, and the processes of its models are gone, too
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reading.join()
        self._process = None
        for left in Path("/dev/shm").glob(f"{self._prefix}*"):
            left.unlink()

    def stop_answering(self) -> None:
        """It accepts, and never answers."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def answer_again(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        """Whether it is there. This version crashes, rarely, where clients give up: then it can be started again."""
        return self._process is not None and self._process.poll() is None

    def runs(self, model: str) -> list[str]:
        """What the model has noted."""
        file = self.repository / model / "runs"
        return file.read_text().splitlines() if file.exists() else []

    def rows(self, model: str = "doubles") -> list[float]:
        """The first number of every row that `doubles` has run."""
        return [first for line in self.runs(model) for first in json.loads(line)]

    @contextmanager
    def holding(self) -> Iterator[Callable[[], None]]:
        """Requests of `held` are not answered before what this gives is called, or it is left."""
        let = self.repository / "held" / "let"
        let.unlink(missing_ok=True)
        try:
            yield let.touch
        finally:
            let.touch()

    def forget_runs(self) -> None:
        for file in self.repository.glob("*/runs"):
            file.unlink()

    def client(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self.url)

    def regions(self) -> list[str]:
        """The shared memory that it has mapped for others."""
        with self.client() as client:
            told: Any = client.get_system_shared_memory_status()
        return sorted(told.regions)

    def __enter__(self) -> Triton:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    for model, (config, body) in MODELS.items():
        write_model(directory, model, config, body)
    with Triton(directory, directory.parent / "log") as server:
        print(server.url, flush=True)
        sys.stdin.read()
