"""Everything but inference: what clients and tools ask a server about itself, its models and their statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from headrace import __version__
from headrace.backends.base import Batch
from headrace.backends.fake import Gate, Script
from headrace.clock import SECOND
from headrace.engine.engine import Engine, ModelControl
from headrace.protocol.health_pb2 import HealthCheckRequest, HealthCheckResponse
from headrace.transport.control import EXTENSIONS, Control
from headrace.transport.ways import open_transport
from tests.build_models import add_model, lookup, optional_bias, sums
from tests.transport.serving import (
    ECHO,
    PATIENCE,
    Asked,
    Serve,
    Server,
    fails,
    fill,
    serving,
    tensor,
)
from tests.waiting import until

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
NOT_FOUND = grpc.StatusCode.NOT_FOUND
INTERNAL = grpc.StatusCode.INTERNAL
RAGGED = """
max_batch_size: 6
input { name: "a" data_type: TYPE_FP32 dims: [-1] }
input { name: "b" data_type: TYPE_FP32 dims: [-1] }
output { name: "sum" data_type: TYPE_FP32 dims: [-1] }
output { name: "difference" data_type: TYPE_FP32 dims: [-1] }
dynamic_batching { max_queue_delay_microseconds: 7 }
"""
BROKEN = ECHO + 'parameters { key: "answers" value { string_value: "many" } }'
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


def health(server: Server) -> int:
    payload = HealthCheckRequest(service="whatever").SerializeToString()
    return HealthCheckResponse.FromString(server.call("/grpc.health.v1.Health/Check", payload)).status


# -- metadata and configuration -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of ONNX models: batching and not, with two versions, and one that is broken."""
    repository: Path = tmp_path_factory.mktemp("repository")
    add_model(repository, "sums", sums(), RAGGED + "version_policy { all {} }")
    add_model(repository, "sums", sums(), version=3)
    add_model(repository, "bias", optional_bias())
    add_model(repository, "broken", lookup(), "max_batch_size: -1")
    with serving(transport, repository) as started:
        yield started


def test_server_metadata(described: Server) -> None:
    told = described.client.get_server_metadata()
    extensions = tuple(name for name in EXTENSIONS if name != "system_shared_memory")
    assert (told.name, told.version, tuple(told.extensions)) == ("headrace", __version__, extensions)
    # perf_analyzer reads statistics only from a server that says it has them.
    assert {"statistics", "model_configuration", "model_repository", "binary_tensor_data"} <= set(told.extensions)


def test_model_metadata(described: Server) -> None:
    told = described.client.get_model_metadata("sums")
    assert (told.name, list(told.versions), told.platform) == ("sums", ["1", "3"], "onnxruntime_onnx")
    assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [(name, "FP32", [-1, -1]) for name in ("a", "b")]
    assert [(t.name, t.datatype, list(t.shape)) for t in told.outputs] == [
        (name, "FP32", [-1, -1]) for name in ("sum", "difference")
    ]
    assert list(described.client.get_model_metadata("sums", "3").versions) == ["3"]


def test_metadata_of_a_model_that_does_not_batch_has_no_batch_dimension(described: Server) -> None:
    told = described.client.get_model_metadata("bias")
    assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [("x", "FP32", [3])]
    assert [(t.name, t.datatype, list(t.shape)) for t in told.outputs] == [("y", "FP32", [3])]


def test_config_is_normalised(described: Server) -> None:
    config = described.client.get_model_config("sums").config
    told = json_format.MessageToDict(config, preserving_proto_field_name=True)
    assert (config.name, config.backend, config.platform) == ("sums", "onnxruntime", "onnxruntime_onnx")
    assert (config.max_batch_size, config.default_model_filename) == (6, "model.onnx")
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    assert told["dynamic_batching"] == {"max_queue_delay_microseconds": "7", "preferred_batch_size": [6]}
    assert [(group["kind"], group["count"]) for group in told["instance_group"]] == [("KIND_CPU", 1)]
    assert [list(i.dims) for i in config.input] == [[-1], [-1]]


