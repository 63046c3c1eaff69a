from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace import kernels
from tests.scheduling import support
from tests.scheduling.support import House

BOTH = ("test_queue.py", "test_batch.py", "test_padding.py", "test_parts.py")
"""Their tests run over the queues of each transport, but for those marked `portable`, which look inside."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.path.name in BOTH:
        only = metafunc.definition.get_closest_marker("portable") is not None or not kernels.are_installed()
        metafunc.parametrize("transport", ["portable"] if only else ["portable", "native"], indirect=True)


@pytest.fixture(autouse=True)
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which queues a `House` has. Of every test: nobody would miss it who forgot to ask for it."""
    support.QUEUES["transport"] = getattr(request, "param", "portable")
    yield support.QUEUES["transport"]
    support.QUEUES["transport"] = "portable"


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    made.close()
