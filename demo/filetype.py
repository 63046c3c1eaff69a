"""The graph `filetype` and its model: what kind of file some bytes are. `python -m demo.filetype REPOSITORY` puts them there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from demo import magika
from demo.asking import Answer, ask, reference, show_statistics
from demo.repository import ROOT, add_configuration, write_missing

FILES = 40
TOLERANCE = 1e-5
"""Absolute and relative: batches of different size differ by rounding."""


def build_repository(repository: Path) -> None:
    """Put the graph and the model `magika` into `repository`; what is there already stays as it is."""
    magika.build_repository(repository)
    add_configuration(repository, "filetype")
    for name in ("config.min.json", "content_types_kb.min.json"):
        write_missing(repository / "filetype" / name, (magika.package_files() / name).read_bytes())


def run(console: Console, address: str) -> bool:
    """Ask what files of this repository are, and show the answers; whether they are right."""
    files = some_files()
    answers = ask(address, "filetype", "content", [file.read_bytes() for file in files])
    show(console, files, answers)
    show_statistics(console, address, "filetype")
    return judge(console, files, answers)


def some_files() -> list[Path]:
    """Up to FILES files of this repository, of as many kinds as there are."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [ROOT / name for name in listed.stdout.split("\0") if name] if listed.returncode == 0 else []
    if not names:  # unpacked rather than cloned
        names = [path for path in ROOT.rglob("*") if not re.search(r"(^|/)(\.|build/|__pycache__/)", str(path.relative_to(ROOT)))]
    kinds: dict[str, list[Path]] = {}
    for path in sorted(names):
        if path.is_file():
            kinds.setdefault(path.suffix or path.name, []).append(path)
    by_turns = chain.from_iterable(zip_longest(*kinds.values()))
    return [path for path in by_turns if path is not None][:FILES]


def show(console: Console, files: Sequence[Path], answers: Sequence[Answer]) -> None:
    """Print what came back for each file."""
    table = Table("file", "type", "MIME type", "score", "latency", box=None, header_style="bold")
    for column in table.columns[3:]:
        column.justify = "right"
    for file, answer in zip(files, answers, strict=True):
        name = escape(str(file.relative_to(ROOT)))
        score, latency = f"{answer.outputs['score'][0]:.3f}", f"{answer.seconds * 1e3:.1f} ms"
        table.add_row(name, label(answer), answer.outputs["mime_type"][0].decode(), score, latency)
    console.print(table)
    console.print()


def label(answer: Answer) -> str:
    return answer.outputs["label"][0].decode()


def judge(console: Console, files: Sequence[Path], answers: Sequence[Answer]) -> bool:
    """Whether a bare ONNX Runtime session and Magika's rules say the same in another process."""
    # [2][files]: the answer for the row alone, and for the row in company; nobody knows what batch it was in.
    expected = reference("filetype", [str(file) for file in files])
    scores = np.array([[score for _, score in each] for each in expected])
    served = np.array([answer.outputs["score"][0] for answer in answers])
    alike = np.array([[told == label(answer) for (told, _), answer in zip(each, answers, strict=True)] for each in expected])
    same = np.any(alike & np.isclose(served, scores, rtol=TOLERANCE, atol=TOLERANCE), axis=0).tolist()
    if all(same):
        worst = float(np.abs(served - scores).min(axis=0).max())
        told = f"all {len(files)} answers are those of ONNX Runtime alone"
        console.print(f"[green]{told}[/green] and Magika's rules (largest difference {worst:.1e})\n")
        return True
    wrong = ", ".join(str(file.relative_to(ROOT)) for file, right in zip(files, same, strict=True) if not right)
    told = f"{same.count(False)} of {len(files)} answers are not those of ONNX Runtime: {wrong}"
    console.print(f"[red]{escape(told)}[/red]\n", soft_wrap=True)
    return False


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("name the repository: python -m demo.filetype REPOSITORY")
    build_repository(Path(sys.argv[1]))