def test_a_model_without_configuration_tells_what_was_filled_in(described: Server) -> None:
    config = described.client.get_model_config("bias").config
    assert (config.name, config.backend, config.max_batch_size) == ("bias", "onnxruntime", 0)
    assert [(i.name, list(i.dims)) for i in config.input] == [("x", [3])]
    assert [(o.name, list(o.dims)) for o in config.output] == [("y", [3])]
    assert config.WhichOneof("scheduling_choice") is None


def test_what_perf_analyzer_compares(described: Server) -> None:
    """Every input and output of the configuration has its metadata."""
    for model in ("sums", "bias"):
        config, told = described.client.get_model_config(model).config, described.client.get_model_metadata(model)
        assert [i.name for i in config.input] == [i.name for i in told.inputs]
        assert [o.name for o in config.output] == [o.name for o in told.outputs]


def test_models_are_ready_by_name_and_version(described: Server) -> None:
    ready = described.client.is_model_ready
    assert [ready("sums"), ready("sums", "1"), ready("sums", "3"), ready("bias")] == [True] * 4


def test_index_of_a_repository(described: Server) -> None:
    everything = {(m.name, m.version): (m.state, m.reason) for m in described.client.get_model_repository_index().models}
    assert {key: state for key, (state, _) in everything.items()} == {
        ("sums", "1"): "READY",
        ("sums", "3"): "READY",
        ("bias", "1"): "READY",
        ("broken", ""): "UNAVAILABLE",
    }
    assert "max_batch_size" in everything["broken", ""][1]
    ready = pb.RepositoryIndexRequest(ready=True)
    assert {m.name for m in described.stub.RepositoryIndex(ready).models} == {"sums", "bias"}


def test_one_broken_model_makes_a_strict_server_not_ready(described: Server) -> None:
    assert described.client.is_server_live()
    assert not described.client.is_server_ready()
    assert health(described) == NOT_SERVING
    assert described.client.infer("bias", [tensor("x", [1, 1, 1], "FP32")]).as_numpy("y").tolist() == [2, 3, 4]


def test_unless_it_is_not_strict(serve: Serve, tmp_path: Path) -> None:
    fill(tmp_path / "repository", {"bad": (BROKEN, Script())})
    server = serve({"m": (ECHO, Script())}, strict_readiness=False)
    assert state(server)["bad"][1] == "UNAVAILABLE"
    assert server.client.is_server_ready()


# -- statistics ---------------------------------------------------------------------------------------------------------


def refuse_negative(batch: Batch) -> None:
    if (np.asarray(batch.tensors()["x"]) < 0).any():
        raise ValueError("a negative number")


def statistics(server: Server, model: str = "") -> dict[tuple[str, str], pb.ModelStatistics]:
    return {(s.name, s.version): s for s in server.client.get_inference_statistics(model).model_stats}


def test_statistics_add_up(serve: Serve) -> None:
    script = Script(fail=refuse_negative, execute_ns=1_000_000)
    server = serve({"m": (ECHO, script), "other": (ECHO, Script())})
    assert statistics(server, "m")["m", "1"].inference_count == 0
    for rows in (1, 2, 2, 3):
        server.client.infer("m", [tensor("x", [[1]] * rows)])
    with fails(INTERNAL, "a negative number"):
        server.client.infer("m", [tensor("x", [[-1]])])
    with fails(INVALID, "unexpected inference input 'z' for model 'm'"):
        server.client.infer("m", [tensor("z", [[1]])])
    server.wait_settled("m")
    stats = statistics(server)["m", "1"]
    inner = stats.inference_stats
    assert (stats.inference_count, stats.execution_count, inner.success.count) == (8, 4, 4)
    assert inner.fail.count == 1
    assert {d.count for d in (inner.queue, inner.compute_input, inner.compute_infer, inner.compute_output)} == {4}
    assert (inner.cache_hit.count, inner.cache_miss.count) == (0, 0)
    assert {b.batch_size: b.compute_infer.count for b in stats.batch_stats} == {1: 1, 2: 2, 3: 1}
    for batch in stats.batch_stats:
        assert batch.compute_input.count == batch.compute_infer.count == batch.compute_output.count
    assert sum(b.compute_infer.count for b in stats.batch_stats) == stats.execution_count
    assert sum(b.batch_size * b.compute_infer.count for b in stats.batch_stats) == stats.inference_count
    # Each batch had one request, so both ways of adding up see the same time; every execution took a millisecond.
    assert sum(b.compute_infer.ns for b in stats.batch_stats) == inner.compute_infer.ns >= 4_000_000
    stages = inner.queue.ns + inner.compute_input.ns + inner.compute_infer.ns + inner.compute_output.ns
    assert stages <= inner.success.ns < 4 * PATIENCE * SECOND
    assert stats.last_inference > 1_700_000_000_000
    assert statistics(server)["other", "1"].inference_count == 0


