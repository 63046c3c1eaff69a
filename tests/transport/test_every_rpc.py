"""Every call of the service has a case that goes well and one that does not: what is added without them fails here.

The service is walked by its descriptor. What the calls do in detail is in the files beside this one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from headrace.backends.fake import Script
from headrace.engine.engine import ModelControl
from headrace.protocol.health_pb2 import HealthCheckRequest, HealthCheckResponse
from headrace.protocol.pool import POOL
from tests.build_models import optional_bias
from tests.transport.serving import ECHO, PATIENCE, SERVICE, Server, fails, fill, message, serving

Code = grpc.StatusCode
JUNK = "the 1 bytes received are not a ServerMetadataRequest message"
UNKNOWN = "Request for unknown model: 'z' is not found"
NEVER_GO_WELL = frozenset({"CudaSharedMemoryRegister"})
"""Calls that this server only ever refuses, and says why."""
HEALTH = "grpc.health.v1.Health"
SEGMENT = f"headrace-test-{os.getpid()}-every"
REGION = pb.SystemSharedMemoryRegisterRequest(name="r", key=SEGMENT, byte_size=8)


class Good(NamedTuple):
    """A request, and whether the answer is right."""

    request: Any
    is_right: Callable[[Any], bool]


class Bad(NamedTuple):
    """A request, or bytes that are none, and how it fails at a server that is `open`, `closed`, or has it `disabled`."""

    request: Any
    code: grpc.StatusCode
    told: str
    server: str = "open"


def infer(model: str = "m") -> pb.ModelInferRequest:
    return message(model, (("x", "INT32", (1, 1)),), (b"\7\0\0\0",))


def setting(**values: str) -> pb.TraceSettingRequest:
    return pb.TraceSettingRequest(settings={k: pb.TraceSettingRequest.SettingValue(value=[v]) for k, v in values.items()})


def log_setting(**value: Any) -> pb.LogSettingsRequest:
    return pb.LogSettingsRequest(settings={"log_error": pb.LogSettingsRequest.SettingValue(**value)})


def new_model(config: str) -> pb.RepositoryModelLoadRequest:
    request = pb.RepositoryModelLoadRequest(model_name="new")
    request.parameters["config"].string_param = config
    request.parameters["file:1/model.onnx"].bytes_param = optional_bias().SerializeToString()
    return request


EXITING = Bad(None, Code.UNAVAILABLE, "Server exiting", "closed")
CASES: dict[str, tuple[Good | None, Bad]] = {
    "ServerLive": (Good(pb.ServerLiveRequest(), lambda a: a.live), EXITING._replace(request=pb.ServerLiveRequest())),
    "ServerReady": (Good(pb.ServerReadyRequest(), lambda a: a.ready), EXITING._replace(request=pb.ServerReadyRequest())),
    "ServerMetadata": (
        Good(pb.ServerMetadataRequest(), lambda a: a.name == "headrace"),
        Bad(b"\xff", Code.INVALID_ARGUMENT, JUNK),
    ),
    "ModelReady": (
        Good(pb.ModelReadyRequest(name="m"), lambda a: a.ready),
        Bad(pb.ModelReadyRequest(name="z"), Code.NOT_FOUND, UNKNOWN),
    ),
    "ModelMetadata": (
        Good(pb.ModelMetadataRequest(name="m"), lambda a: a.inputs[0].name == "x"),
        Bad(pb.ModelMetadataRequest(name="z"), Code.NOT_FOUND, UNKNOWN),
    ),
    "ModelInfer": (
        Good(infer(), lambda a: list(a.raw_output_contents) == [b"\7\0\0\0"]),
        Bad(infer("z"), Code.NOT_FOUND, UNKNOWN),
    ),
    "ModelStreamInfer": (
        Good(infer(), lambda a: list(a.infer_response.raw_output_contents) == [b"\7\0\0\0"]),
        Bad(infer("z"), Code.OK, UNKNOWN),  # in the stream, which itself ends well
    ),
    "ModelConfig": (
        Good(pb.ModelConfigRequest(name="m"), lambda a: a.config.max_batch_size == 8),
        Bad(pb.ModelConfigRequest(name="z"), Code.NOT_FOUND, UNKNOWN),
    ),
    "ModelStatistics": (
        Good(pb.ModelStatisticsRequest(), lambda a: [s.name for s in a.model_stats] == ["m"]),
        Bad(pb.ModelStatisticsRequest(name="z"), Code.INVALID_ARGUMENT, "requested model 'z' is not available"),
    ),
    "RepositoryIndex": (
        Good(pb.RepositoryIndexRequest(), lambda a: [m.name for m in a.models] == ["m"]),
        Bad(
            pb.RepositoryIndexRequest(repository_name="r"),
            Code.UNIMPLEMENTED,
            "'repository_name' specification is not supported",
        ),
    ),
    "RepositoryModelLoad": (
        Good(new_model(json.dumps({"max_batch_size": 0})), lambda a: True),
        Bad(
            pb.RepositoryModelLoadRequest(model_name="z"),
            Code.INTERNAL,
            "failed to load 'z', failed to poll from model repository",
        ),
    ),
    "RepositoryModelUnload": (
        Good(pb.RepositoryModelUnloadRequest(model_name="m"), lambda a: True),
        Bad(
            pb.RepositoryModelUnloadRequest(repository_name="r"),
            Code.UNIMPLEMENTED,
            "'repository_name' specification is not supported",
        ),
    ),
    "SystemSharedMemoryStatus": (
        Good(pb.SystemSharedMemoryStatusRequest(), lambda a: list(a.regions) == ["there"]),
        Bad(
            pb.SystemSharedMemoryStatusRequest(name="z"),
            Code.NOT_FOUND,
            "Unable to find system shared memory region: 'z'",
        ),
    ),
    "SystemSharedMemoryRegister": (
        Good(REGION, lambda a: True),
        Bad(
            pb.SystemSharedMemoryRegisterRequest(name="there", key=SEGMENT, byte_size=8),
            Code.ALREADY_EXISTS,
            "shared memory region 'there' already in manager",
        ),
    ),
    "SystemSharedMemoryUnregister": (
        Good(pb.SystemSharedMemoryUnregisterRequest(name="there"), lambda a: True),
        Bad(
            pb.SystemSharedMemoryUnregisterRequest(name="there"),
            Code.UNIMPLEMENTED,
            "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.",
            "disabled",
        ),
    ),
    "CudaSharedMemoryStatus": (
        Good(pb.CudaSharedMemoryStatusRequest(), lambda a: not a.regions),
        Bad(pb.CudaSharedMemoryStatusRequest(name="z"), Code.NOT_FOUND, "Unable to find cuda shared memory region: 'z'"),
    ),
    "CudaSharedMemoryRegister": (
        None,
        Bad(
            pb.CudaSharedMemoryRegisterRequest(name="r", byte_size=8),
            Code.UNIMPLEMENTED,
            "failed to register CUDA shared memory region: 'r', GPUs not supported",
        ),
    ),
    "CudaSharedMemoryUnregister": (
        Good(pb.CudaSharedMemoryUnregisterRequest(), lambda a: True),
        Bad(
            pb.CudaSharedMemoryUnregisterRequest(name="r"),
            Code.UNIMPLEMENTED,
            "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.",
            "disabled",
        ),
    ),
    "TraceSetting": (
        Good(setting(trace_rate="7"), lambda a: list(a.settings["trace_rate"].value) == ["7"]),
        Bad(setting(trace_rate="x"), Code.INVALID_ARGUMENT, "Unable to parse 'trace_rate', got: x"),
    ),
    "LogSettings": (
        Good(pb.LogSettingsRequest(), lambda a: a.settings["log_error"].bool_param),
        Bad(log_setting(string_param="x"), Code.INVALID_ARGUMENT, "expect boolean for 'log_error'"),
    ),
    "Check": (
        Good(HealthCheckRequest(), lambda a: a.status == HealthCheckResponse.SERVING),
        EXITING._replace(request=HealthCheckRequest()),
    ),
}


def methods() -> Iterator[tuple[str, str]]:
    """(name, full name) of every call there is."""
    for service in (SERVICE.strip("/"), HEALTH):
        for method in POOL.FindServiceByName(service).methods:
            yield method.name, f"/{service}/{method.name}"


PATHS = dict(methods())


Start = Callable[[bool], Server]


@pytest.fixture
def start(transport: str, tmp_path: Path) -> Iterator[Start]:
    """Starts a server whose clients may register shared memory, or may not."""
    segment = Path("/dev/shm") / SEGMENT
    segment.write_bytes(bytes(8))
    fake = fill(tmp_path, {"m": (ECHO, Script())})
    with ExitStack() as stack:
        stack.callback(segment.unlink)

        def serve(allow: bool) -> Server:
            control = ModelControl("explicit", ("m",))
            server = stack.enter_context(serving(transport, tmp_path, {"fake": fake}, control=control, allow_client_shm=allow))
            if allow:
                server.client.register_system_shared_memory("there", SEGMENT, 8)
            return server

        yield serve


def converse(server: Server, request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
    """A stream of one request."""
    (answer,) = server.stub.ModelStreamInfer(iter([request]), timeout=PATIENCE)
    if answer.error_message:
        raise InferenceServerException(answer.error_message, str(Code.OK))
    return answer


def call(server: Server, method: str, request: Any) -> Any:
    if method == "ModelStreamInfer":
        return converse(server, request)
    answer = HealthCheckResponse if method == "Check" else getattr(pb, f"{method}Response")
    payload = request if isinstance(request, bytes) else request.SerializeToString()
    return answer.FromString(server.call(PATHS[method], payload))


@pytest.mark.part("unit")
def test_every_call_has_its_cases() -> None:
    assert set(PATHS) == set(CASES)
    assert {method for method, (good, _) in CASES.items() if good is None} == NEVER_GO_WELL


@pytest.mark.parametrize("method", [method for method, (good, _) in CASES.items() if good])
def test_it_goes_well(start: Start, method: str) -> None:
    good, _ = CASES[method]
    assert good is not None
    assert good.is_right(call(start(True), method, good.request))


@pytest.mark.parametrize("method", CASES)
def test_it_says_what_is_wrong(start: Start, method: str) -> None:
    _, bad = CASES[method]
    server = start(bad.server != "disabled")
    if bad.server == "closed":
        server.engine.close()
    with fails(bad.code, bad.told):
        call(server, method, bad.request)
    if bad.server != "closed":
        assert call(server, "ModelInfer", infer()).raw_output_contents == [b"\7\0\0\0"]
