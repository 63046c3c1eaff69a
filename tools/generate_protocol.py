"""Compile the .proto files of headrace.protocol into Python modules that keep to their own descriptor pool.

protoc's own Python output registers in protobuf's default pool, where `inference.*` is taken by tritonclient. The modules
written here hold the serialised descriptor and build their classes from one private pool instead. Run by `make protocol`;
needs grpcio-tools (extra `dev`); the result is committed.
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

PROTOCOL = Path(__file__).resolve().parent.parent / "runtime/headrace/protocol"

TEMPLATE = '''"""Generated from {proto} by tools/generate_protocol.py: do not edit."""

from google.protobuf import message_factory
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from headrace.protocol.pool import POOL

DESCRIPTOR = POOL.AddSerializedFile(
{blob}
)


def _message(name):
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName("{package}." + name))


{messages}
{enums}'''


def compile_proto(name: str) -> None:
    """Write `<name>_pb2.py` and its `.pyi` beside `<name>.proto`."""
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch) / "image.bin"
        arguments = ["protoc", f"-I{PROTOCOL}", f"--descriptor_set_out={image}", f"--pyi_out={scratch}", f"{name}.proto"]
        if protoc.main(arguments) != 0:
            sys.exit(f"{name}.proto does not compile")
        file = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes()).file[0]
        stub = (Path(scratch) / f"{name}_pb2.pyi").read_text()
    serialised = file.SerializeToString()
    blob = "\n".join(f"    {serialised[i : i + 64]!r}" for i in range(0, len(serialised), 64))
    messages = "\n".join(f'{m.name} = _message("{m.name}")' for m in file.message_type)
    enums = "\n".join(f'{e.name} = EnumTypeWrapper(POOL.FindEnumTypeByName("{file.package}.{e.name}"))' for e in file.enum_type)
    text = TEMPLATE.format(proto=f"{name}.proto", package=file.package, blob=blob, messages=messages, enums=enums)
    (PROTOCOL / f"{name}_pb2.py").write_text(textwrap.dedent(text).rstrip() + "\n")
    (PROTOCOL / f"{name}_pb2.pyi").write_text(stub)


if __name__ == "__main__":
    for proto in ("headrace", "health"):
        compile_proto(proto)
