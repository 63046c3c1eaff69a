"""One real Triton for the tests of this directory; whoever ends it finds it started again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from headrace.backends.triton import channel
from headrace.errors import KernelsUnusable
from tests.transport.serving import TRANSPORTS
from tests.triton.far import MODELS, Triton, write_model
from tests.triton.here import Here
from tests.triton.proxy import Proxy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where Triton is not installed yet, the first test does it, which takes minutes."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """The way in, by name."""
    return request.param


@pytest.fixture(autouse=True)
def way_out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of a test that runs over both transports is of the same make as the transport."""
    if "transport" in request.fixturenames and request.getfixturevalue("transport") == "portable":
        monkeypatch.setattr(channel.kernels, "load", _no_kernels)


def _no_kernels() -> None:
    raise KernelsUnusable("this test does without")


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    home = tmp_path_factory.mktemp("far")
    for name, (config, body) in MODELS.items():
        write_model(home / "models", name, config, body)
    server = Triton(home / "models", home / "log")
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def far(triton: Triton) -> Triton:
    """It runs, has run nothing yet, and has mapped nothing: the server of the test before may have been cut off from it."""
    if not triton.is_running:
        triton.start()
    triton.forget_runs()
    with triton.client() as client:
        client.unregister_system_shared_memory()
    return triton


@pytest.fixture
def proxy(far: Triton) -> Iterator[Proxy]:
    """Leads to it."""
    with Proxy(far.port) as between:
        yield between


@pytest.fixture
def here(tmp_path: Path, triton: Triton) -> Iterator[Here]:
    """A repository of models that run there, and servers of it."""
    with ExitStack() as stack:
        yield Here(tmp_path / "here", stack, triton)
