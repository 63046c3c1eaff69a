"""`python -m benchmarks.telemetry`: what the ledger's being read, the tail decision and the exporter cost.

The tiny model on the native transport. At full load, 64 clients: a server whose rings nobody can map (`alone`), one whose rings
are shared (`shared`), one whose side process decides what is kept and sends it to a receiver (`traced`). At 500 requests a
second: `alone` beside one that sends spans of every request (`all`), p99. The server's CPU is that of its side process, too; the
receiver's is not.

The ledger itself cannot be switched off: it is what answers statistics, and what settles a request writes it.
Writes benchmarks/results/telemetry.json, and prints tables.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from benchmarks import load, servers
from benchmarks.harness import Case, Report, check_release, compare, ratios, show, summarise, told, write
from benchmarks.models import build_repository
from benchmarks.servers import Server, Start

MODEL, CLIENTS, RATE = "tiny", 64, 500
YARDSTICK = "alone"
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
            YARDSTICK: {"HEADRACE_RUNTIME_DIR": "/nowhere"},
            "shared": {},
            "traced": traced,
            "all": {**traced, "OTEL_TRACES_SAMPLER": "always_on"},
        }

        def start(way: str) -> Start:
            return lambda: servers.headrace(repository, "native", environment=ways[way])

        full = {way: start(way) for way in (YARDSTICK, "shared", "traced")}
        options = {"rounds": given.rounds, "seconds": given.seconds, "is_fresh": False}
        readings = compare(full, [Case(MODEL, CLIENTS)], load.run, **options)
        paced = compare({way: start(way) for way in (YARDSTICK, "all")}, [Case(MODEL, 0)], at_a_rate, **options)
    summary = summarise(readings, YARDSTICK)
    (by,) = paced.values()
    p99 = ratios((reading.p99 for reading in by["all"]), (reading.p99 for reading in by[YARDSTICK]))
    show(f"{CLIENTS} clients, as a multiple of {YARDSTICK}", summary)
    print(f"p99 at {RATE} requests a second, spans of each sent: {p99[0]:.2f} ({p99[1]:.2f} – {p99[2]:.2f}) of {YARDSTICK}")
    result = {"yardstick": YARDSTICK, "summary": summary, "p99_at_500": p99}
    write("telemetry", {**result, "readings": told(readings), "readings_at_500": told(paced)})


def at_a_rate(server: Server, model: str, clients: int, seconds: float) -> Report:
    """An open loop."""
    return load.report_of(server.address, model, seconds, f"--rate={RATE}")


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
