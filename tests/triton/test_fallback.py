"""Several backends in order: who serves when, and where it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from headrace.backends.base import Batch, Device, Outputs
from headrace.backends.fallback import merged
from headrace.engine.engine import Engine
from headrace.engine.observed import metrics_of
from headrace.errors import BackendDown, BackendFailed, BackendUnreachable, InvalidRepository
from headrace.model import GraphIO, GraphTensor
from headrace.protocol.headrace_pb2 import ModelConfig, ModelStatistics
from tests.build_models import sums
from tests.transport.serving import Asked, Server, tensor
from tests.triton.far import Triton
from tests.triton.here import Here, doubling, parameters, reason_of, rows, wait_until_gone
from tests.waiting import until
from tools.ports import free_port


def ask(server: Server, first: float) -> float:
    asked: Any = Asked(server, "doubles", [tensor("x", rows(first), "FP32")]).result()
    return float(asked.as_numpy("y")[0, 0])


def serving_of(server: Server) -> tuple[str, str]:
    """The backends that the metadata names, and the one that serves; tritonclient's messages leave these fields out."""
    from headrace.protocol import headrace_pb2 as pb

    request = pb.ModelMetadataRequest(name="doubles").SerializeToString()
    told = pb.ModelMetadataResponse.FromString(server.call("ModelMetadata", request))
    return told.properties["backends"], told.properties["backend"]


def shown(engine: Engine, name: str) -> dict[str, float]:
    """By backend, a metric of `doubles`."""
    page, _ = metrics_of(engine).render()
    return {
        sample.labels["backend"]: sample.value
        for family in parse(page.decode())
        for sample in family.samples
        if sample.name == name and sample.labels["model"] == "doubles"
    }


def test_the_next_serves_while_the_first_is_down(here: Here, far: Triton, transport: str) -> None:
    here.add_several(far.url, "triton, onnxruntime", doubling(), connect_timeout_s="1")
    server = here.serve(transport)
    far.forget_runs()
    assert [ask(server, n) for n in (1, 2)] == [2, 4]
    assert far.rows() == [1, 2]
    assert serving_of(server) == ("triton, onnxruntime", "triton")
    far.kill()
    # The one that meets the end of the connection may have been sent; all others are served.
    first = Asked(server, "doubles", [tensor("x", rows(3), "FP32")])
    try:
        assert first.result().as_numpy("y")[0, 0] == 6  # type: ignore[index]
    except Exception as error:
        assert "UNAVAILABLE" in str(error)
    until(lambda: serving_of(server)[1] == "onnxruntime")
    assert [ask(server, n) for n in range(4, 9)] == [8, 10, 12, 14, 16]
    assert shown(server.engine, "headrace_model_backend") == {"triton": 0, "onnxruntime": 1}
    far.start()
    until(lambda: serving_of(server)[1] == "triton")
    assert ask(server, 9) == 18
    assert [first for first in far.rows() if first] == [1, 2, 9]
    server.wait_settled("doubles")
    batches = shown(server.engine, "headrace_backend_batches_total")
    assert batches["triton"] == 3
    assert batches["onnxruntime"] in (5, 6)
    told: Any = server.client.get_inference_statistics("doubles")
    counts = {each.name: each.execution_count for each in told.model_stats}
    assert counts["doubles@triton"] == batches["triton"]
    assert counts["doubles@onnxruntime"] == batches["onnxruntime"]
    assert counts["doubles"] == sum(batches.values())


@pytest.mark.usefixtures("transport")
def test_a_refused_batch_is_run_by_the_next(here: Here, far: Triton) -> None:
    """Nothing of it was sent, so it is asked at once, and nobody gets an error."""
    here.add_several(far.url, "triton, onnxruntime", doubling(), connect_timeout_s="1")
    engine = here.engine()
    session: Any = next(iter(engine.catalog.running())).opened.sessions[0][0]
    far.kill()
    wait_until_gone(session._members[0].session)
    assert all((engine.infer("doubles", {"x": rows(n)})["y"] == 2 * rows(n)).all() for n in range(10))
    assert session.serving == "onnxruntime"


def test_the_next_serves_when_the_first_cannot_load(here: Here, far: Triton, transport: str) -> None:
    here.add_several(far.url, "onnxruntime, triton", None)
    (here.repository / "doubles/1/model.onnx").write_bytes(b"no model")
    server = here.serve(transport)
    far.forget_runs()
    assert ask(server, 1) == 2
    assert far.rows() == [1]
    assert serving_of(server) == ("onnxruntime, triton", "triton")


def test_the_first_serves_as_long_as_it_is_well(here: Here, far: Triton) -> None:
    here.add_several(far.url, "onnxruntime, triton", doubling())
    engine = here.engine()
    far.forget_runs()
    assert (engine.infer("doubles", {"x": rows(1)})["y"] == 2 * rows(1)).all()
    assert far.rows() == []


