"""Putting models and graphs into a repository, in Triton's layout. What is there already stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def add_model(repository: Path, name: str, model: Path) -> None:
    """The file `model`, with what configs/models has for it."""
    add_configuration(repository, name)
    write_missing(repository / name / "1/model.onnx", model.read_bytes())


def add_configuration(repository: Path, name: str) -> None:
    for file in (ROOT / "configs/models" / name).iterdir():
        if file.is_file():
            write_missing(repository / name / file.name, file.read_bytes())


def write_missing(path: Path, content: bytes) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(content)
    scratch.replace(path)
