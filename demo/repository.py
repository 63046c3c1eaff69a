"""The demo's model repository, in Triton's layout."""

from __future__ import annotations

import os
from pathlib import Path

from demo.magika import Magika, model_folder

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = ROOT / "build/demo/repository"


def build_repository(repository: Path) -> None:
    """Put the model `magika` into `repository`; what is there already stays as it is."""
    home = repository / "magika"
    (home / "1").mkdir(parents=True, exist_ok=True)
    write_missing(home / "labels.txt", "".join(f"{label}\n" for label in Magika.read().labels).encode())
    write_missing(home / "config.pbtxt", (ROOT / "configs/models/magika/config.pbtxt").read_bytes())
    write_missing(home / "1/model.onnx", (model_folder() / "model.onnx").read_bytes())


def write_missing(path: Path, content: bytes) -> None:
    if path.exists():
        return
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(content)
    scratch.replace(path)
