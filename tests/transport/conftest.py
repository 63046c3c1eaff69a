"""The transports and the servers that the tests of this directory use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from headrace.backends.fake import Script
from tests.build_models import add_model, optional_bias
from tests.transport.asking import BROKEN, FAKES, OPTIONAL
from tests.transport.serving import TRANSPORTS, Serve, Server, fill, serving


@pytest.fixture(scope="session", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """The way in, by name."""
    return request.param


@pytest.fixture
def serve(transport: str, tmp_path: Path) -> Iterator[Serve]:
    """Starts servers of fake models: `serve({name: (config, script)}, **engine_options)`. Their warm-up is not in the scripts."""
    with ExitStack() as stack:

        def start(models: Mapping[str, tuple[str, Script]], **options: Any) -> Server:
            backend = fill(tmp_path / "repository", models)
            server = stack.enter_context(serving(transport, tmp_path / "repository", {"fake": backend}, **options))
            for _, script in models.values():
                script.batches.clear()
            return server

        yield start


@pytest.fixture(scope="module")
def server(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the models in `asking`; `broken` cannot be loaded."""
    repository = tmp_path_factory.mktemp("repository")
    fake = fill(repository, {name: (config, Script()) for name, config in FAKES.items()})
    fill(repository, {"broken": (BROKEN, Script())})
    add_model(repository, "optional", optional_bias(), OPTIONAL)
    with serving(transport, repository, {"fake": fake}) as started:
        yield started
