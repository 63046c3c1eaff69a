"""What REST shares with gRPC: classes instead of values, tensors in shared memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from headrace.backends.fake import Script
from tests.logs import logging_kept
from tests.transport.serving import ECHO


@pytest.fixture
def segment() -> Iterator[Path]:
    path = Path(f"/dev/shm/headrace-test-{os.getpid()}-rest")
    path.write_bytes(np.array([5], np.int32).tobytes() + bytes(4))
    yield path
    path.unlink()


def given(value: int) -> triton.InferInput:
    return triton.InferInput("x", [1, 1], "INT32").set_data_from_numpy(np.array([[value]], np.int32))


def test_classes_instead_of_values(serve) -> None:
    rest = serve({"m": (ECHO, Script())})
    wanted = triton.InferRequestedOutput("y", class_count=1)
    assert rest.client.infer("m", [given(5)], outputs=[wanted]).as_numpy("y").tolist() == [[b"5:0"]]


def test_tensors_in_shared_memory(serve, segment: Path) -> None:
    rest = serve({"m": (ECHO, Script())}, allow_client_shm=True)
    rest.client.register_system_shared_memory("r", segment.name, 8)
    assert [region["name"] for region in rest.client.get_system_shared_memory_status()] == ["r"]
    there = triton.InferInput("x", [1, 1], "INT32")
    there.set_shared_memory("r", 4)
    back = triton.InferRequestedOutput("y")
    back.set_shared_memory("r", 4, 4)
    answer = rest.client.infer("m", [there], outputs=[back]).get_response()
    assert answer["outputs"] == [{"name": "y", "datatype": "INT32", "shape": [1, 1]}]
    assert np.frombuffer(segment.read_bytes(), np.int32).tolist() == [5, 5]
    back.set_shared_memory("r", 2, 4)
    with pytest.raises(triton.InferenceServerException, match="should be at least 4 bytes to hold the results"):
        rest.client.infer("m", [there], outputs=[back])
    rest.client.unregister_system_shared_memory("r")
    with pytest.raises(triton.InferenceServerException, match="Unable to find shared memory region: 'r'"):
        rest.client.infer("m", [there])


def test_shared_memory_is_off_unless_allowed(serve, segment: Path) -> None:
    rest = serve({"m": (ECHO, Script())})
    with pytest.raises(triton.InferenceServerException, match="Client shared memory is disabled"):
        rest.client.register_system_shared_memory("r", segment.name, 8)


def test_settings_and_their_effect(serve) -> None:
    rest = serve({"m": (ECHO, Script())})
    rest.client.update_trace_settings("m", {"trace_level": ["TIMESTAMPS"], "trace_rate": "1"})
    assert rest.client.get_trace_settings("m")["trace_rate"] == "1"
    rest.client.infer("m", [given(5)])
    assert rest.grpc.engine.traces.settings("m").level == "TIMESTAMPS"
    with logging_kept():
        assert rest.client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
        assert logging.getLogger("headrace").level == logging.DEBUG
