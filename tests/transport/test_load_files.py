"""Loading a model out of the request itself: a configuration and files, which are nobody's but the server's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from tritonclient.grpc import service_pb2 as pb

from headrace.engine.engine import ModelControl
from tests.build_models import add_model, optional_bias, sums
from tests.transport.serving import PATIENCE, Server, fails, serving, tensor
from tests.waiting import until

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
BIASED = [1, 2, 3]
BIAS = optional_bias().SerializeToString()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories go."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setattr("tempfile.tempdir", os.fspath(path))
    return path


@pytest.fixture
def explicit(transport: str, tmp_path: Path, scratch: Path) -> Iterator[Server]:
    add_model(tmp_path / "repository", "bias", optional_bias())
    with serving(transport, tmp_path / "repository", control=ModelControl("explicit", ("bias",))) as started:
        yield started


def bias(server: Server, model: str, version: str = "") -> list[float]:
    """What it answers for three zeros."""
    return server.client.infer(model, [tensor("x", [0, 0, 0], "FP32")], version).as_numpy("y").tolist()


def load(server: Server, model: str, config: Any = None, **files: bytes) -> None:
    server.client.load_model(model, config=json.dumps({} if config is None else config), files=files)


def is_gone(scratch: Path) -> bool:
    return not list(scratch.iterdir())


def test_a_model_that_is_in_no_repository(explicit: Server, scratch: Path) -> None:
    load(explicit, "new", **{"file:1/model.onnx": BIAS, "file:3/model.onnx": BIAS})
    assert bias(explicit, "new") == BIASED
    assert list(explicit.client.get_model_metadata("new").versions) == ["3"]
    (directory,) = scratch.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    index = {m.name: m.state for m in explicit.client.get_model_repository_index().models}
    assert index == {"bias": "READY", "new": "READY"}
    explicit.client.unload_model("new")
    until(lambda: is_gone(scratch))
    with fails(grpc.StatusCode.INTERNAL, "failed to load 'new', failed to poll from model repository"):
        explicit.client.load_model("new")


def test_files_instead_of_those_in_the_repository(explicit: Server, scratch: Path) -> None:
    assert bias(explicit, "bias") == BIASED
    config = {"max_batch_size": 4, "version_policy": {"all": {}}}
    load(
        explicit,
        "bias",
        config,
        **{"file:1/model.onnx": sums().SerializeToString(), "file:7/model.onnx": sums().SerializeToString()},
    )
    given = [tensor(name, [[1.5]], "FP32") for name in ("a", "b")]
    assert explicit.client.infer("bias", given, "7").as_numpy("sum").tolist() == [[3]]
    assert explicit.client.get_model_config("bias").config.max_batch_size == 4
    explicit.client.load_model("bias")
    assert bias(explicit, "bias") == BIASED
    with fails(NOT_FOUND, "Request for unknown model: 'bias' version 7 is not found"):
        bias(explicit, "bias", "7")
    until(lambda: is_gone(scratch))


def test_external_data_and_labels(explicit: Server, tmp_path: Path) -> None:
    large = sums()
    large.graph.node.add(op_type="Add", input=["a", "more"], output=["unused"])
    large.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1000, np.float32), "more"))
    del large.graph.node[-1:]
    onnx.save(large, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    config = {"max_batch_size": 4, "output": [{"name": "sum", "data_type": "TYPE_FP32", "dims": [-1], "label_filename": "l.txt"}]}
    config["output"].append({"name": "difference", "data_type": "TYPE_FP32", "dims": [-1]})
    files = {"1/model.onnx": (tmp_path / "m.onnx").read_bytes(), "1/weights.bin": (tmp_path / "weights.bin").read_bytes()}
    load(explicit, "large", config, **{f"file:{path}": content for path, content in files.items()}, **{"file:l.txt": b"only\n"})
    request = pb.ModelInferRequest(model_name="large")
    for name in ("a", "b"):
        request.inputs.add(name=name, datatype="FP32", shape=(1, 1), contents=pb.InferTensorContents(fp32_contents=[2]))
    request.outputs.add(name="sum", parameters={"classification": pb.InferParameter(int64_param=1)})
    (raw,) = explicit.stub.ModelInfer(request, timeout=PATIENCE).raw_output_contents
    assert raw[4:] == b"4.000000:0:only"


def test_a_load_that_fails_leaves_what_served(explicit: Server, scratch: Path) -> None:
    with pytest.raises(Exception, match="load failed for model 'bias': version 1 is at UNAVAILABLE state"):
        load(explicit, "bias", **{"file:1/model.onnx": b"no model"})
    assert bias(explicit, "bias") == BIASED
    until(lambda: is_gone(scratch))


def test_the_same_again_keeps_what_runs(explicit: Server, scratch: Path) -> None:
    for _ in range(2):
        load(explicit, "new", **{"file:1/model.onnx": BIAS})
        assert bias(explicit, "new") == BIASED
    until(lambda: len(list(scratch.iterdir())) == 1)


PATHS = ["/etc/passwd", "../x", "1/../../x", "", ".", "1//model.onnx", "./1/model.onnx", "1/", "a\0b"]


@pytest.mark.parametrize("path", PATHS)
def test_no_way_out_of_the_directory(explicit: Server, scratch: Path, path: str) -> None:
    told = f"load parameter 'file:{path}' must name a file inside the model directory, such as 'file:1/model.onnx'"
    with fails(INVALID, told):
        load(explicit, "new", **{"file:1/model.onnx": BIAS, f"file:{path}": b"x"})
    assert is_gone(scratch)
    with fails(NOT_FOUND, "Request for unknown model: 'new' is not found"):
        bias(explicit, "new")


@pytest.mark.parametrize("name", ["..", "a/b"])
def test_no_way_out_by_name(explicit: Server, scratch: Path, name: str) -> None:
    with fails(INVALID, f"invalid model name '{name}', model name must not contain path traversal characters"):
        load(explicit, name, **{"file:1/model.onnx": BIAS})
    assert is_gone(scratch)


def test_a_file_that_is_a_directory_of_another(explicit: Server, scratch: Path) -> None:
    with pytest.raises(Exception, match=r"load parameter 'file:1(/x)?' cannot be written: (Is|Not) a directory|File exists"):
        load(explicit, "new", **{"file:1": b"x", "file:1/x": b"x"})
    until(lambda: is_gone(scratch))
