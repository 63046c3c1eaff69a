"""On a GPU, where there is one: the same answers, from the provider that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace import Engine
from headrace.backends.installed import usable_gpus
from tests.build_models import add_model, mlp
from tests.oracle import plain

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(usable_gpus() == 0, reason="no GPU that ONNX Runtime can use")]
GROUP = "instance_group [ { kind: KIND_GPU gpus: [ 0 ] } ]\nmax_batch_size: 8\ndynamic_batching {}\n"


@pytest.mark.parametrize("accelerator", ["", "tensorrt"])
def test_a_model_on_a_gpu_answers_as_on_the_cpu(tmp_path: Path, accelerator: str) -> None:
    text = GROUP
    if accelerator:
        text += f'optimization {{ execution_accelerators {{ gpu_execution_accelerator {{ name: "{accelerator}" }} }} }}'
    path = add_model(tmp_path, "m", mlp(), text)
    with Engine(tmp_path) as engine:
        (status,) = engine.statuses()
        assert status.reason == ""
        name = status.spec.inputs[0].name
        given = np.random.default_rng(0).standard_normal((4, *status.spec.inputs[0].dims), np.float32)
        answer = engine.infer("m", {name: given})
        for output, value in plain(path, {name: given}).items():
            np.testing.assert_allclose(answer[output], value, rtol=1e-3, atol=1e-3)
