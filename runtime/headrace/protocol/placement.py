"""Where a request says that a tensor is, or is to go, in shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from headrace.errors import InvalidRequest
from headrace.protocol.headrace_pb2 import InferParameter


class Placement(NamedTuple):
    """`byte_size` bytes from `offset` of a region."""

    region: str
    offset: int
    byte_size: int


def placement_of(parameters: Mapping[str, InferParameter], tensor: str) -> Placement | None:
    """What the parameters of a tensor say of shared memory.

    Raises:
        InvalidRequest: one has the wrong type, or goes without another.
    """
    region = _parameter(parameters, "region", "string_param", tensor)
    for key in ("offset", "byte_size"):
        if f"shared_memory_{key}" in parameters and region is None:
            raise InvalidRequest(
                f"'shared_memory_{key}' can not be specified without 'shared_memory_region' parameter for tensor '{tensor}'"
            )
    offset = _parameter(parameters, "offset", "int64_param", tensor)
    byte_size = _parameter(parameters, "byte_size", "int64_param", tensor)
    if region is None:
        return None
    if byte_size is None:
        raise InvalidRequest(
            f"'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor '{tensor}'"
        )
    return Placement(region, offset or 0, byte_size)


def _parameter(parameters: Mapping[str, InferParameter], key: str, kind: str, tensor: str) -> Any:
    parameter = parameters.get(f"shared_memory_{key}")
    if parameter is None:
        return None
    if parameter.WhichOneof("parameter_choice") != kind:
        raise InvalidRequest(f"invalid value type for 'shared_memory_{key}' parameter for tensor '{tensor}', expected {kind}.")
    return getattr(parameter, kind)
