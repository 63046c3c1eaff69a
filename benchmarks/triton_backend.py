"""`python -m benchmarks.triton_backend`: what it costs, and gains, to ask a Triton through Headrace.

- p50 of one client, and the throughput of 64 clients of one row each, of a model of that Triton that Headrace passes on, against
  asking the same Triton directly; one after the other, in rounds.
- A call as the backend makes it, over the native client and over the portable one, against the same call by grpc.aio in a loop
  of its own thread.
- 1 MB in and out, in shared memory and over the network of the machine.

Writes benchmarks/results/triton-backend.json, and prints what it found.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from benchmarks import load, servers
from benchmarks.harness import check_release, ratios, write
from benchmarks.models import MODELS, build_repository, build_variant
from benchmarks.servers import BUILD
from headrace.backends.triton.messages import Asking, Header
from headrace.backends.triton.native import NativeChannel
from headrace.backends.triton.portable import PortableChannel
from headrace.backends.triton.settings import Settings
from headrace.clock import SECOND, MonotonicClock
from headrace.engine.engine import Engine

PROMISED = {"us_added_at_one_client": 300.0, "throughput_at_64_clients": 1.3}
HOME = BUILD / "triton-backend"
MODEL = "tiny"
WIDE = 1 << 18
"""Numbers of a row that is 1 MB."""

WIDE_CONFIG = f"""
backend: "python"
max_batch_size: 4
input {{ name: "x" data_type: TYPE_FP32 dims: {WIDE} }}
output {{ name: "y" data_type: TYPE_FP32 dims: {WIDE} }}
"""
WIDE_MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in inputs]
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triton_backend", description="Measure the Triton backend.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one load")
    parser.add_argument("--instances", type=int, default=1, help="of the model in Headrace")
    given = parser.parse_args()
    check_release()
    far = build_variant(HOME / "far", build_repository(servers.REPOSITORY), MODELS[MODEL], "python").resolve()
    (far / "wide" / "1").mkdir(parents=True, exist_ok=True)
    (far / "wide" / "config.pbtxt").write_text(WIDE_CONFIG)
    (far / "wide" / "1" / "model.py").write_text(WIDE_MODEL)
    with servers.triton_on(far) as behind:
        here = _repository(behind.address, given.instances)
        found = {
            "promised": PROMISED,
            "calls": calls(behind.address),
            "1 MB": memory(here),
            **passing_on(behind, here, given.rounds, given.seconds),
        }
    print(json.dumps(found, indent=1))
    write("triton-backend", found)


def _repository(url: str, instances: int) -> Path:
    """The models of that Triton, passed on; `wide` with shared memory and without."""
    home = HOME / "here"
    for name, model, sharing in ((MODEL, MODEL, "auto"), ("wide-shared", "wide", "auto"), ("wide-sent", "wide", "off")):
        (home / name / "1").mkdir(parents=True, exist_ok=True)
        settings = {"url": url, "model": model, "shared_memory": sharing}
        lines = [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in settings.items()]
        lines += ['backend: "triton"', f"instance_group {{ count: {instances} kind: KIND_CPU }}"]
        (home / name / "config.pbtxt").write_text("\n".join(lines) + "\n")
    return home


def passing_on(behind: servers.Server, here: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """What Headrace adds at one client, in us, and its throughput at 64 as a multiple: median, least and most of the rounds."""
    found: dict[str, Any] = {}
    with ExitStack() as running:
        near = {name: running.enter_context(servers.headrace(here, name)) for name in ("native", "portable")}
        asked = {"triton": behind.address, **{name: server.address for name, server in near.items()}}
        p50: dict[str, list[float]] = {name: [] for name in asked}
        rates: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(rounds):
            for name, address in asked.items():
                p50[name].append(load.report_of(address, MODEL, seconds, "--concurrency=1").p50)
                rates[name].append(load.report_of(address, MODEL, seconds, "--concurrency=64").rate)
    for name in near:
        added = [a - b for a, b in zip(p50[name], p50["triton"], strict=True)]
        found[f"{name}, us added at one client"] = [round(f(added), 1) for f in (statistics.median, min, max)]
        found[f"{name}, throughput at 64 clients"] = ratios(rates[name], rates["triton"])
    return found


def calls(address: str) -> dict[str, float]:
    """Medians in us of the ways to call, by turns."""
    array = np.zeros((1, 64), np.float32)
    x = triton.InferInput("x", [1, 64], "FP32")
    x.set_data_from_numpy(array)
    settings, asking = Settings(address, MODEL), Asking(Header(MODEL, ""), {"x": array}, ["y"])
    channels = {"native": NativeChannel(settings), "portable": PortableChannel(settings, MonotonicClock())}
    with _aio_client(address) as ask:
        ways: dict[str, Callable[[], object]] = {
            name: partial(lambda channel: channel.infer(asking, MonotonicClock.now() + 10 * SECOND, ()), channel)
            for name, channel in channels.items()
        }
        ways["grpc.aio"] = lambda: ask(x)
        times: dict[str, list[int]] = {name: [] for name in ways}
        for _ in range(1000):
            for name, way in ways.items():
                began = time.perf_counter_ns()
                way()
                times[name].append(time.perf_counter_ns() - began)
    for channel in channels.values():
        channel.close()
    return {name: round(statistics.median(each[100:]) / 1000, 1) for name, each in times.items()}


@contextmanager
def _aio_client(address: str) -> Iterator[Callable[[Any], object]]:
    """Calls by grpc.aio from a thread that has no loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def opened() -> Any:
        return triton_aio.InferenceServerClient(address)

    client = asyncio.run_coroutine_threadsafe(opened(), loop).result()
    try:
        yield lambda x: asyncio.run_coroutine_threadsafe(client.infer(MODEL, [x]), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(client.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def memory(here: Path) -> dict[str, float]:
    """Medians in us of a request in this process with 1 MB in and out, by turns."""
    x = np.zeros((1, WIDE), np.float32)
    times: dict[str, list[int]] = {"wide-shared": [], "wide-sent": []}
    with Engine(here) as engine:
        for _ in range(200):
            for name, each in times.items():
                began = time.perf_counter_ns()
                engine.infer(name, {"x": x})
                each.append(time.perf_counter_ns() - began)
    return {name: round(statistics.median(each[20:]) / 1000, 1) for name, each in times.items()}


if __name__ == "__main__":
    main()
