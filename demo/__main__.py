"""`python -m demo`: serve Magika, ask what this repository's own files are, and check the answers.

Exit status 0: the answers are those of ONNX Runtime alone. 1: they are not, or the server failed. On a terminal the server
stays up until Ctrl-C.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from demo.magika import Magika
from demo.repository import REPOSITORY, ROOT, build_repository
from demo.server import Server, ServerFailed

FILES = 40
IN_FLIGHT = 8
TOLERANCE = 1e-5
"""Absolute and relative: batches of different size differ by rounding."""


@dataclass(frozen=True)
class Answer:
    """What came back for one file: a score a label, after `seconds`."""

    scores: NDArray[np.float32]
    seconds: float


def main() -> int:
    """Run the demo; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="Serve a real model and check its answers.")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, metavar="DIR", help="default: build/demo/repository")
    repository: Path = parser.parse_args().repository
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the server is stopped too
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)

    magika = Magika.read()
    build_repository(repository)
    files = some_files(magika.least)
    rows = np.stack([magika.row(file.read_bytes()) for file in files])
    server = Server(repository, ROOT / "build/demo/server.log")
    try:
        with server:
            answers = ask(server.grpc, rows)
            show(console, magika, files, answers)
            show_statistics(console, server.grpc)
            well = judge(console, magika, files, rows, answers, repository)
            if well and sys.stdout.isatty() and sys.stdin.isatty():
                return stay(console, server)
        console.print(f"server stopped, exit status 0; its log: {server.log}")
    except ServerFailed as error:
        console.print(f"[red]{escape(str(error))}[/red]; its log, {server.log}:", soft_wrap=True)
        print(server.log.read_text(), file=sys.stderr)
        return 1
    return 0 if well else 1


def some_files(least: int) -> list[Path]:
    """Up to FILES files of this repository of at least `least` bytes, of as many kinds as there are."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [ROOT / name for name in listed.stdout.split("\0") if name] if listed.returncode == 0 else []
    if not names:  # unpacked rather than cloned
        names = [path for path in ROOT.rglob("*") if not re.search(r"(^|/)(\.|build/|__pycache__/)", str(path.relative_to(ROOT)))]
    kinds: dict[str, list[Path]] = {}
    for path in sorted(names):
        if path.is_file() and path.stat().st_size >= least:
            kinds.setdefault(path.suffix or path.name, []).append(path)
    by_turns = chain.from_iterable(zip_longest(*kinds.values()))
    return [path for path in by_turns if path is not None][:FILES]


def ask(address: str, rows: NDArray[np.int32]) -> list[Answer]:
    """One request a row, IN_FLIGHT of them at a time, as if they were separate clients."""
    with triton.InferenceServerClient(address) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:

        def one(row: NDArray[np.int32]) -> Answer:
            tensor = triton.InferInput("bytes", [1, len(row)], "INT32")
            tensor.set_data_from_numpy(row[None])
            started = time.perf_counter()
            result = client.infer("magika", [tensor])
            seconds = time.perf_counter() - started
            assert result is not None
            scores = result.as_numpy("target_label")
            assert scores is not None
            return Answer(scores[0], seconds)

        return list(pool.map(one, rows))


def show(console: Console, magika: Magika, files: Sequence[Path], answers: Sequence[Answer]) -> None:
    """Print what the model says of each file."""
    table = Table("file", "type", "score", "latency", box=None, header_style="bold")
    for column in table.columns[2:]:
        column.justify = "right"
    for file, answer in zip(files, answers, strict=True):
        best = int(answer.scores.argmax())
        name = escape(str(file.relative_to(ROOT)))
        table.add_row(name, magika.labels[best], f"{answer.scores[best]:.3f}", f"{answer.seconds * 1e3:.1f} ms")
    console.print(table)


def show_statistics(console: Console, address: str) -> None:
    """Print the server's own account of it."""
    with triton.InferenceServerClient(address) as client:
        statistics = client.get_inference_statistics("magika")
        assert statistics is not None
    rows, batches = statistics.model_stats[0].inference_count, statistics.model_stats[0].execution_count
    console.print(f"\n{rows} requests in {batches} executions, {rows / max(batches, 1):.1f} rows a batch on average")


def judge(
    console: Console,
    magika: Magika,
    files: Sequence[Path],
    rows: NDArray[np.int32],
    answers: Sequence[Answer],
    repository: Path,
) -> bool:
    """Whether a bare ONNX Runtime session in another process says the same."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, told = Path(scratch) / "rows.npy", Path(scratch) / "scores.npy"
        np.save(asked, rows)
        subprocess.run([sys.executable, "-m", "demo.reference", str(asked), str(told)], cwd=ROOT, check=True)
        expected: NDArray[np.float32] = np.load(told)
    served = np.stack([answer.scores for answer in answers])
    # [2, files]: close to the answer for the row alone, or for the row in company; nobody knows what batch it was in.
    close = np.isclose(served, expected, rtol=TOLERANCE, atol=TOLERANCE).all(axis=2)
    same = (close & (served.argmax(axis=1) == expected.argmax(axis=2))).any(axis=0)
    if same.all():
        worst = float(np.abs(served - expected).max(axis=2).min(axis=0).max())
        console.print(f"[green]all {len(files)} answers are those of ONNX Runtime alone[/green] (largest difference {worst:.1e})")
        return True
    wrong = ", ".join(str(file.relative_to(ROOT)) for file, right in zip(files, same, strict=True) if not right)
    told = f"{(~same).sum()} of {len(files)} answers are not those of ONNX Runtime: {wrong}"
    console.print(f"[red]{escape(told)}[/red]", soft_wrap=True)
    model = repository / "magika/1/model.onnx"
    console.print(f"{model} is not the model of the package; remove {repository.parent} and run again", soft_wrap=True)
    return False


def stay(console: Console, server: Server) -> int:
    """Keep serving until Ctrl-C, or until the server ends by itself, which is a failure."""
    # Whoever started us may have let us ignore it; the line below promises it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console.print(f"\nserving: [bold]{server.addresses}[/bold]   log {server.log}   Ctrl-C stops", soft_wrap=True)
    try:
        server.wait()
    except KeyboardInterrupt:
        console.print("stopping")
        return 0
    raise ServerFailed("the server went away")


if __name__ == "__main__":
    sys.exit(main())
