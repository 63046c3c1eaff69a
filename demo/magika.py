"""How Magika looks at a file: 2048 integers made of its first and last bytes, and names for the scores that come back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.fetch_models import fetch


def model_folder() -> Path:
    """Where the model of the package lies, fetched when it is not there, checked in any case."""
    return fetch("magika")


@dataclass(frozen=True, slots=True)
class Magika:
    """Sizes are bytes; `padding` is the integer that stands for no byte."""

    head: int
    tail: int
    block: int
    padding: int
    least: int
    labels: tuple[str, ...]

    @classmethod
    def read(cls) -> Magika:
        """As the package's own configuration tells."""
        told = json.loads((model_folder() / "config.min.json").read_text())
        return cls(
            head=told["beg_size"],
            tail=told["end_size"],
            block=told["block_size"],
            padding=told["padding_token"],
            least=told["min_file_size_for_dl"],
            labels=tuple(told["target_labels_space"]),
        )

    def row(self, content: bytes) -> NDArray[np.int32]:
        """What the model sees of a file: its first bytes after leading white space, its last ones before trailing."""
        row = np.full(self.head + self.tail, self.padding, np.int32)
        first = content[: self.block].lstrip()[: self.head]
        last = content[-self.block :].rstrip()[-self.tail :]
        row[: len(first)] = np.frombuffer(first, np.uint8)
        row[len(row) - len(last) :] = np.frombuffer(last, np.uint8)
        return row