def test_compute_times_count_in_full_for_every_request_of_a_batch(serve: Serve) -> None:
    script = Script(execute_ns=2_000_000)
    server = serve({"m": (ECHO, script)})
    script.gate = gate = Gate()
    first = Asked(server, "m", [tensor("x", [[0]])])
    gate.wait_for(1)
    waiting = [Asked(server, "m", [tensor("x", [[1]])]) for _ in range(4)]
    until(lambda: server.waiting("m") == 4)
    gate.open()
    for asked in (first, *waiting):
        asked.result()
    server.wait_settled("m")
    stats = statistics(server, "m")["m", "1"]
    assert (stats.inference_count, stats.execution_count, stats.inference_stats.success.count) == (5, 2, 5)
    by_size = {b.batch_size: b.compute_infer.ns for b in stats.batch_stats}
    assert stats.inference_stats.compute_infer.ns == by_size[1] + 4 * by_size[4]


def test_statistics_per_version(described: Server) -> None:
    one = [tensor(name, [[1]], "FP32") for name in ("a", "b")]
    before = statistics(described, "sums")
    assert set(before) == {("sums", "1"), ("sums", "3")}
    for version in ("", "3", "1"):
        described.client.infer("sums", one, version)
    described.wait_settled("sums")
    after = statistics(described, "sums")
    gained = {key: after[key].inference_count - before[key].inference_count for key in after}
    assert gained == {("sums", "1"): 1, ("sums", "3"): 2}
    (only,) = described.client.get_inference_statistics("sums", "3").model_stats
    assert only.version == "3"
    assert {name for name, _ in statistics(described)} == {"sums", "bias"}


# -- loading ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def explicit(serve: Serve) -> Server:
    return serve({"m": (ECHO, Script()), "n": (ECHO, Script())}, control=ModelControl("explicit", ("m",)))


def state(server: Server) -> dict[str, tuple[str, str, str]]:
    return {m.name: (m.version, m.state, m.reason) for m in server.client.get_model_repository_index().models}


def test_load_and_unload(explicit: Server) -> None:
    x = [tensor("x", [[1]])]
    assert state(explicit) == {"m": ("1", "READY", ""), "n": ("", "", "")}
    assert explicit.client.is_server_ready()
    with fails(NOT_FOUND, "Request for unknown model: 'n' is not found"):
        explicit.client.infer("n", x)
    explicit.client.load_model("n")
    assert explicit.client.infer("n", x).as_numpy("y").tolist() == [[1]]
    explicit.client.unload_model("m")
    explicit.client.unload_model("m", unload_dependents=True)
    assert state(explicit) == {"m": ("1", "UNAVAILABLE", "unloaded"), "n": ("1", "READY", "")}
    assert explicit.client.is_server_ready()
    with fails(NOT_FOUND, "Request for unknown model: 'm' has no available versions"):
        explicit.client.infer("m", x)
    explicit.client.load_model("m")
    assert explicit.client.infer("m", x).as_numpy("y").tolist() == [[1]]


def test_unloading_what_was_never_loaded_is_fine(explicit: Server) -> None:
    explicit.client.unload_model("n")
    explicit.client.unload_model("nobody")
    assert state(explicit) == {"m": ("1", "READY", ""), "n": ("", "", "")}


