from __future__ import annotations

from pathlib import Path

import pytest

CONFIG = """
backend: "fake"
max_batch_size: 8
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }} ]
dynamic_batching {{}}
{more}
"""


class Store:
    """A repository of fake models, written file by file as a deployment would."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, name: str, *versions: int, content: str = "weights", more: str = "", config: str | None = None) -> Path:
        place = self.root / name
        for version in versions or (1,):
            (place / str(version)).mkdir(parents=True, exist_ok=True)
            (place / str(version) / "weights").write_text(content)
        (place / "config.pbtxt").write_text(CONFIG.format(more=more) if config is None else config)
        return place


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)
