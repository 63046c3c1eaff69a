"""What a server is told: one frozen value, read once from a file and the command line, then passed on in parts.

Every key has an option of the same name (`drain_grace`, `--drain-grace`), and an option wins over the file. Times are seconds.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError

from headrace.errors import InvalidRepository


def _address(text: str) -> str:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):(\d{1,5})", text)
    if found is None or int(found[2]) > 65535:
        raise PydanticCustomError("address", "expected HOST:PORT, as in 127.0.0.1:8001")
    return text


def _grpc_address(text: str) -> str:
    if text.startswith("unix:"):
        if len(text) == len("unix:"):
            raise PydanticCustomError("address", "expected unix:PATH, as in unix:/run/headrace.sock")
        return text
    return _address(text)


Address = Annotated[str, AfterValidator(_address)]
GrpcAddress = Annotated[str, AfterValidator(_grpc_address)]
Listen = Annotated[Address | None, BeforeValidator(lambda value: None if value == "none" else value)]
Name = Annotated[str, StringConstraints(min_length=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ServerConfig(BaseModel):
    """The settings of `headrace serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: Path | None = None
    """The folder of models, in Triton's layout. In a file, a relative path starts from the file's folder."""
    grpc: GrpcAddress = "127.0.0.1:8001"
    """Where gRPC listens: HOST:PORT, where port 0 takes a free one, or unix:PATH."""
    http: Listen = "127.0.0.1:8000"
    """Where REST listens, or `none`."""
    http_max_input_size: Annotated[int, Field(gt=0)] = 64 << 20
    """Bytes: the limit of JSON, of each tensor in it, of raw bodies, and of any body after decompression."""
    metrics: Listen = "127.0.0.1:8002"
    """Where Prometheus finds `/metrics`, or `none`."""
    allow_client_shm: bool = False
    """Whether clients may register shared memory: any local client could read and write what another registered."""
    grpc_header_forward_pattern: str = ""
    """Headers whose names match this regular expression in part become parameters of their requests."""
    transport: Literal["auto", "native", "portable"] = "auto"
    server_name: Name = "headrace"
    """What ServerMetadata says."""
    model_control: Literal["none", "poll", "explicit"] = "none"
    """When models are loaded: once at the start, whenever the repository changes, or when a client asks."""
    load_model: tuple[Name, ...] = ()
    """With `explicit`: what to load at the start; `*` is everything."""
    poll_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 15.0
    strict_readiness: bool = True
    """Whether the server is ready only when every model is."""
    probe: bool = True
    """Whether to measure, while nobody asks for anything, how long each model runs; what was measured is kept on disk."""
    drain_grace: Seconds = 2.0
    """How long a stopping server, no longer ready, still takes new requests: for balancers to notice."""
    drain_seconds: Seconds = 30.0
    """How long, after that, accepted requests have to finish."""
    directory: Path | None = None
    """Be one of the replicas in this directory, behind the balancer of `headrace balance`. In a file, as `repository`."""
    ledger: Path | None = None
    """Where to keep the records of requests and batches, as Parquet files. In a file, as `repository`."""
    ledger_segment_bytes: Annotated[int, Field(ge=1 << 16)] = 64 << 20
    """Records in memory that make a file, and …"""
    ledger_segment_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    """… how long they wait for it."""
    ledger_keep_bytes: Annotated[int, Field(gt=0)] = 4 << 30
    """What the files may take in all; above it, the oldest go."""
    ledger_keep_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """How old files may become."""
    slo: Path | None = None
    """Where objectives are, OpenSLO files; else in `slo/` below the repository, if that is there. In a file, as `repository`."""
    spans_per_second: Annotated[int, Field(gt=0)] = 5000
    """Of traces, where OpenTelemetry's variables ask for them; what is above it is dropped and counted."""
    otlp: Address | None = None
    """Where the side process takes spans of others: OTLP over gRPC, and over HTTP at the next port. Port 0 picks free ones."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "text", "json"] = "auto"


def server_config(file: Path | None, options: Mapping[str, object]) -> ServerConfig:
    """The settings from `file` (YAML), with `options` over them; an option that is None was not given.

    Raises:
        InvalidRepository: the file cannot be read, or a value cannot be used; the message names the key and where it stands.
    """
    given = {key: value for key, value in options.items() if value is not None}
    stated = read_yaml(file) if file is not None else {}
    for key in ("repository", "directory", "ledger", "slo"):
        if file is not None and isinstance(stated.get(key), str):
            stated[key] = file.parent / str(stated[key])
    try:
        config = ServerConfig.model_validate({**stated, **given})
    except ValidationError as error:
        problems = (_problem(dict(detail), given, file) for detail in error.errors())
        raise InvalidRepository("; ".join(problems)) from None
    if config.load_model and config.model_control != "explicit":
        raise InvalidRepository(f"load_model has a meaning with model_control explicit only, and it is {config.model_control}")
    return config


def read_yaml(file: Path) -> dict[str, object]:
    """The mapping in a YAML file.

    Raises:
        InvalidRepository: there is no such file, or no mapping in it.
    """
    try:
        content: object = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRepository(f"cannot read {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRepository(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidRepository(f"{file} holds no settings: expected `key: value` lines")
    return {str(key): value for key, value in content.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _problem(detail: Mapping[str, Any], given: Mapping[str, object], file: Path | None) -> str:
    key = str(detail["loc"][0])
    place = f"option --{key.replace('_', '-')}" if key in given else f"{file}: key '{key}'"
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, ServerConfig.model_fields, n=1)
        return f"{place} is unknown" + (f"; did you mean '{close[0]}'?" if close else "")
    return f"{place} is {detail['input']!r}: {_lower(str(detail['msg']))}"


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
