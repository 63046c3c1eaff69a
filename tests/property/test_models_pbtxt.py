"""Any configuration survives being written and read; any text is read or refused, never more."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import json_format, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRepository
from headrace.models.pbtxt import parse, parse_json
from headrace.protocol.headrace_pb2 import ModelConfig

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """One value of a field, as the JSON mapping takes it."""
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE:
            return st.deferred(lambda: messages(field.message_type))
        case FieldDescriptor.CPPTYPE_ENUM:
            return st.sampled_from([value.name for value in field.enum_type.values])
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return st.floats(width=32, allow_nan=False, allow_infinity=False)
        case FieldDescriptor.CPPTYPE_STRING:
            return TEXT
        case number:
            return st.integers(*_RANGES[number])


def messages(descriptor: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    """A few fields of a message, at most one of each oneof."""

    def with_fields(chosen: list[FieldDescriptor]) -> st.SearchStrategy[dict[str, Any]]:
        by_oneof = {(field.containing_oneof or field).name: field for field in chosen}
        return st.fixed_dictionaries({field.name: whole(field) for field in by_oneof.values()})

    if not descriptor.fields:
        return st.just({})
    return st.lists(st.sampled_from(list(descriptor.fields)), max_size=4, unique_by=lambda field: field.name).flatmap(with_fields)


def whole(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[part] for part in ("key", "value"))
        keys = TEXT if key.cpp_type == FieldDescriptor.CPPTYPE_STRING else values(key).map(str)
        return st.dictionaries(keys, values(value), max_size=2)
    return st.lists(values(field), max_size=3) if field.is_repeated else values(field)


CONFIGS = messages(ModelConfig.DESCRIPTOR)


@settings(max_examples=150, deadline=None)
@given(CONFIGS)
def test_what_is_written_is_read_back(fields: dict[str, Any]) -> None:
    config = json_format.ParseDict(fields, ModelConfig())
    assert parse(text_format.MessageToString(config), "") == config
    assert parse(text_format.MessageToString(config, as_one_line=True), "") == config
    assert parse_json(json.dumps(fields)) == config
    assert parse_json(json_format.MessageToJson(config)) == config


WORDS = "name input dims max_batch_size parameters key value dynamic_batching version_policy latest true TYPE_FP32 MAX_BATCH"
NUMBERS = "1 -1 1e9 0x1f 99999999999999999999"
FRAGMENTS = st.sampled_from([*WORDS.split(), *NUMBERS.split(), *":{}[],;<>#'\"$-.\\/\n ", "${x}", "{{ y }}", '"s"', "[a.b/c.d]"])


@settings(max_examples=400, deadline=None)
@given(st.lists(FRAGMENTS, max_size=14).map(" ".join) | st.text(max_size=30))
@example("{" * 5000)
@example("input {" * 2000)
@example('parameters { key: "\\xff" }')
@example("[type.googleapis.com/inference.ModelConfig] { }")
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    try:
        parse(text, "m/config.pbtxt")
    except InvalidRepository as refused:
        assert str(refused).startswith("m/config.pbtxt:")


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=20)
    | st.recursive(st.none() | st.integers() | TEXT, lambda x: st.lists(x) | st.dictionaries(TEXT, x), max_leaves=5).map(
        json.dumps
    )
    | st.dictionaries(st.sampled_from([field.name for field in ModelConfig.DESCRIPTOR.fields]), TEXT | st.integers()).map(
        json.dumps
    )
)
@example("{" * 3000)
@example('{"input":' * 3000)
def test_any_override_is_read_or_refused(text: str) -> None:
    try:
        parse_json(text)
    except InvalidRepository as refused:
        assert str(refused).startswith("Invalid config override: ")
        assert "\n" not in str(refused)