def test_a_load_with_a_configuration_of_its_own(explicit: Server) -> None:
    config = {
        "backend": "fake",
        "max_batch_size": 2,
        "input": [{"name": "x", "data_type": "TYPE_INT32", "dims": [-1]}],
        "output": [{"name": "y", "data_type": "TYPE_INT32", "dims": [-1]}],
    }
    explicit.client.load_model("m", config=json.dumps(config))
    assert explicit.client.get_model_config("m").config.max_batch_size == 2
    with fails(INVALID, "[request id: r] inference request batch-size must be <= 2 for 'm'"):
        explicit.client.infer("m", [tensor("x", [[1]] * 3)], request_id="r")
    explicit.client.load_model("m")
    assert explicit.client.get_model_config("m").config.max_batch_size == 8


REASON = "parameter 'answers' of fake model 'bad' is 'many'; it must be a whole number"
MEANT = pb.ModelRepositoryParameter
LOADS = {
    "not there": ("nobody", {}, INTERNAL, "failed to load 'nobody', failed to poll from model repository"),
    "broken": ("bad", {}, INVALID, f"load failed for model 'bad': version 1 is at UNAVAILABLE state: {REASON};\n"),
    "no name": ("", {}, INVALID, "Model name cannot be empty. Please enter a valid name to deploy."),
    "a path": (
        "a/b",
        {},
        INVALID,
        "invalid model name 'a/b', model name must not contain path traversal characters",
    ),
    "a parent": ("..", {}, INVALID, "invalid model name '..', model name must not contain path traversal characters"),
    "config type": (
        "m",
        {"config": MEANT(bool_param=True)},
        INVALID,
        "invalid value type for load parameter 'config', expected string_param.",
    ),
    "file type": (
        "m",
        {"file:1/model.onnx": MEANT(string_param="x")},
        INVALID,
        "invalid value type for load parameter 'file:1/model.onnx', expected bytes_param.",
    ),
    "file without config": (
        "m",
        {"file:1/model.onnx": MEANT(bytes_param=b"x")},
        INVALID,
        "load parameters 'file:<version>/<path>' need the parameter 'config', too",
    ),
    "unknown parameter": ("m", {"k": MEANT(bool_param=True)}, INVALID, "unrecognized load parameter 'k'."),
}


@pytest.mark.parametrize("case", LOADS)
def test_a_load_that_fails(explicit: Server, tmp_path: Path, case: str) -> None:
    name, parameters, code, told = LOADS[case]
    fill(tmp_path / "repository", {"bad": (BROKEN, Script())})
    with fails(code, told):
        explicit.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name, parameters=parameters), timeout=PATIENCE)
    assert explicit.client.infer("m", [tensor("x", [[1]])]).as_numpy("y").tolist() == [[1]]


def test_an_unload_parameter_of_the_wrong_type(explicit: Server) -> None:
    request = pb.RepositoryModelUnloadRequest(model_name="m", parameters={"unload_dependents": MEANT(int64_param=1)})
    with fails(INVALID, "invalid value type for 'unload_dependents' parameter, expected bool_param."):
        explicit.stub.RepositoryModelUnload(request, timeout=PATIENCE)
    assert explicit.client.is_model_ready("m")


# -- life ---------------------------------------------------------------------------------------------------------------


def test_ready_and_health_on_the_way_down(serve: Serve) -> None:
    server = serve({"m": (ECHO, Script())})
    x = [tensor("x", [[1]])]
    assert (server.client.is_server_live(), server.client.is_server_ready(), health(server)) == (True, True, SERVING)
    server.engine.unready()
    assert (server.client.is_server_live(), server.client.is_server_ready(), health(server)) == (True, False, NOT_SERVING)
    # The grace: balancers have not noticed yet, so requests are still answered.
    assert server.client.infer("m", x).as_numpy("y").tolist() == [[1]]
    server.transport.stop_accepting()
    with fails(UNAVAILABLE, "GRPC server is shutting down and has stopped accepting new requests."):
        server.client.infer("m", x)
    assert server.client.is_server_live()
    server.engine.close()
    for ask in (server.client.is_server_live, server.client.is_server_ready, lambda: health(server)):
        with fails(UNAVAILABLE, "Server exiting"):
            ask()


