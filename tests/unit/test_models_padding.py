"""The parameters that say how inputs are padded."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from headrace.errors import InvalidRepository
from headrace.model import GraphIO, GraphTensor, Padding
from headrace.models.check import check_graph
from headrace.models.pbtxt import parse
from headrace.models.spec import spec_of, warnings

INPUTS = """
name: "m" max_batch_size: 8
input { name: "ids" data_type: TYPE_INT64 dims: -1 }
input { name: "mask" data_type: TYPE_BOOL dims: -1 optional: true }
input { name: "frames" data_type: TYPE_FP16 dims: [ 3, -1 ] }
input { name: "boxes" data_type: TYPE_UINT8 dims: [ -1, -1 ] }
input { name: "text" data_type: TYPE_STRING dims: -1 }
input { name: "flat" data_type: TYPE_FP32 dims: -1 reshape { shape: [ -1, 1 ] } }
output { name: "found" data_type: TYPE_FP32 dims: -1 }
output { name: "pooled" data_type: TYPE_FP32 dims: -1 }
"""


def padding(inputs: str = INPUTS, **parameters: str) -> Padding | None:
    given = "".join(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items())
    return spec_of(parse(inputs + given, ""), 1, "", Path()).padding


def test_what_is_said() -> None:
    said = padding(
        padding="ids=-1,mask=0, boxes=255",
        padding_axis="0",
        padding_mask="mask",
        padding_buckets="16 32,64",
        padding_budget="4096",
        padding_whole="found, pooled",
    )
    assert said == Padding(0, {"ids": -1, "mask": 0, "boxes": 255}, (16, 32, 64), "mask", 4096, ("found", "pooled"))
    assert padding() is None
    assert warnings(parse(INPUTS + 'parameters { key: "padding" value { string_value: "ids=0" } }', "")) == []


def test_what_need_not_be_said() -> None:
    assert padding(padding="ids=0", padding_buckets="8") == Padding(0, {"ids": 0}, (8,))
    assert padding(padding="frames=-inf", padding_axis="1", padding_buckets="8") == Padding(1, {"frames": float("-inf")}, (8,))


@pytest.mark.parametrize("value", ["9223372036854775807", "-9223372036854775808", "2.0"])
def test_whole_numbers_stay_whole(value: str) -> None:
    said = padding(padding=f"ids={value}", padding_buckets="8")
    assert said is not None
    assert said.values["ids"] == int(float(value) if "." in value else value)


def test_steps_are_geometric_and_end_where_they_should() -> None:
    said = padding(padding="ids=0", padding_buckets="16..512")
    assert said is not None
    assert (said.edges[0], said.edges[-1]) == (16, 512)
    assert all(1.2 < b / a < 1.4 for a, b in pairwise(said.edges))
    for few, edges in (("1..3", (1, 2, 3)), ("7..7", (7,)), ("7 .. 7", None)):
        if edges is None:
            with pytest.raises(InvalidRepository, match="padding_buckets"):
                padding(padding="ids=0", padding_buckets=few)
        else:
            assert getattr(padding(padding="ids=0", padding_buckets=few), "edges", None) == edges


ASCENDING = "expected lengths that ascend, as in 16 32 64, or the first and the last, as in 16..512"


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        (
            {"padding": "ids=0", "padding_buckets": "8", "padding_whole": "gone"},
            "padding_whole names output 'gone'; the outputs are found, pooled",
        ),
        ({"padding": ""}, "parameter 'padding' is '', expected inputs and what each is padded with"),
        ({"padding": "ids"}, "parameter 'padding' is 'ids', expected inputs and what each is padded with"),
        ({"padding": "=0"}, "parameter 'padding' is '=0', expected inputs"),
        ({"padding": "idz=0"}, "padding names input 'idz'; the inputs are ids, mask, frames, boxes, text, flat"),
        ({"padding": "ids=0 ids=1"}, "padding names input 'ids' twice"),
        ({"padding": "text=0"}, "input 'text' cannot be padded: it is BYTES, and only numbers can be"),
        ({"padding": "flat=0"}, "input 'flat' cannot be padded: it has a reshape; declare it as the model sees it"),
        (
            {"padding": "ids=0 frames=0"},
            "input 'frames' cannot be padded: padding_axis is 0, and dimension 0 of dims [3,-1]",
        ),
        (
            {"padding": "frames=0 ids=0", "padding_axis": "1"},
            "input 'ids' cannot be padded: padding_axis is 1, and",
        ),
        ({"padding": "ids=nan"}, "padding of input 'ids' is 'nan', expected a number"),
        ({"padding": "ids=zero"}, "padding of input 'ids' is 'zero', expected a number"),
        ({"padding": "ids=0.5"}, "padding of input 'ids' is 0.5, which INT64 cannot hold"),
        ({"padding": "ids=9223372036854775808"}, "padding of input 'ids' is 9223372036854775808, which INT64 cannot hold"),
        ({"padding": "ids=inf"}, "padding of input 'ids' is inf, which INT64 cannot hold"),
        ({"padding": "boxes=-1"}, "padding of input 'boxes' is -1, which UINT8 cannot hold"),
        ({"padding": "mask=2"}, "padding of input 'mask' is 2, which BOOL cannot hold"),
        ({"padding": "frames=70000", "padding_axis": "1"}, "padding of input 'frames' is 70000, which FP16 cannot hold"),
        ({"padding": f"frames=1{'0' * 400}", "padding_axis": "1"}, "which FP16 cannot hold"),
        ({"padding_axis": "-1"}, "parameter 'padding_axis' is '-1', expected a whole number from 0 on"),
        ({"padding_axis": "1"}, "padding_axis is 1, and dimension 1 of dims [-1] is not -1"),
        ({"padding_mask": "mask"}, "padding_mask is 'mask', which is not padded; padding names ids"),
        (
            {"padding": "boxes=0", "padding_mask": "boxes"},
            "padding_mask 'boxes' has dims [-1,-1]: to be made, only",
        ),
        ({"padding_buckets": ""}, f"parameter 'padding_buckets' is '', {ASCENDING}"),
        ({"padding_buckets": "16 x"}, f"parameter 'padding_buckets' is '16 x', {ASCENDING}"),
        ({"padding_buckets": "16 16"}, f"parameter 'padding_buckets' is '16 16', {ASCENDING}, from 1 to 2147483647"),
        ({"padding_buckets": "32 16"}, f"parameter 'padding_buckets' is '32 16', {ASCENDING}, from 1 to 2147483647"),
        ({"padding_buckets": "0 16"}, f"parameter 'padding_buckets' is '0 16', {ASCENDING}, from 1 to 2147483647"),
        ({"padding_buckets": "16..8"}, f"parameter 'padding_buckets' is '16..8', {ASCENDING}, from 1 to 2147483647"),
        ({"padding_buckets": "1..2147483648"}, f"{ASCENDING}, from 1 to 2147483647"),
        ({"padding_budget": "many"}, "parameter 'padding_budget' is 'many', expected a whole number from 0 on"),
    ],
)
def test_what_means_nothing(parameters: dict[str, str], told: str) -> None:
    with pytest.raises(InvalidRepository) as caught:
        padding(**{"padding": "ids=0", "padding_buckets": "8", **parameters})
    assert caught.value.message.startswith("model 'm': ")
    assert told in caught.value.message


def test_what_is_missing() -> None:
    with pytest.raises(InvalidRepository, match=r"model 'm': padding needs 'padding_buckets', the lengths to pad to"):
        padding(padding="ids=0")
    with pytest.raises(InvalidRepository, match=r"model 'm': parameter 'padding_mask' has no meaning without 'padding'"):
        padding(padding_mask="mask")
    with pytest.raises(InvalidRepository, match=r"model 'm': padding needs a batch dimension, and max_batch_size is 0"):
        padding(INPUTS.replace("8", "0", 1), padding="ids=0", padding_buckets="8")


def test_an_optional_mask_is_allowed_for_a_model_that_batches_if_it_is_made() -> None:
    """Triton has no optional inputs there; this one never reaches the model as missing."""
    config = """
    name: "m" max_batch_size: 8
    input { name: "ids" data_type: TYPE_INT64 dims: -1 }
    input { name: "mask" data_type: TYPE_INT64 dims: -1 optional: true }
    parameters { key: "padding_mask" value { string_value: "mask" } }
    """
    io = GraphIO((GraphTensor("ids", "INT64", (-1, -1)), GraphTensor("mask", "INT64", (-1, -1))), ())
    check_graph(parse(config + 'parameters { key: "padding" value { string_value: "ids=0 mask=0" } }', ""), io)
    with pytest.raises(InvalidRepository, match="configuration expects 1 inputs, model provides 2"):
        check_graph(parse(config, ""), io)
