"""`python -m benchmarks.load_check`: whether to believe `headrace bench load`.

Three questions, each answered by a measurement:

1. Does it agree with NVIDIA's perf_analyzer? Both ask a model that takes 5 ms a request, at 30 % of what it can do, in an open
   loop: rate, p50 and p99 as ratios, with constant gaps, and with Poisson arrivals, where each draws its own.
2. Does it see a stall? The server is stopped for 500 ms in the middle of a load.
3. Does it distort by being slow? 50,000 requests/s on a server without Python, and far more than anybody can send.

Writes benchmarks/results/load-check.json and prints what it found.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import threading
from pathlib import Path

from benchmarks import load, perf_analyzer, servers
from benchmarks.harness import check_release, ratios, write
from benchmarks.servers import BUILD, ROOT, Server

EXECUTE_MS = 5
SHARE = 0.3
STALL_MS = 500
FIXED = f"""\
backend: "fake"
max_batch_size: 0
input {{ name: "x" data_type: TYPE_FP32 dims: 16 }}
output {{ name: "y" data_type: TYPE_FP32 dims: 16 }}
instance_group {{ count: 1 kind: KIND_CPU }}
parameters {{ key: "execute_us" value {{ string_value: "{EXECUTE_MS * 1000}" }} }}
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load_check", description="Check headrace bench load.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0, help="of one load in the comparison")
    given = parser.parse_args()
    check_release()
    with servers.headrace(_repository(BUILD / "fixed"), "native") as server:
        agreement = {kind: agree(server, kind, given.rounds, given.seconds) for kind in ("constant", "poisson")}
        stall = stalled(server)
    result = {"agreement with perf_analyzer": agreement, "stall of 500 ms": stall, "against a native echo": speed()}
    print(json.dumps(result, indent=1))
    write("load-check", result)


def agree(server: Server, arrivals: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Ratios to perf_analyzer: median, least, most. Who goes first takes turns."""
    rate = SHARE * 1000 / EXECUTE_MS
    ours: list[load.Report] = []
    theirs: list[load.Report] = []
    for number in range(rounds):
        for asks in (0, 1) if number % 2 else (1, 0):
            if asks:
                ours.append(
                    load.report_of(
                        server.address, "fixed", seconds, f"--rate={rate}", f"--arrivals={arrivals}", f"--seed={number}"
                    )
                )
            else:
                options = ("--request-rate-range", str(rate), "--request-distribution", arrivals)
                theirs.append(perf_analyzer.report_of(server.address, "fixed", seconds / 3, *options))
    found = {
        quantity: ratios((getattr(r, quantity) for r in ours), (getattr(r, quantity) for r in theirs))
        for quantity in ("rate", "p50", "p99")
    }
    asked = [rate] * rounds
    of_asked = {"ours, of the rate asked for": ours, "perf_analyzer's, of the rate asked for": theirs}
    return found | {name: ratios((r.rate for r in reports), asked) for name, reports in of_asked.items()}


def stalled(server: Server) -> dict[str, float]:
    """Latencies of a load in whose middle nobody answered, in ms, with those of one without."""
    calm = load.asked(server.address, "fixed", "--rate=60", "--seconds=6", "--warm-up=0")
    timers = [
        threading.Timer(3, server.signal, [signal.SIGSTOP]),
        threading.Timer(3 + STALL_MS / 1000, server.signal, [signal.SIGCONT]),
    ]
    for timer in timers:
        timer.start()
    told = load.asked(server.address, "fixed", "--rate=60", "--seconds=6", "--warm-up=0")
    for timer in timers:
        timer.join()
    return {
        "p99 without": calm["latency_ms"]["p99"],
        "p99 with": told["latency_ms"]["p99"],
        "max with": told["latency_ms"]["max"],
    }


def speed() -> dict[str, object]:
    """What it does at 50,000 requests/s, and at more than there can be."""
    command = ["cargo", "build", "--quiet", "--release", "--locked", "-p", "headrace-core", "--example", "echo"]
    subprocess.run(command, cwd=ROOT / "kernels", check=True)
    echo = ROOT / "kernels" / "target" / "release" / "examples" / "echo"
    found: dict[str, object] = {}
    with Server("echo", [str(echo), "127.0.0.1:0"]) as server:
        for rate in (5_000, 50_000, 400_000):
            told = load.asked(server.address, "echo", f"--rate={rate}", "--seconds=4")
            found[f"{rate} requests/s"] = {
                "answered of offered": round(told["rate_per_second"] / told["offered_per_second"], 4),
                "generator": told["generator"],
                "p50_ms": told["latency_ms"]["p50"],
                "doubts": told["doubts"],
            }
    return found


def _repository(root: Path) -> Path:
    (root / "fixed" / "1").mkdir(parents=True, exist_ok=True)
    (root / "fixed" / "config.pbtxt").write_text(FIXED)
    return root


if __name__ == "__main__":
    main()
