"""Configuration text: what parses, and what is said of what does not."""

from __future__ import annotations

import pytest

from headrace.errors import InvalidRepository
from headrace.models.pbtxt import parse, parse_json

EVERY_FORM = """
# comments, fields with and without commas, repeated blocks
name: "m"
input [ { name: "a" data_type: TYPE_FP32 dims: [ -1, 3 ] }, { name: "b" data_type: TYPE_STRING dims: 1 } ]
output { name: "y" data_type: TYPE_INT64 dims: 1 dims: 2 }
output: { name: "z", data_type: TYPE_BF16, dims: [] }
parameters: { key: "k" value: { string_value: "${HOME}" } }
parameters [ { key: "l" value: { string_value: "{{ kept }}" } } ]
instance_group [ { kind: KIND_CPU, count: 2 } ]
"""


def refused(text: str) -> str:
    with pytest.raises(InvalidRepository) as caught:
        parse(text, "m/config.pbtxt")
    return str(caught.value)


def test_every_form_of_the_text_format() -> None:
    config = parse(EVERY_FORM, "here")
    assert [tensor.name for tensor in config.input] == ["a", "b"]
    assert list(config.input[0].dims) == [-1, 3]
    assert [list(tensor.dims) for tensor in config.output] == [[1, 2], []]
    assert {key: value.string_value for key, value in config.parameters.items()} == {"k": "${HOME}", "l": "{{ kept }}"}
    assert config.instance_group[0].count == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'name: "m"\n max_batchsize: 1',
            'm/config.pbtxt:2:2: Message type "inference.ModelConfig" has no field named "max_batchsize"; '
            "did you mean 'max_batch_size'?",
        ),
        (
            "input { data_type: TYPE_FP31 }",
            "m/config.pbtxt:1:20: 'input { data_type: TYPE_FP31 }': Enum type \"inference.DataType\" has no value named "
            "TYPE_FP31; did you mean 'TYPE_FP32'?",
        ),
        (
            "max_batch_size: 3.5",
            "m/config.pbtxt:1:17: 'max_batch_size: 3.5': Couldn't parse integer: 3.5; correct the file there",
        ),
        ("input {", 'm/config.pbtxt:1:7: Expected "}"; correct the file there'),
    ],
)
def test_an_error_names_the_place_and_what_to_do(text: str, message: str) -> None:
    assert refused(text) == message


def test_an_unknown_field_unlike_any_other_lists_the_fields() -> None:
    message = refused("version_policy { zzz {} }")
    assert message.endswith("; the fields there are all, latest, specific")


@pytest.mark.parametrize(
    ("text", "placeholder"),
    [
        ("name: 'm'\nmax_batch_size: ${triton_max_batch_size}", "${triton_max_batch_size}"),
        ("max_batch_size: {{ rows }}", "{{ rows }}"),
        ("max_batch_size: MAX_BATCH", "MAX_BATCH"),
        ("dynamic_batching { preserve_ordering: ORDERED }", "ORDERED"),
        ("input { dims: [ ${a}, 2 ] }", "${a}"),
        ("name: ${name}", "${name}"),
        ("{% if gpu %}\nname: 'm'\n{% endif %}", "{% if gpu %}"),
    ],
)
def test_a_template_is_called_one(text: str, placeholder: str) -> None:
    message = refused(text)
    assert "the file is a template that has not been filled" in message
    assert f"give '{placeholder}' a value" in message
    assert message.startswith("m/config.pbtxt:")


@pytest.mark.parametrize("text", ["max_batch_size: ten", "data_type: TYPE_FLOAT", "max_batch_size: x # ${not_this}"])
def test_a_plain_mistake_is_not_called_a_template(text: str) -> None:
    assert "template" not in refused(text)


def test_json_takes_both_spellings_and_numbers_as_text() -> None:
    config = parse_json('{"maxBatchSize": 3, "input": [{"name": "a", "data_type": "TYPE_FP32", "dims": ["3", -1]}]}')
    assert config.max_batch_size == 3
    assert list(config.input[0].dims) == [3, -1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"foo": 1}',
            'Invalid config override: Message type "inference.ModelConfig" has no field named "foo" at "ModelConfig".',
        ),
        ("[]", "Invalid config override: expected a JSON object that describes a model configuration"),
        ("", "Invalid config override: expected a JSON object that describes a model configuration"),
    ],
)
def test_a_bad_override(text: str, message: str) -> None:
    with pytest.raises(InvalidRepository) as caught:
        parse_json(text)
    assert str(caught.value) == message
