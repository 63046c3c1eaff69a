"""`python -m benchmarks.lengths`: sentences of all lengths, one a request, by MiniLM.

Rivals: Headrace with length buckets, as configs/models/minilm asks for; Headrace without, where only sentences of exactly one
length share a batch, or where clients pad all of theirs to the longest there is; and, as the limit, onnxruntime in a loop over
the same sentences sorted by length (`sorted_loop.py`). One instance and one thread each; `headrace bench load` asks, in a closed
loop, with sentences of Python's manual. Writes benchmarks/results/lengths.json and .svg, and prints tables.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import load, servers
from benchmarks.harness import Case, Report, check_release, compare, draw, ratios, show, summarise, told, write
from benchmarks.sentences import sentences, tokens, write_table
from benchmarks.servers import BUILD, ROOT, Server
from demo.minilm import model_file, tokenizer_file

MODEL = "minilm"
EXACT, BUCKETS, CLIENTS_PAD = "exact lengths", "length buckets", "clients pad"
CLIENTS = (32, 128)
SENTENCES = 1024
ONE_THREAD = 'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lengths", description="Measure sentences of all lengths.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one load")
    given = parser.parse_args()
    check_release()
    ids = tokens(tokenizer_file(), sentences(SENTENCES))
    data = write_table(BUILD / "lengths" / "sentences.arrow", ids)
    padded = write_table(BUILD / "lengths" / "padded.arrow", ids, max(map(len, ids)))
    config = (ROOT / "configs" / "models" / MODEL / "config.pbtxt").read_text() + ONE_THREAD
    # Without padding, nobody makes the mask of a client who leaves it out.
    exact = "".join(line for line in config.splitlines(keepends=True) if '"padding' not in line and "optional" not in line)
    rivals: dict[str, servers.Start] = {
        EXACT: _start(EXACT, exact),
        BUCKETS: _start(BUCKETS, config),
        CLIENTS_PAD: _start(CLIENTS_PAD, exact),
    }

    def ask(server: Server, model: str, clients: int, seconds: float) -> Report:
        file = padded if server.name == CLIENTS_PAD else data
        return load.report_of(server.address, model, seconds, f"--concurrency={clients}", f"--data={file}")

    cases = [Case(MODEL, clients) for clients in CLIENTS]
    loops: list[dict[str, Any]] = []
    readings = {case: {name: [] for name in rivals} for case in cases}
    for _ in range(given.rounds):
        loops.append(sorted_loop(data, given.seconds, loops[0]["rows"] if loops else None))
        for case, by in compare(rivals, cases, ask, rounds=1, seconds=given.seconds, is_fresh=True).items():
            for name, each in by.items():
                readings[case][name] += each
    summary = summarise(readings, EXACT)
    show(f"{MODEL}, sentences of all lengths, as a multiple of batches of one length", summary)
    rates = [each["rate"] for each in loops]
    limits = {
        str(case): {name: ratios((r.rate for r in each), rates) for name, each in by.items()} for case, by in readings.items()
    }
    for case, by in limits.items():
        for name, spread in by.items():
            print(f"{case}, {name}: {spread[0]:.3f} ({spread[1]:.3f} – {spread[2]:.3f}) of onnxruntime over sorted sentences")
    lengths = np.quantile([len(each) for each in ids], (0, 0.1, 0.5, 0.9, 0.99, 1)).round(1).tolist()
    result = {"load": "headrace bench load, closed loop", "yardstick": EXACT, "summary": summary, "of_the_sorted_loop": limits}
    of_sentences = {
        "count": len(ids),
        "tokens: least, p10, p50, p90, p99, most": lengths,
        "mean": float(np.mean([*map(len, ids)])),
    }
    write("lengths", {**result, "sentences": of_sentences, "sorted_loop": loops, "readings": told(readings)})
    draw("lengths", summary, EXACT, {"rate": "throughput", "cpu": "server CPU per request", "p50": "p50"})


def _start(name: str, config: str) -> servers.Start:
    home = BUILD / "lengths" / name.replace(" ", "-")
    (home / MODEL / "1").mkdir(parents=True, exist_ok=True)
    shutil.copy2(model_file(), home / MODEL / "1" / "model.onnx")
    (home / MODEL / "config.pbtxt").write_text(config)

    def start() -> Server:
        server = servers.headrace(home, "native")
        server.name = name
        return server

    return start


def sorted_loop(data: Path, seconds: float, rows: int | None) -> dict[str, Any]:
    """What onnxruntime does over sorted sentences, in a process of its own; with the best number of rows, or with this one."""
    options = [f"--model={model_file()}", f"--data={data}", f"--seconds={seconds}", *([f"--rows={rows}"] if rows else [])]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sorted_loop", *options], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
