"""Control calls that cannot be answered, methods that are not there, and bytes that are no message."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.transport.asking import JUNK, ask, is_well
from tests.transport.serving import PATIENCE, Server, fails

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED

REQUESTS: dict[str, tuple[str, Any, grpc.StatusCode, str]] = {
    "metadata": ("ModelMetadata", pb.ModelMetadataRequest(name="z"), NOT_FOUND, "Request for unknown model: 'z' is not found"),
    "metadata, version": (
        "ModelMetadata",
        pb.ModelMetadataRequest(name="m", version="7"),
        NOT_FOUND,
        "Request for unknown model: 'm' version 7 is not found",
    ),
    "metadata, broken": (
        "ModelMetadata",
        pb.ModelMetadataRequest(name="broken"),
        NOT_FOUND,
        "Request for unknown model: 'broken' has no available versions",
    ),
    "config": ("ModelConfig", pb.ModelConfigRequest(name="z"), NOT_FOUND, "Request for unknown model: 'z' is not found"),
    "config, version": (
        "ModelConfig",
        pb.ModelConfigRequest(name="m", version="0x1 "),
        INVALID,
        "invalid model version specified '0x1 ' , version should be an integral value > 0",
    ),
    "ready": ("ModelReady", pb.ModelReadyRequest(name="z"), NOT_FOUND, "Request for unknown model: 'z' is not found"),
    "ready, version": (
        "ModelReady",
        pb.ModelReadyRequest(name="broken", version="1"),
        UNAVAILABLE,
        "Request for unknown model: 'broken' version 1 is not at ready state",
    ),
    "statistics": (
        "ModelStatistics",
        pb.ModelStatisticsRequest(name="z"),
        INVALID,
        "requested model 'z' is not available",
    ),
    "statistics, version": (
        "ModelStatistics",
        pb.ModelStatisticsRequest(name="m", version="7"),
        INVALID,
        "requested model version is not available for model 'm'",
    ),
    "index": (
        "RepositoryIndex",
        pb.RepositoryIndexRequest(repository_name="r"),
        UNIMPLEMENTED,
        "'repository_name' specification is not supported",
    ),
    "load": (
        "RepositoryModelLoad",
        pb.RepositoryModelLoadRequest(model_name="m"),
        UNAVAILABLE,
        "explicit model load / unload is not allowed if polling is enabled",
    ),
    "unload": (
        "RepositoryModelUnload",
        pb.RepositoryModelUnloadRequest(model_name="m"),
        UNAVAILABLE,
        "explicit model load / unload is not allowed if polling is enabled",
    ),
    "load, repository": (
        "RepositoryModelLoad",
        pb.RepositoryModelLoadRequest(repository_name="r", model_name="m"),
        UNIMPLEMENTED,
        "'repository_name' specification is not supported",
    ),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_control_refused(server: Server, case: str) -> None:
    method, request, code, told = REQUESTS[case]
    with fails(code, told):
        getattr(server.stub, method)(request, timeout=PATIENCE)
    assert is_well(server)


@pytest.mark.parametrize(
    "path", ["/inference.GRPCInferenceService/Nothing", "/no.Service/ModelInfer", "/grpc.health.v1.Health/Watch"]
)
def test_an_unknown_method(server: Server, path: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.call(path, b"")
    assert caught.value.code() is UNIMPLEMENTED
    assert is_well(server)


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize(
    "method", ["ModelInfer", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex", "ModelReady"]
)
def test_junk_instead_of_a_message(server: Server, method: str, junk: str) -> None:
    payload = JUNK[junk]
    with fails(INVALID, f"the {len(payload)} bytes received are not a {method}Request message"):
        server.call(method, payload)
    assert is_well(server)


def test_an_unknown_field_is_no_junk(server: Server) -> None:
    payload = ask(id="well").SerializeToString() + b"\xc2\x3e\x03new"
    answer = pb.ModelInferResponse.FromString(server.call("ModelInfer", payload))
    assert answer.id == "well"
