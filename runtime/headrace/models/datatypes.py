"""The names of datatypes: TYPE_FP32 in a configuration is FP32 in V2, and TYPE_STRING is BYTES."""

from __future__ import annotations

from typing import cast

from headrace.protocol.headrace_pb2 import DataType
from headrace.tensor import DTYPES

_CONFIG = {name: cast("DataType", DataType.Value(f"TYPE_{name}")) for name in DTYPES} | {"BYTES": DataType.TYPE_STRING}
_V2: dict[int, str] = {number: name for name, number in _CONFIG.items()}


def config_datatype(name: str) -> DataType:
    """The configuration's datatype for a V2 name; TYPE_INVALID when there is none."""
    return _CONFIG.get(name, DataType.TYPE_INVALID)


def v2_datatype(datatype: DataType) -> str:
    """The V2 name of a configuration's datatype; empty for TYPE_INVALID."""
    return _V2.get(datatype, "")


def type_name(datatype: DataType) -> str:
    """A configuration's datatype the way configurations write it: `TYPE_FP32`."""
    return DataType.Name(datatype) if datatype in DataType.values() else f"TYPE_{int(datatype)}"
