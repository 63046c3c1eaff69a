from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Servers of other tests and people are none of ours, nor the other way round. In memory, as it is in life."""
    path = Path(tempfile.mkdtemp(prefix="headrace.tests.", dir="/dev/shm"))
    monkeypatch.setenv("HEADRACE_RUNTIME_DIR", str(path))
    yield path
    shutil.rmtree(path)