def test_one_that_was_not_there_comes_later(here: Here, far: Triton) -> None:
    far.kill()
    here.add_several(far.url, "triton, onnxruntime", doubling(), connect_timeout_s="1")
    engine = here.engine()
    assert (engine.infer("doubles", {"x": rows(1)})["y"] == 2 * rows(1)).all()
    assert shown(engine, "headrace_model_backend") == {"triton": 0, "onnxruntime": 1}
    far.start()
    until(lambda: shown(engine, "headrace_model_backend")["triton"] == 1)
    assert (engine.infer("doubles", {"x": rows(2)})["y"] == 2 * rows(2)).all()
    assert far.rows() == [2]


def test_none_can_load(here: Here) -> None:
    url = f"127.0.0.1:{free_port()}"
    here.add_several(url, "onnxruntime, triton", None, connect_timeout_s="0.1")
    reason = reason_of(here.engine(), "doubles")
    assert "none of its backends can load it: onnxruntime: no file" in reason
    assert f"triton: model 'doubles': no Triton answers at {url}" in reason


@pytest.mark.parametrize("backends", ["", "onnxruntime", "onnxruntime, onnxruntime", "onnxruntime, several"])
def test_a_list_that_is_none(here: Here, backends: str) -> None:
    here.add_several("127.0.0.1:1", backends, doubling())
    assert f"parameter 'backends' is '{backends}'; it must name two backends or more" in reason_of(here.engine(), "doubles")


def test_models_that_are_not_the_same(here: Here, far: Triton) -> None:
    here.add_several(far.url, "onnxruntime, triton", sums())
    assert "its backends are not the same model: input" in reason_of(here.engine(), "doubles")


def test_shapes_may_be_known_to_one_of_them() -> None:
    def io(*shape: int, most: int | None = None) -> GraphIO:
        return GraphIO((GraphTensor("x", "FP32", shape),), (), most)

    assert merged("m", "b", io(-1, 4), io(-1, -1, most=8)) == io(-1, 4, most=8)
    with pytest.raises(InvalidRepository, match=r"input 'x' is FP32\[-1,5\] for 'b', and FP32\[-1,4\] for those before it"):
        merged("m", "b", io(-1, 4), io(-1, 5))


class _Member:
    """A backend and its session, scripted."""

    replayable = True
    io = GraphIO((GraphTensor("x", "FP32", (-1, 4)),), (GraphTensor("y", "FP32", (-1, 4)),), 16)

    def __init__(self, raises: Exception | None) -> None:
        self.raises, self.ran, self.is_closed, self.is_healthy = raises, 0, False, True

    def load(self, path: object, config: ModelConfig, device: Device) -> _Member:
        if isinstance(self.raises, InvalidRepository):
            raise self.raises
        return self

    def has_changed(self) -> bool:
        return False

    def statistics(self) -> list[ModelStatistics]:
        return []

    def run(self, batch: Batch) -> Outputs:
        self.ran += 1
        if self.raises is not None:
            raise self.raises
        return {"y": np.asarray(batch.tensors()["x"]) * 2}

    def close(self) -> None:
        self.is_closed = True


def engine_of(here: Here, members: Mapping[str, _Member]) -> Engine:
    (here.repository / "doubles/1").mkdir(parents=True)
    config = f'backend: "several"\n{parameters(backends=", ".join(members))}'
    (here.repository / "doubles/config.pbtxt").write_text(config)
    return here.engine(backends=members)


def test_only_a_batch_of_which_nothing_was_sent_is_given_to_the_next(here: Here) -> None:
    first, second = _Member(None), _Member(None)
    engine = engine_of(here, {"a": first, "b": second})
    first.ran = 0  # the warm-up
    first.raises = BackendFailed("it may have run")
    with pytest.raises(BackendFailed, match="it may have run"):
        engine.infer("doubles", {"x": rows(1)})
    assert second.ran == 0
    first.raises = BackendDown("doubles", "gone")
    assert (engine.infer("doubles", {"x": rows(1)})["y"] == 2 * rows(1)).all()
    assert second.ran == 1
    first.is_healthy = False
    ran = first.ran
    assert (engine.infer("doubles", {"x": rows(1)})["y"] == 2 * rows(1)).all()
    assert (first.ran, second.ran) == (ran, 2)
    second.raises = BackendDown("doubles", "gone, too")
    with pytest.raises(BackendDown, match="gone"):
        engine.infer("doubles", {"x": rows(1)})


def test_all_are_closed(here: Here) -> None:
    first, second, third = _Member(None), _Member(None), _Member(BackendUnreachable("not yet"))
    engine_of(here, {"a": first, "b": second, "c": third})
    here.stack.close()
    assert first.is_closed
    assert second.is_closed
