"""`python -m benchmarks.graphs`: what graphs cost.

- A fused node: CPU time that each node of a chain adds to a batch, beyond the call of the node itself.
- `embed`, text to vectors through Headrace over gRPC – tokenizer, MiniLM in length buckets, pooling –, against a loop that was
  written by hand (`embed_loop.py`): the same steps over the same sentences, as many at a time as clients ask at once, in the same
  buckets and on as many threads of onnxruntime: one.
- A node in a process of its own: by how much a batch with 1 MB in comes later than from a thread of the server, with little
  or with 1 MB out.

Writes benchmarks/results/graphs.json, and prints what it found.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import feather

from benchmarks import load, servers
from benchmarks.harness import check_release, ratios, write
from benchmarks.sentences import sentences
from benchmarks.servers import BUILD, ROOT
from demo import embed
from headrace.backends.nodes import open_node
from headrace.engine.engine import Engine
from headrace.models.graphs import Graph
from headrace.node import Context
from headrace.request import Head, Request
from headrace.tensor import Tensor

PROMISED = {"us_a_fused_node": 15.0, "of_the_loop": 0.95, "us_of_a_process": 150.0}
HOME = BUILD / "graphs"
CHAINS = (1, 2, 4, 8)
CLIENTS = (32, 128)
SENTENCES = 1024
ONE_THREAD = 'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
NODES = """\
class Same:
    inputs = {"x": "FP32[-1]"}
    outputs = {"y": "FP32[-1]"}

    def load(self, context):
        pass

    def run(self, tensors):
        return {"y": tensors["x"]}


class First(Same):
    def run(self, tensors):
        return {"y": tensors["x"][:, :8].copy()}
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graphs", description="Measure what graphs cost.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one load")
    given = parser.parse_args()
    check_release()
    HOME.mkdir(parents=True, exist_ok=True)
    (HOME / "nodes.py").write_text(NODES)
    found: dict[str, Any] = {"promised": PROMISED, "fused": fused(), "process": process()}
    found["embed"] = embedding(given.rounds, given.seconds)
    print(json.dumps(found, indent=1))
    write("graphs", found)


def fused() -> dict[str, float]:
    """What a node adds to a batch of 8 rows, in us of CPU time, by the length of the chain; less the node called by itself."""
    graphs = [_chain(length) for length in CHAINS]
    (HOME / "empty").mkdir(exist_ok=True)
    costs: dict[str, float] = {}
    with Engine(HOME / "empty", graphs=graphs) as engine:
        sessions = {each.opened.spec.name: each.opened.sessions[0][0] for each in engine.catalog.running()}
        for graph in graphs:
            costs[graph.name] = _cpu_us(lambda session=sessions[graph.name]: session.run(_Batch()))
    bare = open_node("nodes.py:Same", Context("bare", HOME))
    alone = _cpu_us(lambda: bare.run({"x": _ROWS}))
    added = {f"chain of {length}": costs[f"chain{length}"] / length - alone for length in CHAINS}
    return {name: round(cost, 2) for name, cost in {**added, "the node by itself": alone}.items()}


def _chain(length: int) -> Graph:
    tensors = ["IN", *(f"t{place}" for place in range(1, length)), "OUT"]
    nodes = {
        f"n{place}": {"run": "nodes.py:Same", "inputs": {"x": tensors[place]}, "outputs": {"y": tensors[place + 1]}}
        for place in range(length)
    }
    ends: dict[str, Any] = {"inputs": {"IN": "FP32[64]"}, "outputs": {"OUT": "FP32[64]"}}
    return Graph.of(f"chain{length}", **ends, nodes=nodes, max_batch_size=8, directory=HOME)


_ROWS = np.zeros((8, 64), np.float32)


class _Batch:
    """Eight requests of a row each."""

    def __init__(self) -> None:
        self.rows, self.offsets = 8, [*range(9)]
        self.requests: list[Request] = []

    def tensors(self) -> dict[str, Tensor]:
        return {"IN": _ROWS}

    @property
    def heads(self) -> list[Head]:
        return []

    def wanted(self) -> tuple[str, ...]:
        return ("OUT",)

    def away(self) -> None:
        pass

    def asked(self) -> list[tuple[str, ...]]:
        return [("OUT",)] * 8


def _cpu_us(once: Callable[[], object]) -> float:
    """CPU time of a call: the median of some hundred calls each."""
    times: list[float] = []
    for _ in range(31):
        began = time.thread_time_ns()
        for _ in range(200):
            once()
        times.append((time.thread_time_ns() - began) / 200 / 1000)
    return statistics.median(times)


def process() -> dict[str, float]:
    """By how many us a batch with 1 MB in comes later out of a process than out of a thread: medians of turns that alternate."""
    rows = {"x": np.zeros((1, 1 << 18), np.float32)}
    found: dict[str, float] = {}
    for name, where in (("little out", "nodes.py:First"), ("1 MB out", "nodes.py:Same")):
        ways = {way: open_node(where, Context(way, HOME), way) for way in ("thread", "process")}
        times: dict[str, list[int]] = {way: [] for way in ways}
        for _ in range(2000):
            for way, runner in ways.items():
                began = time.perf_counter_ns()
                runner.run(rows)
                times[way].append(time.perf_counter_ns() - began)
        for runner in ways.values():
            runner.close()
        found[name] = round((statistics.median(times["process"]) - statistics.median(times["thread"])) / 1000, 1)
    return found


def embedding(rounds: int, seconds: float) -> dict[str, Any]:
    """Sentences a second over gRPC, as parts of what the loop does; median, least and most of the rounds."""
    repository = HOME / "repository"
    embed.build_repository(repository)
    config = (ROOT / "configs/models/minilm/config.pbtxt").read_text() + ONE_THREAD
    (repository / "minilm/config.pbtxt").write_text(config)
    texts = sentences(SENTENCES)
    data = HOME / "texts.arrow"
    feather.write_feather(pa.table({"text": [[text] for text in texts]}), str(data))
    rates: dict[int, dict[str, list[float]]] = {clients: {"headrace": [], "loop": []} for clients in CLIENTS}
    with servers.headrace(repository, "native") as server:
        for _ in range(rounds):
            for clients, by in rates.items():
                by["loop"].append(loop(repository, data, clients, seconds))
                report = load.report_of(server.address, "embed", seconds, f"--concurrency={clients}", f"--data={data}")
                by["headrace"].append(report.rate)
    return {f"{clients} clients, of the loop": ratios(by["headrace"], by["loop"]) for clients, by in rates.items()}


def loop(repository: Path, data: Path, window: int, seconds: float) -> float:
    """Sentences a second of the loop, in a process of its own."""
    options = [f"--repository={repository}", f"--data={data}", f"--window={window}", f"--seconds={seconds}"]
    command = [sys.executable, "-m", "benchmarks.embed_loop", *options]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
