"""`python -m benchmarks.telemetry`: what the ledger's being read, the tail decision and the exporter cost.

The tiny model on the native transport. At full load, 64 clients: a server of kernels that write no record, so that there is
none to read either (`off`); one whose rings nobody can map (`alone`), one whose rings are shared (`shared`), one whose side
process decides what is kept and sends it to a receiver (`traced`). At 500 requests a second: `off` beside one that sends spans of
every request (`all`), p99. The server's CPU is that of its side process, too; the receiver's is not.

A server that serves has no such switch: the ledger is what answers statistics. So the kernels of `off` are built for this alone;
they take the instants of a request all the same, some ten readings of a clock.
Writes benchmarks/results/telemetry.json, and prints tables.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

from benchmarks import load, servers
from benchmarks.harness import Case, Report, check_release, compare, differences, ratios, show, summarise, told, write
from benchmarks.models import build_repository
from benchmarks.servers import Server, Start

MODEL, CLIENTS, RATE = "tiny", 64, 500
YARDSTICK = "off"
_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def main() -> None:
    """Measure, print, write."""
    about = "Measure what the ledger's being read, tail sampling and exporting cost."
    parser = argparse.ArgumentParser(prog="python -m benchmarks.telemetry", description=about)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--sink", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.sink:
        serve_sink()
        return
    check_release()
    repository = build_repository(servers.REPOSITORY)
    with sink() as endpoint:
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        ways: dict[str, Mapping[str, str]] = {
            YARDSTICK: {"HEADRACE_RUNTIME_DIR": "/nowhere", "PYTHONPATH": str(unrecorded())},
            "alone": {"HEADRACE_RUNTIME_DIR": "/nowhere"},
            "shared": {},
            "traced": traced,
            "all": {**traced, "OTEL_TRACES_SAMPLER": "always_on"},
        }

        def start(way: str) -> Start:
            return lambda: servers.headrace(repository, "native", environment=ways[way])

        full = {way: start(way) for way in (YARDSTICK, "alone", "shared", "traced")}
        options = {"rounds": given.rounds, "seconds": given.seconds, "is_fresh": False}
        readings = compare(full, [Case(MODEL, CLIENTS)], at_full_load, **options)
        paced = compare({way: start(way) for way in (YARDSTICK, "all")}, [Case(MODEL, 0)], at_a_rate, **options)
    summary = summarise(readings, YARDSTICK)
    (by,), (loaded,) = paced.values(), readings.values()
    p99 = ratios((reading.p99 for reading in by["all"]), (reading.p99 for reading in by[YARDSTICK]))
    ledger = differences((reading.cpu for reading in loaded["shared"]), (reading.cpu for reading in loaded[YARDSTICK]))
    show(f"{CLIENTS} clients, as a multiple of {YARDSTICK}", summary)
    print("the ledger, CPU time a request: {:.2f} ({:.2f} – {:.2f}) us".format(*ledger))
    print(f"p99 at {RATE} requests a second, spans of each sent: {p99[0]:.2f} ({p99[1]:.2f} – {p99[2]:.2f}) of {YARDSTICK}")
    result = {"yardstick": YARDSTICK, "ledger_us": ledger, "summary": summary, "p99_at_500": p99}
    write("telemetry", {**result, "readings": told(readings), "readings_at_500": told(paced)})


def unrecorded() -> Path:
    """Where the kernels are that write no record: built here, as `make kernels` builds those that do."""
    home = servers.BUILD / "unrecorded"
    command = ["cargo", "build", "--release", "--locked", "--package=headrace-kernels", "--features=unrecorded"]
    command += ["--manifest-path=kernels/Cargo.toml", f"--target-dir={home / 'target'}"]
    environment = {**os.environ, "PYO3_PYTHON": sys.executable}
    subprocess.run(command, cwd=servers.ROOT, env=environment, check=True)
    package = home / "python" / "headrace_kernels"
    shutil.copytree(servers.ROOT / "kernels/py/python/headrace_kernels", package, dirs_exist_ok=True)
    shutil.copy(home / "target/release/lib_native.so", package / "_native.abi3.so")
    return package.parent


def at_a_rate(server: Server, model: str, clients: int, seconds: float) -> Report:
    """An open loop."""
    return load.report_of(server.address, model, seconds, f"--rate={RATE}", warm_up=0)


def at_full_load(server: Server, model: str, clients: int, seconds: float) -> Report:
    """A closed loop, which counts for itself: a server without records does not."""
    return load.report_of(server.address, model, seconds, f"--concurrency={clients}", warm_up=0)


@contextmanager
def sink() -> Iterator[str]:
    """Takes whatever spans it is sent, in a process of its own, and does nothing with them."""
    command = [sys.executable, "-m", "benchmarks.telemetry", "--sink"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=servers.ROOT) as process:
        assert process.stdout is not None
        yield f"http://{process.stdout.readline().strip()}"
        process.kill()


def serve_sink() -> None:
    """Be that."""

    def export(request: bytes, context: grpc.ServicerContext) -> bytes:
        return b""

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            return grpc.unary_unary_rpc_method_handler(export) if handler_call_details.method == _EXPORT else None

    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
