from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from headrace.backends.fake import Script
from headrace.engine.engine import Engine
from headrace.ledger.tally import Tally, make_tally
from headrace.telemetry.pulse import Pulse
from tests.telemetry.reading import Observed
from tests.transport.serving import fill

Observe = Callable[..., Observed]
"""`observe({name: (config, script)}, **engine_options)`: see the fixture."""


@pytest.fixture
def observe(tmp_path: Path) -> Iterator[Observe]:
    """Starts engines of fake models whose metrics can be read."""
    with ExitStack() as stack:

        def start(models: Mapping[str, tuple[str, Script]], **options: Any) -> Observed:
            backend = fill(tmp_path / "repository", models)
            engine = Engine(tmp_path / "repository", backends={"fake": backend}, **options)
            make_tally(tmp_path / "tally")
            return Observed(stack.enter_context(engine), tmp_path / "repository", Pulse(), Tally(tmp_path / "tally"), tmp_path)

        yield start
