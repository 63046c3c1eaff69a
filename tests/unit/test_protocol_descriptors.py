"""Our description of the protocol against tritonclient's own descriptors: what they have, ours has, equal in every respect."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
from tritonclient.grpc import model_config_pb2, service_pb2

from headrace.protocol import headrace_pb2

POOL = headrace_pb2.DESCRIPTOR.pool
THEIRS: tuple[FileDescriptor, ...] = (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)


def nested(message: Descriptor) -> Iterator[Descriptor]:
    yield message
    for inner in message.nested_types:
        yield from nested(inner)


MESSAGES = {m.full_name: m for file in THEIRS for top in file.message_types_by_name.values() for m in nested(top)}
ENUMS: dict[str, EnumDescriptor] = {e.full_name: e for m in MESSAGES.values() for e in m.enum_types}
ENUMS |= {e.full_name: e for file in THEIRS for e in file.enum_types_by_name.values()}


def facts(field: FieldDescriptor) -> tuple[object, ...]:
    """All that the wire and the generated code depend on."""
    message, enum, oneof = field.message_type, field.enum_type, field.containing_oneof
    return (
        field.name,
        field.number,
        field.type,
        field.is_repeated,
        field.is_packed,
        field.has_presence,
        field.json_name,
        message.full_name if message is not None else None,
        message is not None and message.GetOptions().map_entry,
        enum.full_name if enum is not None else None,
        oneof.name if oneof is not None else None,
    )


def test_there_is_something_to_compare() -> None:
    assert len(MESSAGES) > 100
    assert "inference.ModelConfig.ParametersEntry" in MESSAGES
    assert "inference.DataType" in ENUMS


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_equal(name: str) -> None:
    theirs, ours = MESSAGES[name], POOL.FindMessageTypeByName(name)
    mine = {field.number: facts(field) for field in ours.fields}
    assert {field.number: mine.get(field.number) for field in theirs.fields} == {f.number: facts(f) for f in theirs.fields}
    assert [oneof.name for oneof in ours.oneofs] == [oneof.name for oneof in theirs.oneofs]
    # Beyond Triton's there is only what the open protocol adds.
    surplus = set(mine) - {field.number for field in theirs.fields}
    assert surplus == ({6} if name == "inference.ModelMetadataResponse" else set())


@pytest.mark.parametrize("name", ENUMS)
def test_enums_are_equal(name: str) -> None:
    ours = POOL.FindEnumTypeByName(name)
    assert [(value.name, value.number) for value in ours.values] == [(value.name, value.number) for value in ENUMS[name].values]


def test_the_service_is_equal() -> None:
    def methods(service: object) -> set[tuple[object, ...]]:
        return {
            (m.name, m.input_type.full_name, m.output_type.full_name, m.client_streaming, m.server_streaming)
            for m in service.methods  # type: ignore[attr-defined]
        }

    (theirs,) = service_pb2.DESCRIPTOR.services_by_name.values()
    assert methods(POOL.FindServiceByName(theirs.full_name)) == methods(theirs)


@pytest.mark.parametrize(
    "order",
    [
        ("headrace.transport.control", "tritonclient.grpc", "tritonclient.grpc.aio"),
        ("tritonclient.grpc.aio", "tritonclient.grpc", "headrace.transport.control"),
    ],
    ids=["ours first", "theirs first"],
)
def test_both_live_in_one_process(order: tuple[str, ...]) -> None:
    code = f"""
import {", ".join(order)}
from headrace.protocol import headrace_pb2
from tritonclient.grpc import service_pb2
for request, read in ((headrace_pb2.ModelInferRequest, service_pb2), (service_pb2.ModelInferRequest, headrace_pb2)):
    assert read.ModelInferRequest.FromString(request(model_name="m").SerializeToString()).model_name == "m"
POOL = headrace_pb2.DESCRIPTOR.pool
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_messages_of_the_kernels_come_from_the_same_file() -> None:
    """`make protocol` writes both; cargo is not needed to see that one was forgotten."""
    root = Path(__file__).parent.parent.parent
    source = (root / "runtime/headrace/protocol/headrace.proto").read_bytes()
    generated = (root / "kernels/core/tests/proto/inference.rs").read_text()
    assert f"// SHA-256 of the source: {hashlib.sha256(source).hexdigest()}\n" in generated
