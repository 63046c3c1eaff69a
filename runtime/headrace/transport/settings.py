"""TraceSetting and LogSettings: what clients may set, checked as a whole before any of it holds."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from google.protobuf.message import Message

from headrace.engine.engine import Engine
from headrace.errors import InvalidRequest, Unsupported
from headrace.protocol import headrace_pb2 as pb
from headrace.transport.log_switches import FORMATS, LogSwitches

_MODE = "triton"
_NUMBERS = {
    "trace_rate": ("rate", (1 << 31) - 1, (0, (1 << 32) - 1)),
    "trace_count": ("count", (1 << 31) - 1, (-1, (1 << 31) - 1)),
    "log_frequency": ("log_frequency", (1 << 31) - 1, (0, (1 << 32) - 1)),
}
"""By setting: the store's name for it, the most that can be, and the range that messages tell."""
_LOG_KINDS = {
    "log_info": ("bool_param", "boolean"),
    "log_warning": ("bool_param", "boolean"),
    "log_error": ("bool_param", "boolean"),
    "log_verbose_level": ("uint32_param", "int32"),
    "log_format": ("string_param", "string"),
}


class TraceCalls:
    """Answers TraceSetting: what to keep of all models, or of one. See `headrace.ledger.traces`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def answer(self, request: pb.TraceSettingRequest) -> Message:
        """Change what the request names, and tell what holds then."""
        model = request.model_name
        if model and self._engine.routes.find(model) is None:
            raise InvalidRequest(f"Request for unknown model : {model}")
        if "trace_file" in request.settings:
            raise Unsupported("trace file location can not be updated through network protocol")
        changes: dict[str, Any] = {}
        for key, setting in request.settings.items():
            changes.update(_trace_change(key, list(setting.value)))
        if changes:
            self._engine.traces.update(model, changes)
        holds = self._engine.traces.settings(model)
        told = {
            "trace_level": holds.level,
            "trace_rate": holds.rate,
            "trace_count": holds.count,
            "log_frequency": holds.log_frequency,
            "trace_file": "",
            "trace_mode": _MODE,
        }
        message = pb.TraceSettingResponse()
        for key, value in told.items():
            message.settings[key].value.append(str(value))
        return message


def _trace_change(key: str, values: list[str]) -> dict[str, Any]:
    """One setting in the store's words; None is back to what holds otherwise."""
    if key == "trace_level":
        return {"level": _level(values) if values else None}
    if key in _NUMBERS:
        if len(values) > 1:
            raise InvalidRequest(f"expect only 1 value for '{key}'")
        return {_NUMBERS[key][0]: _number(key, values[0]) if values else None}
    if key == "trace_mode":
        if values not in ([], [_MODE]):
            raise Unsupported(f"trace mode can only be '{_MODE}' in this server, got: {','.join(values)}")
        return {}
    known = ("trace_level", *_NUMBERS, "trace_mode")
    raise InvalidRequest(f"unknown trace setting '{key}'; the settings are {', '.join(known)}")


def _level(values: list[str]) -> str:
    if "OFF" in values and len(values) > 1:
        raise InvalidRequest("Expect only one trace level 'OFF' is specified")
    for value in values:
        if value == "TENSORS":
            raise Unsupported("trace level 'TENSORS' is not supported by this server, which keeps TIMESTAMPS")
        if value not in ("OFF", "TIMESTAMPS"):
            raise InvalidRequest(f"unknown trace level '{value}', expected OFF or TIMESTAMPS")
    return values[0]


def _number(key: str, text: str) -> int:
    _, most, (low, high) = _NUMBERS[key]
    try:
        value = int(text)
    except ValueError:
        raise InvalidRequest(f"Unable to parse '{key}', got: {text}") from None
    if key == "trace_count" and value < low:
        raise InvalidRequest(f"Unable to parse '{key}'. Expecting value >= {low}, got: {text}")
    if not low <= value <= most:
        raise InvalidRequest(f"Unable to parse '{key}', value is out of range [ {low}, {high} ], got: {text}")
    if key == "trace_rate" and not value:
        raise InvalidRequest("sample rate must be non-zero")
    return value


class LogCalls:
    """Answers LogSettings. See `headrace.transport.log_switches`."""

    def __init__(self, switches: LogSwitches) -> None:
        self._switches = switches

    def answer(self, request: pb.LogSettingsRequest) -> Message:
        """Change what the request names, and tell what holds then."""
        if "log_file" in request.settings:
            raise Unsupported("log file location can not be updated through network protocol")
        changes = {key: _log_change(key, setting) for key, setting in request.settings.items()}
        if changes:
            self._switches.turn(replace(self._switches.settings, **changes))
        message = pb.LogSettingsResponse()
        message.settings["log_file"].string_param = ""
        for key, value in asdict(self._switches.settings).items():
            setattr(message.settings[key], _LOG_KINDS[key][0], value)
        return message


def _log_change(key: str, setting: pb.LogSettingsRequest.SettingValue) -> Any:
    if key not in _LOG_KINDS:
        raise InvalidRequest(f"unknown log setting '{key}'; the settings are {', '.join(_LOG_KINDS)}")
    kind, told = _LOG_KINDS[key]
    if setting.WhichOneof("parameter_choice") != kind:
        raise InvalidRequest(f"expect {told} for '{key}'")
    value = getattr(setting, kind)
    if key == "log_format" and value not in FORMATS:
        raise InvalidRequest(f"invalid argument for log_format, got: {value}")
    return value
