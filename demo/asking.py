"""What both halves of the demo do: ask a graph as a client would, and ask the reference."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from rich.console import Console
from tritonclient.utils import InferenceServerException

from demo.repository import ROOT
from demo.server import ServerFailed

IN_FLIGHT = 8


@dataclass(frozen=True)
class Answer:
    """What came back of one request: one row of each output, after `seconds`."""

    outputs: dict[str, NDArray[Any]]
    seconds: float


def ask(address: str, graph: str, tensor: str, elements: Sequence[bytes]) -> list[Answer]:
    """One request an element, IN_FLIGHT of them at a time, as if they were separate clients."""
    with triton.InferenceServerClient(address) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:

        def one(element: bytes) -> Answer:
            given = triton.InferInput(tensor, [1, 1], "BYTES")
            given.set_data_from_numpy(np.array([[element]], np.object_))
            started = time.perf_counter()
            try:
                result = client.infer(graph, [given])
            except InferenceServerException as error:
                raise ServerFailed(f"{graph} does not answer: {error}") from None
            seconds = time.perf_counter() - started
            assert result is not None
            arrays = {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
            return Answer({name: array[0] for name, array in arrays.items() if array is not None}, seconds)

        return list(pool.map(one, elements))


def show_statistics(console: Console, address: str, graph: str) -> None:
    """Print the server's own account of it."""
    with triton.InferenceServerClient(address) as client:
        statistics = client.get_inference_statistics(graph)
        assert statistics is not None
    rows, batches = statistics.model_stats[0].inference_count, statistics.model_stats[0].execution_count
    console.print(f"{graph}: {rows} requests in {batches} executions, {rows / max(batches, 1):.1f} rows a batch on average")


def reference(graph: str, asked: list[str]) -> Any:
    """What demo/reference.py answers, in another process."""
    command = [sys.executable, "-m", "demo.reference", graph]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)
