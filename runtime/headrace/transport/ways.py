"""The gRPC transports by name: which one `auto` is here, and how to open it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from headrace import kernels
from headrace.errors import InvalidRepository
from headrace.transport.base import GrpcTransport

NATIVE, PORTABLE = "native", "portable"


def chosen_transport(wanted: str) -> str:
    """The transport that `wanted` (auto, native, portable) means here.

    Raises:
        KernelsUnusable: it is the native one, which is not here or of another version.
        InvalidRepository: it is the portable one, which lacks grpcio.
    """
    if wanted == NATIVE or (wanted == "auto" and kernels.are_installed()):
        kernels.load()
        return NATIVE
    if find_spec("grpc") is None:
        raise InvalidRepository("the portable transport needs grpcio, which is not installed: pip install headrace")
    return PORTABLE


def open_transport(name: str, address: str, **options: Any) -> GrpcTransport:
    """A transport, which is not started yet; `options` are those of its class."""
    if name == NATIVE:
        from headrace.transport.native import NativeTransport

        return NativeTransport(address, **options)
    from headrace.transport.portable import PortableTransport

    return PortableTransport(address, **options)
