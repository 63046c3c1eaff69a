"""What a `model.py` gets when it imports `triton_python_backend_utils`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from headrace.backends.triton_python.metrics import MetricFamily
from headrace.backends.triton_python.model_config import ModelConfig
from headrace.backends.triton_python.requests import (
    TRITONSERVER_MEMORY_CPU,
    TRITONSERVER_MEMORY_GPU,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
    TRITONSERVER_REQUEST_RELEASE_ALL,
    TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
    TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    InferenceRequest,
    InferenceResponse,
    InferenceResponseSender,
    InferenceTrace,
    PreferredMemory,
    Server,
    TritonError,
)
from headrace.backends.triton_python.tensors import (
    TRITON_STRING_TO_NUMPY,
    Tensor,
    TritonModelException,
    deserialize_bytes_tensor,
    numpy_to_triton_type,
    serialize_byte_tensor,
    triton_string_to_numpy,
    triton_to_numpy_type,
)

__all__ = [
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "TRITON_STRING_TO_NUMPY",
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "Logger",
    "MetricFamily",
    "ModelConfig",
    "PreferredMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_model_dir",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "load_model",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "unload_model",
    "using_decoupled_model_transaction_policy",
]

LOG_MARK = "\x1e"
"""A line of the output that begins with it has the letter of a level, and then its words: see `process.ModelProcess.heard`."""

model_dir = ""
"""Of the version; written by the worker."""


def _of_name(tensors: Sequence[Tensor], name: str) -> Tensor | None:
    for tensor in tensors:  # without a generator: it is called for each request
        if tensor.name() == name:
            return tensor
    return None


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """The input of this name, or None."""
    return _of_name(inference_request.inputs(), name)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """The output of this name, or None."""
    return _of_name(inference_response.output_tensors(), name)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What a configuration says of the input of this name, or None."""
    return next((tensor for tensor in model_config.get("input", ()) if tensor["name"] == name), None)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What a configuration says of the output of this name, or None."""
    return next((tensor for tensor in model_config.get("output", ()) if tensor["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether a configuration says that the model is decoupled."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def get_model_dir() -> str:
    """The directory of the version."""
    return model_dir


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether a model of this server can be asked."""
    return Server.ask("is_ready", model=model_name, version=model_version)["is"]


def load_model(model_name: str, files: Mapping[str, Any] | None = None) -> None:
    """Load or reload a model of this server.

    Args:
        model_name: its name.
        files: its configuration as JSON under `config`, and its files under `file:<version>/<name>`.

    Raises:
        TritonModelException: it did not come up, or models are not loaded on request here.
    """
    config = (files or {}).get("config")
    given = {name: bytes(data).hex() for name, data in (files or {}).items() if name != "config"}
    _done(Server.ask("load", model=model_name, config=config, files=given))


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Stop serving a model of this server; with `unload_dependents`, those that an ensemble runs, too.

    Raises:
        TritonModelException: models are not loaded on request here.
    """
    _done(Server.ask("unload", model=model_name, dependents=unload_dependents))


def _done(answer: Mapping[str, Any]) -> None:
    if "error" in answer:
        raise TritonModelException(answer["error"])


class LogLevel(Enum):
    """How much a line of the log matters."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3


class Logger:
    """Writes to the log of the server."""

    LogLevel = LogLevel
    INFO = LogLevel.INFO
    WARNING = LogLevel.WARNING
    ERROR = LogLevel.ERROR
    VERBOSE = LogLevel.VERBOSE

    @staticmethod
    def log(message: str, level: LogLevel = LogLevel.INFO) -> None:
        """A line at a level."""
        lines = "".join(f"{LOG_MARK}{level.name[0]}{line}\n" for line in str(message).splitlines() or [""])
        sys.stderr.write(lines)
        sys.stderr.flush()

    @staticmethod
    def log_info(message: str) -> None:
        """A line for those who look."""
        Logger.log(message, LogLevel.INFO)

    @staticmethod
    def log_warn(message: str) -> None:
        """A line about something that may be wrong."""
        Logger.log(message, LogLevel.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        """A line about something that is wrong."""
        Logger.log(message, LogLevel.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        """A line for those who look closely."""
        Logger.log(message, LogLevel.VERBOSE)
