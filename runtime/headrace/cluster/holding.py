"""Which models an engine holds: what is wanted is loaded, or loaded anew where its files have changed, and the rest unloaded."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from headrace.engine.engine import Engine
from headrace.errors import HeadraceError

_LOAD_THREADS = 4


def hold(engine: Engine, wanted: Sequence[str]) -> list[str]:
    """Hold these models, `*` being all there are, and what they run. What serves goes on doing so where its successor fails.

    Returns:
        What did not come up, a sentence each.
    """
    names = engine.repository.names() if "*" in wanted else list(dict.fromkeys(wanted))
    with ThreadPoolExecutor(_LOAD_THREADS, "headrace-load") as loaders:
        problems = [problem for problem in loaders.map(lambda name: _load(engine, name), names) if problem]
    needed = set(names).union(*(engine.catalog.needs_of(name) for name in names))
    for name in sorted(engine.catalog.names() - needed):
        engine.unload(name)
    return problems


def _load(engine: Engine, name: str) -> str:
    try:
        engine.load(name)
    except HeadraceError as error:
        return error.message
    return ""
