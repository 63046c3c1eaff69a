"""A configuration as the JSON that Triton gives to a model, and what its `auto_complete_config` has made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from headrace.errors import InvalidRepository, sentence
from headrace.protocol.headrace_pb2 import ModelConfig

_COMPLETED = ("max_batch_size", "input", "output", "dynamic_batching", "model_transaction_policy")
"""What a model may say of itself."""


def config_json(config: ModelConfig) -> str:
    """The configuration as JSON: names of fields as in config.pbtxt, numbers as numbers, fields with nothing in them too."""
    return json.dumps(_told(config), separators=(",", ":"))


def complete_from(config: ModelConfig, told: Mapping[str, Any]) -> None:
    """Write into `config` what `auto_complete_config` returned.

    Raises:
        InvalidRepository: it is no configuration.
    """
    had_batcher = config.HasField("dynamic_batching")
    try:
        new = json_format.ParseDict({key: told[key] for key in _COMPLETED if key in told}, ModelConfig())
    except json_format.ParseError as error:
        raise InvalidRepository(
            f"model '{config.name}': auto_complete_config returned what is no configuration: {sentence(error)}"
        ) from None
    for key in _COMPLETED:
        config.ClearField(key)  # type: ignore[arg-type]  # they are names of fields
    config.MergeFrom(new)
    # As where it is written in config.pbtxt.
    if config.HasField("dynamic_batching") and not had_batcher and config.max_batch_size > 0:
        config.dynamic_batching.preferred_batch_size[:] = [config.max_batch_size]


def _told(message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            of = entry.fields_by_name["value"]
            told[field.name] = {str(key): _value(of, value[key]) for key in value}
        elif field.is_repeated:
            told[field.name] = [_value(field, each) for each in value]
        else:
            told[field.name] = _value(field, value)
    return told


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return _told(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else int(value)
    return value
