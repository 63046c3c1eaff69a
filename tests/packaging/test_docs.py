"""The maps in docs/ name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "runtime/headrace"


def test_every_file_named_in_the_architecture_exists() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"\b([a-z_]+(?:/[a-z_]+)*\.py)\b", text))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (PACKAGE / name).is_file()] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in t]
    assert [t for t in targets if not (page.parent / t).exists()] == []
