"""Where the far side is no Triton, but speaks its protocol; and the examples in configs/."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.engine.engine import Engine
from headrace.transport.control import Control
from headrace.transport.ways import open_transport
from tests.build_models import add_model
from tests.triton.far import Triton
from tests.triton.here import Here, doubling, rows

EXAMPLES = Path(__file__).resolve().parents[2] / "configs/models"
WIDTH = 65536
WIDE = f"""
backend: "fake"
max_batch_size: 4
input {{ name: "x" data_type: TYPE_FP32 dims: {WIDTH} }}
output {{ name: "y" data_type: TYPE_FP32 dims: {WIDTH} }}
dynamic_batching {{}}
"""


def test_another_headrace_over_a_socket_file_in_shared_memory(here: Here, transport: str, tmp_path: Path) -> None:
    add_model(tmp_path / "models", "wide", None, WIDE)
    way_in = open_transport(transport, f"unix:{tmp_path / 'socket'}")
    engine = Engine(tmp_path / "models", queues=way_in.queues)
    way_in.start(engine.routes, Control(engine, allow_client_shm=True))
    try:
        engine.start()
        here.add("wide", way_in.address)
        x = np.random.default_rng(1).standard_normal((3, WIDTH), np.float32)
        near = here.engine()
        assert np.array_equal(near.infer("wide", {"x": x})["y"], x)
        assert len(engine.regions.registered()) == 1
        here.stack.close()
        assert not engine.regions.registered()
    finally:
        way_in.close(engine.clock.now() + 10**9)
        engine.close(engine.clock.now() + 10**9)


@pytest.mark.parametrize("name", ["elsewhere", "either"])
def test_the_examples_load(here: Here, far: Triton, name: str) -> None:
    shutil.copytree(EXAMPLES / name, here.repository / name)
    config = here.repository / name / "config.pbtxt"
    config.write_text(config.read_text().replace("127.0.0.1:9001", far.url))
    (here.repository / name / "1").mkdir()
    if name == "either":
        add_model(here.repository, name, doubling())
    answer: Any = here.engine().infer(name, {"x": rows(1, 2)})["y"]
    assert np.array_equal(answer, 2 * rows(1, 2))
