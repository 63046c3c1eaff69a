"""Everything but inference over REST: every path, its answer, and that gRPC says the same."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as pb

from headrace.backends.fake import Script
from headrace.engine.engine import ModelControl
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.protocol.rest_calls import CALLS, Call, Told
from headrace.protocol.rest_json import message_to_json
from tests.rest.conftest import Serve
from tests.rest.resting import GOOD, Rest
from tests.transport.serving import ECHO

NOPE = "Request for unknown model: 'nope' is not found"
FULL = ModelConfig()
json_format.ParseDict(
    {
        "name": "m",
        "max_batch_size": 4,
        "version_policy": {"specific": {"versions": [1]}},
        "input": [{"name": "x", "dims": [2], "reshape": {"shape": [2]}}],
        "output": [{"name": "y", "dims": [2], "reshape": {"shape": [2]}}],
        "optimization": {
            "cuda": {"graph_spec": [{"input": {"x": {"dim": [2]}}, "graph_lower_bound": {"input": {"x": {"dim": [2]}}}}]}
        },
        "instance_group": [{"secondary_devices": [{"device_id": 3}]}],
        "dynamic_batching": {
            "max_queue_delay_microseconds": 5,
            "priority_levels": 2,
            "default_priority_level": 1,
            "default_queue_policy": {"default_timeout_microseconds": 6},
            "priority_queue_policy": {"1": {"default_timeout_microseconds": 7}},
        },
        "model_warmup": [{"name": "w", "inputs": {"x": {"dims": [2]}}}],
        "parameters": {"12": {"string_value": "34"}},
    },
    FULL,
)


def strings(value: Any) -> list[str]:
    """Every text in a JSON value that is a whole number, with its place."""
    found: list[str] = []

    def walk(value: Any, at: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{at}.{key}")
        elif isinstance(value, list):
            for item in value:
                walk(item, at)
        elif isinstance(value, str) and value.lstrip("-").isdecimal():
            found.append(f"{at}={value}")

    walk(value, "")
    return found


def test_64_bits_are_numbers_in_a_configuration() -> None:
    told = message_to_json(FULL)
    assert strings(told) == [".parameters.12.string_value=34"]
    assert told["dynamic_batching"]["priority_queue_policy"]["1"]["default_timeout_microseconds"] == 7
    assert told["optimization"]["cuda"]["graph_spec"][0]["graph_lower_bound"]["input"]["x"]["dim"] == [2]
    assert json_format.ParseDict(told, ModelConfig()) == FULL
    assert told["default_model_filename"] == ""  # printed, though it is the default


def test_health(rest: Rest) -> None:
    # `broken` cannot be loaded, so the server is live and not ready.
    for path, status in (("live", 200), ("ready", 400)):
        for method in ("GET", "HEAD"):
            reply = rest.ask(method, f"/v2/health/{path}")
            assert (reply.status, reply.body) == (status, b"")
    assert rest.client.is_server_live()
    assert not rest.client.is_server_ready()


def test_server_metadata(rest: Rest) -> None:
    over = rest.grpc.stub.ServerMetadata(pb.ServerMetadataRequest())
    assert rest.client.get_server_metadata() == {
        "name": over.name,
        "version": over.version,
        "extensions": list(over.extensions),
    }


@pytest.mark.parametrize("version", ["", "1"])
def test_model_metadata_and_readiness(rest: Rest, version: str) -> None:
    told = rest.client.get_model_metadata("m", version)
    del told["properties"]
    assert told == {
        "name": "m",
        "versions": ["1"],
        "platform": "fake",
        "inputs": [
            {"name": "a", "datatype": "INT32", "shape": [-1, 3]},
            {"name": "s", "datatype": "BYTES", "shape": [-1, -1]},
        ],
        "outputs": [
            {"name": "y", "datatype": "INT32", "shape": [-1, 3]},
            {"name": "t", "datatype": "BYTES", "shape": [-1, -1]},
        ],
    }
    assert rest.client.is_model_ready("m", version)
    assert not rest.client.is_model_ready("broken", version)


@pytest.mark.parametrize("version", ["", "1"])
def test_model_configuration(rest: Rest, version: str) -> None:
    told = rest.client.get_model_config("m", version)
    over = rest.grpc.stub.ModelConfig(pb.ModelConfigRequest(name="m", version=version)).config
    assert told == json_format.MessageToDict(
        over, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    ) | {
        "input": told["input"],
        "output": told["output"],
        "dynamic_batching": told["dynamic_batching"],
    }
    assert told["input"][0]["dims"] == [3]
    assert strings(told) == []


def test_statistics(rest: Rest) -> None:
    before, _ = rest.client.get_inference_statistics("m")["model_stats"], rest.infer("m", GOOD)
    rest.grpc.wait_settled("m")
    (after,) = rest.client.get_inference_statistics("m", "1")["model_stats"]
    assert after["inference_count"] == before[0]["inference_count"] + 1
    assert after["inference_stats"]["success"]["count"] == before[0]["inference_stats"]["success"]["count"] + 1
    assert strings(after) == [".version=1"]
    everyone = rest.client.get_inference_statistics()["model_stats"]
    assert {"m", "raw"} < {one["name"] for one in everyone}


def test_index(rest: Rest) -> None:
    index = rest.client.get_model_repository_index()
    assert {"name": "m", "version": "1", "state": "READY"} in index
    assert [one["state"] for one in index if one["name"] == "broken"] == ["UNAVAILABLE"]
    ready = rest.ask("POST", "/v2/repository/index", {"ready": True}).json
    assert {one["name"] for one in ready} == {one["name"] for one in index} - {"broken"}


def test_load_and_unload(serve: Serve) -> None:
    rest = serve({"m": (ECHO, Script())}, control=ModelControl("explicit", (), 1.0))
    assert rest.client.get_model_repository_index() == [{"name": "m"}]
    rest.client.load_model("m")
    assert rest.client.get_model_repository_index() == [{"name": "m", "version": "1", "state": "READY"}]
    config = (
        '{"name": "m", "backend": "fake", "max_batch_size": 2, "input": [{"name": "x", "data_type": "TYPE_INT32", "dims": [-1]}]'
    )
    rest.client.load_model("m", config=config + ', "output": [{"name": "y", "data_type": "TYPE_INT32", "dims": [-1]}]}')
    assert rest.client.get_model_config("m")["max_batch_size"] == 2
    rest.client.unload_model("m", unload_dependents=True)
    assert rest.client.get_model_repository_index() == [
        {"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
    ]
    load, unload = "/v2/repository/models/m/load", "/v2/repository/models/m/unload"
    for path, parameters, told in (
        (load, {"config": 1}, (400, "invalid value type for load parameter 'config', expected string_param.")),
        (load, {"k": "v"}, (400, "unrecognized load parameter 'k'.")),
        (load, {"file:1/x": "???"}, (400, "Unable to parse 'file:1/x': it must be base64")),
        (
            load,
            {"config": []},
            (400, "invalid value type for parameter 'config', expected text, a whole number, or true or false."),
        ),
        (unload, {"unload_dependents": 1}, (400, "invalid value type for 'unload_dependents' parameter, expected bool_param.")),
    ):
        assert rest.ask("POST", path, {"parameters": parameters}).error == told
    missing = rest.ask("POST", "/v2/repository/models/nope/load")
    assert missing.error == (500, "failed to load 'nope', failed to poll from model repository")


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", "/v2/models/nope", 404, NOPE),
        ("GET", "/v2/models/nope/ready", 404, NOPE),
        ("GET", "/v2/models/nope/config", 404, NOPE),
        ("GET", "/v2/models/m/versions/9/config", 404, "Request for unknown model: 'm' version 9 is not found"),
        ("GET", "/v2/models/broken/versions/1/ready", 503, "Request for unknown model: 'broken' version 1 is not at ready state"),
        ("GET", "/v2/models/nope/stats", 400, "requested model 'nope' is not available"),
        ("GET", "/v2/models/m/versions/9/stats", 400, "requested model version is not available for model 'm'"),
        ("POST", "/v2/repository/models/m/load", 503, "explicit model load / unload is not allowed if polling is enabled"),
        ("POST", "/v2/models/m/generate", 501, "generate is not implemented by this server yet; use infer"),
        (
            "POST",
            "/v2/models/m/versions/1/generate_stream",
            501,
            "generate_stream is not implemented by this server yet; use infer",
        ),
        ("GET", "/", 404, "Not Found"),
        ("GET", "/v2/", 404, "Not Found"),
        ("GET", "/v2/models/m/versions/x", 404, "Not Found"),
        ("GET", "/v2/models/m/nothing", 404, "Not Found"),
        ("GET", "/v2/models/a%2Fb/x/ready", 404, "Not Found"),
        ("POST", "/v2", 405, "Method Not Allowed"),
        ("GET", "/v2/models/m/infer", 405, "Method Not Allowed"),
        ("DELETE", "/v2/logging", 405, "Method Not Allowed"),
    ],
)
def test_refused(rest: Rest, method: str, path: str, status: int, told: str) -> None:
    assert rest.ask(method, path).error == (status, told)


def test_methods_that_are_allowed_are_told(rest: Rest) -> None:
    assert sorted(rest.ask("PUT", "/v2/logging").headers["allow"].split(", ")) == ["GET", "HEAD", "POST"]


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("repository/index", b"[", "failed to parse the request JSON buffer: Expecting value: line 1 column 2 (char 1)"),
        ("repository/index", {"ready": 1}, "Unable to parse 'ready': it must be true or false"),
        ("repository/models/m/load", {"parameters": 1}, "Unable to parse 'parameters': it must be an object"),
        (
            "logging",
            {"log_info": []},
            "Unable to parse log setting 'log_info': it must be text, true or false, or a whole number",
        ),
        ("trace/setting", {"k": {}}, "Unable to parse trace setting 'k': it must be text, a list of texts, or null"),
        ("trace/setting", {"k": "\ud800"}, "the request JSON holds text that is not Unicode: half of a surrogate pair"),
        (
            "systemsharedmemory/region/r/register",
            {"offset": -1},
            "Unable to parse 'offset': it must be a whole number that is not negative",
        ),
        ("systemsharedmemory/region/r/register", {"key": 1}, "Unable to parse 'key': it must be text"),
        ("cudasharedmemory/region/r/register", {"raw_handle": {"b64": "?"}}, "Unable to parse 'raw_handle': it must be base64"),
    ],
)
def test_bodies_that_are_no_good(rest: Rest, path: str, body: Any, told: str) -> None:
    assert rest.ask("POST", f"/v2/{path}", body).error == (400, told)


# The calls that control does not answer everywhere yet: what is asked, and what would be told.

ASKED = [
    ("GET", "/v2/trace/setting", {}, {}, pb.TraceSettingRequest()),
    ("GET", "/v2/logging", {}, {}, pb.LogSettingsRequest()),
    (
        "POST",
        "/v2/models/{model}/trace/setting",
        {"model": "m"},
        {"trace_level": ["TIMESTAMPS"], "trace_rate": "5", "trace_count": None},
        pb.TraceSettingRequest(
            model_name="m",
            settings={
                "trace_level": pb.TraceSettingRequest.SettingValue(value=["TIMESTAMPS"]),
                "trace_rate": pb.TraceSettingRequest.SettingValue(value=["5"]),
                "trace_count": pb.TraceSettingRequest.SettingValue(),
            },
        ),
    ),
    (
        "POST",
        "/v2/logging",
        {},
        {"log_info": False, "log_verbose_level": 2, "log_format": "ISO8601"},
        pb.LogSettingsRequest(
            settings={
                "log_info": pb.LogSettingsRequest.SettingValue(bool_param=False),
                "log_verbose_level": pb.LogSettingsRequest.SettingValue(uint32_param=2),
                "log_format": pb.LogSettingsRequest.SettingValue(string_param="ISO8601"),
            }
        ),
    ),
    (
        "POST",
        "/v2/systemsharedmemory/region/{region}/register",
        {"region": "r"},
        {"key": "/k", "offset": 4, "byte_size": 8},
        pb.SystemSharedMemoryRegisterRequest(name="r", key="/k", offset=4, byte_size=8),
    ),
    (
        "POST",
        "/v2/cudasharedmemory/region/{region}/register",
        {"region": "r"},
        {"raw_handle": {"b64": base64.b64encode(b"\0\1").decode()}, "device_id": 1, "byte_size": 8},
        pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=b"\0\1", device_id=1, byte_size=8),
    ),
    (
        "POST",
        "/v2/systemsharedmemory/region/{region}/unregister",
        {"region": "r"},
        {},
        pb.SystemSharedMemoryUnregisterRequest(name="r"),
    ),
    ("GET", "/v2/cudasharedmemory/status", {}, {}, pb.CudaSharedMemoryStatusRequest()),
    (
        "POST",
        "/v2/repository/models/{model}/load",
        {"model": "m"},
        {"parameters": {"config": "{}", "file:1/x": base64.b64encode(b"\0\1").decode()}},
        pb.RepositoryModelLoadRequest(
            model_name="m",
            parameters={
                "config": pb.ModelRepositoryParameter(string_param="{}"),
                "file:1/x": pb.ModelRepositoryParameter(bytes_param=b"\0\1"),
            },
        ),
    ),
]

TOLD = [
    (
        "/v2/trace/setting",
        pb.TraceSettingResponse(
            settings={
                "trace_level": pb.TraceSettingResponse.SettingValue(value=["TIMESTAMPS", "TENSORS"]),
                "trace_rate": pb.TraceSettingResponse.SettingValue(value=["5"]),
            }
        ),
        {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "5"},
    ),
    (
        "/v2/logging",
        pb.LogSettingsResponse(
            settings={
                "log_info": pb.LogSettingsResponse.SettingValue(bool_param=True),
                "log_verbose_level": pb.LogSettingsResponse.SettingValue(uint32_param=0),
                "log_file": pb.LogSettingsResponse.SettingValue(string_param=""),
            }
        ),
        {"log_file": "", "log_info": True, "log_verbose_level": 0},
    ),
    (
        "/v2/systemsharedmemory/status",
        pb.SystemSharedMemoryStatusResponse(
            regions={"r": pb.SystemSharedMemoryStatusResponse.RegionStatus(name="r", key="/k", offset=4, byte_size=8)}
        ),
        [{"name": "r", "key": "/k", "offset": 4, "byte_size": 8}],
    ),
    (
        "/v2/cudasharedmemory/region/{region}/status",
        pb.CudaSharedMemoryStatusResponse(
            regions={"r": pb.CudaSharedMemoryStatusResponse.RegionStatus(name="r", device_id=1, byte_size=8)}
        ),
        [{"name": "r", "device_id": 1, "byte_size": 8}],
    ),
]


def call(http: str, path: str) -> Call:
    return next(one for one in CALLS if (one.http, one.path) == (http, path))


@pytest.mark.parametrize(("http", "path", "given", "body", "message"), ASKED, ids=[f"{one[0]} {one[1]}" for one in ASKED])
def test_what_is_asked(http: str, path: str, given: Any, body: Any, message: Any) -> None:
    asked = call(http, path).ask(given, body)
    assert type(message).FromString(asked.SerializeToString()) == message


@pytest.mark.parametrize(("path", "message", "value"), TOLD, ids=[one[0] for one in TOLD])
def test_what_is_told(path: str, message: Any, value: Any) -> None:
    assert call("GET", path).answer(message.SerializeToString()) == Told(200, value)


def test_a_model_that_is_not_well() -> None:
    not_ready = pb.ModelReadyResponse(ready=False).SerializeToString()
    assert call("GET", "/v2/models/{model}/ready").answer(not_ready) == Told(400, {"error": "Model version not ready"})
