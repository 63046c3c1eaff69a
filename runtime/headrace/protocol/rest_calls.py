"""Control calls over REST V2: which path is which method, how its message is made of path and body, what is told of the answer.

The control module answers all of them, for every transport alike; nothing here knows what a call means.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from google.protobuf.message import Message

from headrace.errors import InvalidRequest
from headrace.protocol import headrace_pb2 as pb
from headrace.protocol.pool import POOL
from headrace.protocol.rest_json import message_to_json

SERVICE = "inference.GRPCInferenceService"

Path = Mapping[str, str]
Body = Mapping[str, Any]


class Told(NamedTuple):
    """An answer over HTTP: its status, and its JSON; None is an empty body."""

    status: int
    value: Any = None


class Call(NamedTuple):
    """One path of REST.

    Attributes:
        http: GET or POST.
        path: with `{model}`, `{version}` and `{region}` where they stand.
        rpc: the method of the service.
        says: one line for people.
        ask: the message, from the path's parameters and the JSON of the body.
        tell: the answer's message to HTTP.
        body: the JSON schema of the body, None where it takes none.
    """

    http: str
    path: str
    rpc: str
    says: str
    ask: Callable[[Path, Body], Message]
    tell: Callable[[Any], Told]
    body: Mapping[str, Any] | None = None

    @property
    def method(self) -> str:
        """The full name that control knows it by."""
        return f"/{SERVICE}/{self.rpc}"

    def answer(self, payload: bytes) -> Told:
        """What control has answered, for HTTP."""
        output = POOL.FindServiceByName(SERVICE).FindMethodByName(self.rpc).output_type
        return self.tell(getattr(pb, output.name).FromString(payload))


def _text(body: Body, key: str) -> str:
    value = body.get(key, "")
    if not isinstance(value, str):
        raise InvalidRequest(f"Unable to parse '{key}': it must be text")
    return value


def _whole(body: Body, key: str) -> int:
    value = body.get(key, 0)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise InvalidRequest(f"Unable to parse '{key}': it must be a whole number that is not negative")
    return value


def _flag(body: Body, key: str) -> bool:
    value = body.get(key, False)
    if type(value) is not bool:
        raise InvalidRequest(f"Unable to parse '{key}': it must be true or false")
    return value


def _object(body: Body, key: str) -> Mapping[str, Any]:
    value = body.get(key, {})
    if not isinstance(value, dict):
        raise InvalidRequest(f"Unable to parse '{key}': it must be an object")
    return value


def _bytes(key: str, text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"Unable to parse '{key}': it must be base64") from None


# Messages from paths and bodies.


def _versioned(kind: type[Message]) -> Callable[[Path, Body], Message]:
    return lambda path, body: kind(name=path.get("model", ""), version=path.get("version", ""))


def _named(kind: type[Message]) -> Callable[[Path, Body], Message]:
    return lambda path, body: kind(name=path.get("region", ""))


def _index(path: Path, body: Body) -> Message:
    return pb.RepositoryIndexRequest(ready=_flag(body, "ready"))


def _changes(kind: type[Message]) -> Callable[[Path, Body], Message]:
    def ask(path: Path, body: Body) -> Message:
        message: Any = kind(model_name=path["model"])
        for key, value in _object(body, "parameters").items():
            message.parameters[key].CopyFrom(_repository_parameter(key, value))
        return message

    return ask


def _repository_parameter(key: str, value: object) -> pb.ModelRepositoryParameter:
    if isinstance(value, bool):
        return pb.ModelRepositoryParameter(bool_param=value)
    if isinstance(value, int) and abs(value) < 1 << 63:
        return pb.ModelRepositoryParameter(int64_param=value)
    if isinstance(value, str):
        if key.startswith("file:"):
            return pb.ModelRepositoryParameter(bytes_param=_bytes(key, value))
        return pb.ModelRepositoryParameter(string_param=value)
    raise InvalidRequest(f"invalid value type for parameter '{key}', expected text, a whole number, or true or false.")


def _trace(path: Path, body: Body) -> Message:
    message = pb.TraceSettingRequest(model_name=path.get("model", ""))
    for key, value in body.items():
        given = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(one, (str, int)) for one in given):
            raise InvalidRequest(f"Unable to parse trace setting '{key}': it must be text, a list of texts, or null")
        message.settings[key].value[:] = [str(one) for one in given]
    return message


def _logging(path: Path, body: Body) -> Message:
    message = pb.LogSettingsRequest()
    for key, value in body.items():
        kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}.get(type(value))
        if kind is None or (kind == "uint32_param" and not 0 <= value < 1 << 32):
            raise InvalidRequest(f"Unable to parse log setting '{key}': it must be text, true or false, or a whole number")
        setattr(message.settings[key], kind, value)
    return message


def _register_system(path: Path, body: Body) -> Message:
    return pb.SystemSharedMemoryRegisterRequest(
        name=path["region"], key=_text(body, "key"), offset=_whole(body, "offset"), byte_size=_whole(body, "byte_size")
    )


def _register_cuda(path: Path, body: Body) -> Message:
    handle = _bytes("raw_handle", _object(body, "raw_handle").get("b64", ""))
    return pb.CudaSharedMemoryRegisterRequest(
        name=path["region"], raw_handle=handle, device_id=_whole(body, "device_id"), byte_size=_whole(body, "byte_size")
    )


# Answers from messages.


def _whether(field: str) -> Callable[[Any], Told]:
    return lambda message: Told(200 if getattr(message, field) else 400)


def _model_ready(message: pb.ModelReadyResponse) -> Told:
    return Told(200) if message.ready else Told(400, {"error": "Model version not ready"})


def _plain(message: Message) -> Told:
    return Told(200, message_to_json(message))


def _nothing(message: Message) -> Told:
    return Told(200)


def _config(message: pb.ModelConfigResponse) -> Told:
    return Told(200, message_to_json(message.config))


def _models(message: pb.RepositoryIndexResponse) -> Told:
    return Told(200, [{key: text for key, text in message_to_json(model).items() if text} for model in message.models])


def _regions(message: Any) -> Told:
    return Told(200, [message_to_json(message.regions[name]) for name in sorted(message.regions)])


def _trace_settings(message: pb.TraceSettingResponse) -> Told:
    settings = {key: list(setting.value) for key, setting in sorted(message.settings.items())}
    return Told(200, {key: value if key == "trace_level" else "".join(value[:1]) for key, value in settings.items()})


def _log_settings(message: pb.LogSettingsResponse) -> Told:
    given = {key: (setting, setting.WhichOneof("parameter_choice")) for key, setting in sorted(message.settings.items())}
    return Told(200, {key: getattr(setting, choice) if choice else None for key, (setting, choice) in given.items()})


# The table.

_FLAG, _TEXT = {"type": "boolean"}, {"type": "string"}
_SIZE = {"type": "integer", "minimum": 0}


def _schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


_ANY = {"type": "object"}
_LOAD = _schema(parameters={"type": "object", "properties": {"config": _TEXT}, "additionalProperties": _TEXT})


def _of_versions(tail: str, rpc: str, says: str, request: type[Message], tell: Callable[[Any], Told]) -> list[Call]:
    paths = [f"/v2/models/{{model}}{tail}", f"/v2/models/{{model}}/versions/{{version}}{tail}"]
    return [Call("GET", path, rpc, says, _versioned(request), tell) for path in paths]


def _of_memory(kind: str, rpc: str, status: type[Message], off: type[Message], on: Callable[[Path, Body], Message]) -> list[Call]:
    root, told = f"/v2/{kind}sharedmemory", f"{kind} shared memory"
    schema = _schema(key=_TEXT, offset=_SIZE, byte_size=_SIZE)
    if kind == "cuda":
        schema = _schema(raw_handle=_schema(b64=_TEXT), device_id=_SIZE, byte_size=_SIZE)
    calls = [Call("POST", f"{root}/region/{{region}}/register", f"{rpc}Register", f"Register {told}.", on, _nothing, schema)]
    for region in ("", "/region/{region}"):
        calls.append(Call("GET", f"{root}{region}/status", f"{rpc}Status", f"Registered {told}.", _named(status), _regions))
        calls.append(
            Call("POST", f"{root}{region}/unregister", f"{rpc}Unregister", f"Forget {told}.", _named(off), _nothing, _ANY)
        )
    return calls


CALLS: tuple[Call, ...] = (
    Call("GET", "/v2", "ServerMetadata", "Name, version, extensions.", lambda p, b: pb.ServerMetadataRequest(), _plain),
    Call("GET", "/v2/health/live", "ServerLive", "Is it up?", lambda p, b: pb.ServerLiveRequest(), _whether("live")),
    Call("GET", "/v2/health/ready", "ServerReady", "Is it ready?", lambda p, b: pb.ServerReadyRequest(), _whether("ready")),
    Call("GET", "/v2/models/stats", "ModelStatistics", "Of all models.", _versioned(pb.ModelStatisticsRequest), _plain),
    *_of_versions("", "ModelMetadata", "Inputs and outputs.", pb.ModelMetadataRequest, _plain),
    *_of_versions("/ready", "ModelReady", "Is it ready?", pb.ModelReadyRequest, _model_ready),
    *_of_versions("/config", "ModelConfig", "The configuration it runs with.", pb.ModelConfigRequest, _config),
    *_of_versions("/stats", "ModelStatistics", "What it has done.", pb.ModelStatisticsRequest, _plain),
    Call("POST", "/v2/repository/index", "RepositoryIndex", "All models.", _index, _models, _schema(ready=_FLAG)),
    Call(
        "POST",
        "/v2/repository/models/{model}/load",
        "RepositoryModelLoad",
        "Load or reload a model.",
        _changes(pb.RepositoryModelLoadRequest),
        _nothing,
        _LOAD,
    ),
    Call(
        "POST",
        "/v2/repository/models/{model}/unload",
        "RepositoryModelUnload",
        "Unload a model.",
        _changes(pb.RepositoryModelUnloadRequest),
        _nothing,
        _schema(parameters=_schema(unload_dependents=_FLAG)),
    ),
    *(
        Call(http, path, "TraceSetting", f"{verb} what is traced.", _trace, _trace_settings, _ANY if http == "POST" else None)
        for path in ("/v2/trace/setting", "/v2/models/{model}/trace/setting")
        for http, verb in (("GET", "Read"), ("POST", "Set"))
    ),
    Call("GET", "/v2/logging", "LogSettings", "Read what is logged.", _logging, _log_settings),
    Call("POST", "/v2/logging", "LogSettings", "Set what is logged.", _logging, _log_settings, _ANY),
    *_of_memory(
        "system",
        "SystemSharedMemory",
        pb.SystemSharedMemoryStatusRequest,
        pb.SystemSharedMemoryUnregisterRequest,
        _register_system,
    ),
    *_of_memory(
        "cuda", "CudaSharedMemory", pb.CudaSharedMemoryStatusRequest, pb.CudaSharedMemoryUnregisterRequest, _register_cuda
    ),
)
"""Every path but inference. A fixed path comes before one with a name in the same place."""