def test_what_was_accepted_is_answered_while_draining(serve: Serve) -> None:
    script = Script()
    server = serve({"m": (ECHO, script)})
    script.gate = gate = Gate()
    first = Asked(server, "m", [tensor("x", [[0]])])
    gate.wait_for(1)
    asked = [first, *(Asked(server, "m", [tensor("x", [[value]])]) for value in (1, 2))]
    until(lambda: server.waiting("m") == 2)
    server.transport.stop_accepting()
    assert not server.engine.drain(server.engine.clock.now())
    gate.open()
    assert server.engine.drain(server.engine.clock.now() + int(PATIENCE * SECOND))
    assert [one.result().as_numpy("y").tolist() for one in asked] == [[[0]], [[1]], [[2]]]


def test_before_the_models_are_loaded(transport: str, tmp_path: Path) -> None:
    add_model(tmp_path, "m", None, ECHO)
    way_in = open_transport(transport, "127.0.0.1:0")
    engine = Engine(tmp_path, queues=way_in.queues)
    way_in.start(engine.routes, Control(engine))
    try:
        with grpc.insecure_channel(way_in.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert not stub.ServerLive(pb.ServerLiveRequest()).live
            assert not stub.ServerReady(pb.ServerReadyRequest()).ready
            engine.start()
            assert stub.ServerLive(pb.ServerLiveRequest()).live
            assert stub.ServerReady(pb.ServerReadyRequest()).ready
    finally:
        way_in.close(0)
        engine.close()


def test_reflection(serve: Serve) -> None:
    server = serve({"m": (ECHO, Script())})
    database = ProtoReflectionDescriptorDatabase(server.channel)
    services = set(database.get_services())
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services
    for symbol in ("inference.GRPCInferenceService", "inference.ModelInferRequest", "grpc.health.v1.Health"):
        described = database.FindFileContainingSymbol(symbol)
        assert database.FindFileByName(described.name) == described
        found = {f"{described.package}.{thing.name}" for thing in (*described.service, *described.message_type)}
        assert symbol in found
    with pytest.raises(KeyError):
        database.FindFileContainingSymbol("inference.Nothing")


def test_control_calls_are_answered_while_every_instance_is_busy(serve: Serve) -> None:
    script = Script()
    server = serve({"m": (ECHO, script)})
    script.gate = gate = Gate()
    running = Asked(server, "m", [tensor("x", [[0]])])
    gate.wait_for(1)
    waiting = [Asked(server, "m", [tensor("x", [[value]])]) for value in range(1, 4)]
    until(lambda: server.waiting("m") == 3)
    client = server.client
    assert client.is_server_live(client_timeout=PATIENCE)
    assert client.is_server_ready(client_timeout=PATIENCE)
    assert client.is_model_ready("m", client_timeout=PATIENCE)
    assert client.get_model_metadata("m", client_timeout=PATIENCE).name == "m"
    assert client.get_model_config("m", client_timeout=PATIENCE).config.max_batch_size == 8
    assert client.get_inference_statistics("m", client_timeout=PATIENCE).model_stats[0].name == "m"
    assert [model.name for model in client.get_model_repository_index(client_timeout=PATIENCE).models] == ["m"]
    assert client.get_trace_settings(client_timeout=PATIENCE).settings
    assert HealthCheckResponse.FromString(server.call("/grpc.health.v1.Health/Check", b"")).status == HealthCheckResponse.SERVING
    assert ProtoReflectionDescriptorDatabase(server.channel).get_services()
    assert server.waiting("m") == 3
    gate.open()
    assert [one.result().as_numpy("y").tolist() for one in (running, *waiting)] == [[[0]], [[1]], [[2]], [[3]]]
