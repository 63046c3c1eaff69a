"""The servers that the tests of this directory use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from headrace.backends.fake import Script
from tests.build_models import add_model, optional_bias
from tests.rest.resting import Rest, resting
from tests.transport.asking import BROKEN, FAKES, OPTIONAL
from tests.transport.serving import TRANSPORTS, fill

RAW = """
backend: "fake"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [2, -1] }
output { name: "y" data_type: TYPE_FP32 dims: [2, -1] }
"""
WORD = """
backend: "fake"
input { name: "x" data_type: TYPE_STRING dims: 1 }
output { name: "y" data_type: TYPE_STRING dims: 1 }
"""
VARIES = RAW.replace("[2, -1]", "[-1, -1]")
WORDS = WORD.replace("dims: 1", "dims: 2")
HALF = WORD.replace("STRING", "FP16")
FAIL = WORD + 'parameters { key: "fail" value { string_value: "it fell over" } }'


@pytest.fixture(scope="session", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """The gRPC transport beside, whose queues REST pushes into."""
    return request.param


@pytest.fixture(scope="session")
def rest(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    """A server of the models in `tests.transport.asking` and of those above; REST takes 100 kB."""
    repository = tmp_path_factory.mktemp("repository")
    own = {"raw": RAW, "word": WORD, "varies": VARIES, "words": WORDS, "half": HALF, "fail": FAIL}
    fakes = {name: (config, Script()) for name, config in {**FAKES, **own}.items() if name != "fail"}
    fake = fill(repository, fakes)
    fill(repository, {"broken": (BROKEN, Script()), "fail": (FAIL, Script())})
    add_model(repository, "optional", optional_bias(), OPTIONAL)
    with resting(transport, repository, {"fake": fake}, size=100_000) as started:
        yield started


Serve = Callable[..., Rest]


@pytest.fixture
def serve(transport: str, tmp_path: Path) -> Iterator[Serve]:
    """`serve({name: (config, script)}, **options)`: see `resting`."""
    with ExitStack() as stack:

        def start(models: Mapping[str, tuple[str, Script]], **options: Any) -> Rest:
            backend = fill(tmp_path / "repository", models)
            rest = stack.enter_context(resting(transport, tmp_path / "repository", {"fake": backend}, **options))
            for _, script in models.values():
                script.batches.clear()
            return rest

        yield start
