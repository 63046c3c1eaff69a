"""Magika, which tells what kind of file some bytes are: 2048 of them in, a score for each kind out.

`Magika` is all that is around the model, once more and file by file: what the graph `filetype` is judged by.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.repository import add_model, write_missing
from tools.fetch_models import fetch


def build_repository(repository: Path) -> None:
    """Put the model `magika` into `repository`; what is there already stays as it is."""
    add_model(repository, "magika", package_files() / "model.onnx")
    write_missing(repository / "magika/labels.txt", "".join(f"{label}\n" for label in Magika.read().labels).encode())


def package_files() -> Path:
    """Where the files of the package lie, fetched when they are not there, checked in any case."""
    return fetch("magika")


@dataclass(frozen=True, slots=True)
class Magika:
    """Sizes are bytes; `padding` is the integer that stands for no byte; `texts` are the labels that mean some kind of text."""

    head: int
    tail: int
    block: int
    padding: int
    least: int
    labels: tuple[str, ...]
    threshold: float
    thresholds: dict[str, float]
    overwrite: dict[str, str]
    texts: frozenset[str]

    @classmethod
    def read(cls) -> Magika:
        """As the package's own configuration tells."""
        told = json.loads((package_files() / "config.min.json").read_text())
        kinds = json.loads((package_files() / "content_types_kb.min.json").read_text())
        return cls(
            head=told["beg_size"],
            tail=told["end_size"],
            block=told["block_size"],
            padding=told["padding_token"],
            least=told["min_file_size_for_dl"],
            labels=tuple(told["target_labels_space"]),
            threshold=told["medium_confidence_threshold"],
            thresholds=told["thresholds"],
            overwrite=told["overwrite_map"],
            texts=frozenset(label for label, kind in kinds.items() if kind["is_text"]),
        )

    def row(self, content: bytes) -> NDArray[np.int32]:
        """What the model sees of a file: its first bytes after leading white space, its last ones before trailing."""
        row = np.full(self.head + self.tail, self.padding, np.int32)
        first = content[: self.block].lstrip()[: self.head]
        last = content[-self.block :].rstrip()[-self.tail :]
        row[: len(first)] = np.frombuffer(first, np.uint8)
        row[len(row) - len(last) :] = np.frombuffer(last, np.uint8)
        return row

    def decide(self, content: bytes, scores: NDArray[np.float32]) -> tuple[str, float]:
        """Label and score of a file, for the scores of its row."""
        start = content[: self.block]
        if not start:
            return "empty", 1.0
        if len(start.lstrip()) < self.least:  # too little for the model
            return ("txt" if is_utf8(start) else "unknown"), 1.0
        best = int(scores.argmax())
        label, score = self.labels[best], float(scores[best])
        kind = self.overwrite.get(label, label)
        if score < self.thresholds.get(label, self.threshold):
            kind = "txt" if kind in self.texts else "unknown"
        return kind, score


def is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
