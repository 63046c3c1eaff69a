"""Parameters of requests, and headers that become such: what the model sees of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from headrace.backends.base import Batch
from headrace.backends.fake import Script
from headrace.errors import InvalidRepository
from headrace.transport.ways import open_transport
from tests.transport.asking import value
from tests.transport.serving import ECHO, PATIENCE, Server, fails, fill, message, serving, tensor

INVALID = grpc.StatusCode.INVALID_ARGUMENT
Seen = list[Mapping[str, Any]]


@pytest.fixture
def forwarding(transport: str, tmp_path: Path) -> Iterator[Callable[..., tuple[Server, Seen]]]:
    """`forwarding(pattern)`: a server, and the parameters its model sees."""
    with ExitStack() as stack:

        def start(pattern: str) -> tuple[Server, Seen]:
            seen: Seen = []

            def note(batch: Batch) -> None:
                seen.extend(request.parameters for request in batch.requests)

            fake = fill(tmp_path / "repository", {"m": (ECHO, Script(fail=note))})
            options = {"header_forward_pattern": pattern}
            server = stack.enter_context(serving(transport, tmp_path / "repository", {"fake": fake}, transport_options=options))
            seen.clear()
            return server, seen

        yield start


def call(server: Server, *headers: tuple[str, str | bytes], **parameters: pb.InferParameter) -> None:
    request = message("m", (("x", "INT32", (1, 1)),), (bytes(4),), parameters=parameters)
    server.stub.ModelInfer(request, metadata=headers, timeout=PATIENCE)


def test_parameters_reach_the_model(forwarding: Callable[..., tuple[Server, Seen]]) -> None:
    server, seen = forwarding("")
    given = {"text": "é", "flag": True, "number": -3, "half": 0.5}
    server.client.infer("m", [tensor("x", [[1]])], parameters=given, headers={"x-tenant": "a"})
    assert seen == [given]


def test_headers_that_match_do_too(forwarding: Callable[..., tuple[Server, Seen]]) -> None:
    server, seen = forwarding("tenant|^x-trace")
    headers = [("my-tenant-id", "a"), ("x-trace", "1"), ("not-x-trace", "2"), ("x-trace-bin", b"\0"), ("x-trace", "3")]
    call(server, *headers, k=value(int64_param=1))
    call(server)
    assert seen == [{"my-tenant-id": "a", "x-trace": "1,3", "k": 1}, {}]


def test_a_header_wins_over_a_parameter(forwarding: Callable[..., tuple[Server, Seen]]) -> None:
    server, seen = forwarding("tenant")
    call(server, ("tenant", "the proxy's"), tenant=value(string_param="the client's"))
    assert seen == [{"tenant": "the proxy's"}]


@pytest.mark.parametrize(
    "name",
    ["sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output", "triton_x"],
)
def test_reserved_names_are_refused(forwarding: Callable[..., tuple[Server, Seen]], name: str) -> None:
    server, seen = forwarding("_|i|headers")
    with fails(INVALID, f"Header '{name}' is reserved for Triton usage and cannot be forwarded."):
        call(server, (name, "1"))
    assert seen == []


def test_reserved_names_that_do_not_match_are_no_concern(forwarding: Callable[..., tuple[Server, Seen]]) -> None:
    server, seen = forwarding("^x-")
    call(server, ("priority", "1"), ("x-a", ""))
    assert seen == [{"x-a": ""}]


@pytest.mark.part("unit")
def test_a_pattern_that_is_none() -> None:
    with pytest.raises(InvalidRepository, match=r"header forward pattern '\(' is no regular expression: missing \), unter"):
        open_transport("portable", "127.0.0.1:0", header_forward_pattern="(")
