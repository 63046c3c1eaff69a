"""What a graph may not be, and how one is cut into segments. Pure: nothing runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import InvalidRepository
from headrace.graph.segments import MOST_ROWS, Segment, Signature, cut, text_of
from headrace.models.graphs import Graph, graph_of_ensemble, parse_graph
from headrace.models.pbtxt import parse
from headrace.node import MANY, RAGGED, tensor_of


def signature(inputs: str, outputs: str, **more: Any) -> Signature:
    """`x=FP32[3] y=BYTES[1]`."""
    told = [dict(word.split("=") for word in text.split()) for text in (inputs, outputs)]
    taken, given = [{name: tensor_of(name, text) for name, text in each.items()} for each in told]
    return Signature(taken, given, **more)


def node(inputs: str, outputs: str, **more: Any) -> dict[str, Any]:
    """`own=tensor`, by its own names."""
    wired = [dict(word.split("=") for word in text.split()) for text in (inputs, outputs)]
    return {"inputs": wired[0], "outputs": wired[1], **({"run": "x:Y"} | more if "model" not in more else more)}


def graph(nodes: Mapping[str, Any], inputs: str = "IN=FP32[3]", outputs: str = "OUT=FP32[3]", max_batch_size: int = 8) -> Graph:
    ends = [dict(word.split("=") for word in text.split()) for text in (inputs, outputs)]
    return Graph.of("g", inputs=ends[0], outputs=ends[1], nodes=nodes, max_batch_size=max_batch_size)


SAME = signature("x=FP32[3]", "y=FP32[3]")


def cut_of(nodes: Mapping[str, Any], signatures: Mapping[str, Signature], **more: Any) -> Segment:
    return cut(graph(nodes, **more), signatures)


def test_nodes_run_in_the_order_of_what_they_read() -> None:
    nodes = {"last": node("x=b", "y=OUT"), "first": node("x=IN", "y=a"), "middle": node("x=a", "y=b")}
    segment = cut_of(nodes, dict.fromkeys(nodes, SAME))
    assert segment.nodes == ("first", "middle", "last")
    assert segment.borders == ()
    assert (segment.name, segment.max_batch_size) == ("g", 8)


def test_one_tensor_may_be_read_by_several_and_answered_too() -> None:
    nodes = {"a": node("x=IN", "y=OUT"), "b": node("x=OUT", "y=two"), "c": node("x=OUT", "y=three")}
    segment = cut_of(nodes, dict.fromkeys(nodes, SAME), outputs="OUT=FP32[3] two=FP32[3] three=FP32[-1]")
    assert [spec.name for spec in segment.outputs] == ["OUT", "two", "three"]


def test_a_border_begins_a_segment() -> None:
    nodes = {"crops": node("x=IN", "y=crop box=BOX"), "read": node("x=crop", "y=OUT", model="m")}
    signatures = {
        "crops": signature("x=FP32[3]", "y=FP32[3,-1] box=FP32[4]", rows=MANY),
        "read": signature("x=FP32[3,-1]", "y=BYTES[1]", max_batch_size=6),
    }
    first = cut_of(nodes, signatures, outputs="OUT=BYTES[-1,1] BOX=FP32[-1,4]")
    (border,) = first.borders
    assert (border.node, border.rows, [text_of(spec) for spec in border.outputs]) == ("crops", MANY, ["FP32[4]"])
    behind = border.segment
    assert behind is not None
    assert (behind.name, behind.nodes, behind.max_batch_size) == ("g#2", ("read",), 6)
    assert [(spec.name, text_of(spec)) for spec in behind.inputs] == [("crop", "FP32[3,-1]")]
    assert [text_of(spec) for spec in behind.outputs] == ["BYTES[1]"]
    assert [segment.name for segment in first.walk()] == ["g", "g#2"]


def test_what_is_read_behind_a_border_goes_with_its_rows() -> None:
    nodes = {
        "split": node("x=IN", "y=part"),
        "deep": node("x=part", "y=deeper"),
        "end": node("x=deeper z=IN", "y=OUT"),
    }
    signatures = {
        "split": signature("x=FP32[3]", "y=FP32[3]", rows=RAGGED),
        "deep": signature("x=FP32[3]", "y=FP32[2]", rows=MANY),
        "end": signature("x=FP32[2] z=FP32[3]", "y=FP32[3]"),
    }
    first = cut_of(nodes, signatures, outputs="OUT=FP32[-1,3]")
    second, third = list(first.walk())[1:]
    assert [spec.name for spec in second.inputs] == ["part", "IN"]
    assert [spec.name for spec in third.inputs] == ["deeper", "IN"]
    assert [text_of(spec) for spec in second.outputs] == ["FP32[-1,3]"]
    assert second.max_batch_size == third.max_batch_size == 8


def test_a_border_at_the_end_has_nothing_behind() -> None:
    first = cut_of(
        {"a": node("x=IN", "y=OUT")}, {"a": signature("x=FP32[3]", "y=INT64[-1]", rows=RAGGED)}, outputs="OUT=INT64[-1]"
    )
    assert first.borders[0].segment is None


def test_without_rows_those_of_a_model_are_a_dimension() -> None:
    nodes = {"a": node("x=IN", "y=t", model="m"), "b": node("x=t", "y=OUT", model="n")}
    signatures = {
        "a": signature("x=FP32[3]", "y=FP32[2]", max_batch_size=4),
        "b": signature("x=FP32[-1,2]", "y=FP32[5]", max_batch_size=0),
    }
    segment = cut_of(nodes, signatures, inputs="IN=FP32[-1,3]", outputs="OUT=FP32[5]", max_batch_size=0)
    assert segment.max_batch_size == 0


def test_rows_behind_a_border_have_a_bound_although_nobody_says_one() -> None:
    nodes = {"a": node("x=IN", "y=t"), "b": node("x=t", "y=OUT")}
    signatures = {"a": signature("x=FP32[3]", "y=FP32[3]", rows=MANY), "b": SAME}
    first = cut_of(nodes, signatures, outputs="OUT=FP32[-1,3]", max_batch_size=0)
    assert [segment.max_batch_size for segment in first.walk()] == [0, MOST_ROWS]


WRONG = {
    "a node has no such input": (
        {"a": node("z=IN", "y=OUT")},
        {"a": SAME},
        "graph 'g': node 'a' has no input 'z'; its inputs are x",
    ),
    "a node has no such output": (
        {"a": node("x=IN", "z=OUT")},
        {"a": SAME},
        "graph 'g': node 'a' has no output 'z'; its outputs are y",
    ),
    "an input is missing": (
        {"a": node("x=IN", "y=OUT")},
        {"a": signature("x=FP32[3] mask=INT64[-1]", "y=FP32[3]")},
        "graph 'g': input 'mask' of node 'a', INT64[-1], is missing: name a tensor for it",
    ),
    "nobody writes it": (
        {"a": node("x=IN", "y=u"), "b": node("x=t", "y=OUT")},
        dict.fromkeys("ab", SAME),
        "graph 'g': node 'b' reads tensor 't', which nobody writes; there are IN, u, OUT",
    ),
    "two write it": (
        {"a": node("x=IN", "y=OUT"), "b": node("x=IN", "y=OUT")},
        dict.fromkeys("ab", SAME),
        "graph 'g': tensor 'OUT' is written twice, by node 'a' and by node 'b'",
    ),
    "an input of the graph is written": (
        {"a": node("x=IN", "y=OUT"), "b": node("x=OUT", "y=IN")},
        dict.fromkeys("ab", SAME),
        "graph 'g': tensor 'IN' is written twice, by the graph's inputs and by node 'b'",
    ),
    "nobody reads it": (
        {"a": node("x=IN", "y=OUT"), "b": node("x=IN", "y=t")},
        dict.fromkeys("ab", SAME),
        "graph 'g': tensor 't', which comes from node 'b', is not used: nobody reads it",
    ),
    "an output is not written": (
        {"a": node("x=IN", "y=t"), "b": node("x=t", "y=u"), "c": node("x=u", "y=v")},
        dict.fromkeys("abc", SAME),
        "graph 'g': output 'OUT' of the graph is written by no node",
    ),
    "a cycle": (
        {"a": node("x=IN z=u", "y=t"), "b": node("x=t", "y=u w=OUT")},
        {"a": signature("x=FP32[3] z=FP32[3]", "y=FP32[3]"), "b": signature("x=FP32[3]", "y=FP32[3] w=FP32[3]")},
        "graph 'g': the nodes a, b form a cycle, or stand behind one: none of them can run first",
    ),
    "a datatype differs": (
        {"a": node("x=IN", "y=t"), "b": node("x=t", "y=OUT")},
        {"a": signature("x=FP32[3]", "y=UINT8[3]"), "b": SAME},
        "graph 'g': node 'b' takes input 'x' as FP32[3], and tensor 't', output 'y' of node 'a', is UINT8[3]",
    ),
    "a shape differs": (
        {"a": node("x=IN", "y=OUT")},
        {"a": signature("x=FP32[4]", "y=FP32[3]")},
        "graph 'g': node 'a' takes input 'x' as FP32[4], and input 'IN' of the graph is FP32[3]",
    ),
    "a declared output differs": (
        {"a": node("x=IN", "y=OUT")},
        {"a": signature("x=FP32[3]", "y=FP32[2]")},
        "graph 'g': output 'OUT' of the graph is declared as FP32[3], and tensor 'OUT', output 'y' of node 'a', is FP32[2]",
    ),
    "many rows are one dimension more": (
        {"a": node("x=IN", "y=OUT")},
        {"a": signature("x=FP32[3]", "y=FP32[3]", rows=MANY)},
        "graph 'g': output 'OUT' of the graph is declared as FP32[3], and tensor 'OUT', output 'y' of node 'a', is FP32[-1,3]",
    ),
    "rows of two borders": (
        {"a": node("x=IN", "y=t"), "b": node("x=IN", "y=u"), "c": node("x=t z=u", "y=OUT")},
        {
            "a": signature("x=FP32[3]", "y=FP32[3]", rows=MANY),
            "b": signature("x=FP32[3]", "y=FP32[3]", rows=MANY),
            "c": signature("x=FP32[3] z=FP32[3]", "y=FP32[3]"),
        },
        "graph 'g': node 'c' reads rows of node 'a' and, as 'z', tensor 'u', which has rows of node 'b': what runs together "
        "needs the same rows",
    ),
    "a model without rows": (
        {"a": node("x=IN", "y=OUT", model="m")},
        {"a": signature("x=FP32[3]", "y=FP32[3]", max_batch_size=0)},
        "graph 'g': node 'a' runs model 'm', whose max_batch_size is 0, on rows; set it to the most rows it can take",
    ),
    "a model that takes fewer rows": (
        {"a": node("x=IN", "y=OUT", model="m")},
        {"a": signature("x=FP32[3]", "y=FP32[3]", max_batch_size=4)},
        "graph 'g': ensemble 'g' allows maximum batch size 8, but it contains model 'm' which only allows maximum batch size "
        "to be 4",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_graph_may_not_be(name: str) -> None:
    nodes, signatures, message = WRONG[name]
    with pytest.raises(InvalidRepository) as raised:
        cut_of(nodes, signatures)
    assert raised.value.message == message


GOOD = """
max_batch_size: 4
inputs: {TEXT: "BYTES[1]"}
outputs: {VECTOR: "FP32[384]"}
parameters: {objective_ms: 50}
nodes:
  tokens:
    run: tokenizer
    with: {file: tokenizer.json}
    inputs: {text: TEXT}
    outputs: {ids: ids}
  encode: {model: minilm, version: 3, inputs: {input_ids: ids}, outputs: {vector: VECTOR}}
"""


def test_a_graph_is_read_from_yaml() -> None:
    read = parse_graph(GOOD, "embed", Path("models/embed"), "models/embed/graph.yaml")
    assert (read.name, read.max_batch_size, read.models) == ("embed", 4, ("minilm",))
    assert read.nodes["tokens"].parameters == {"file": "tokenizer.json"}
    assert read.nodes["encode"].version == 3
    assert read.parameters == {"objective_ms": 50}
    written = {name: each.model_dump(by_alias=True) for name, each in read.nodes.items()}
    assert (
        Graph.of(
            "embed",
            inputs=read.inputs,
            outputs=read.outputs,
            nodes=written,
            max_batch_size=4,
            parameters={"objective_ms": 50},
            directory="models/embed",
        )
        == read
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_batch_size: 4", "max_batch: 4", "f: 'max_batch' is unknown; known are inputs, outputs, nodes, max_batch_size, "),
        ("    run: tokenizer\n", "", "f: 'nodes.tokens': expected either `model`, a model of the repository, or `run`, a class"),
        ("version: 3", "version: -3", "f: 'nodes.encode.version': input should be greater than or equal to 0"),
        ('"BYTES[1]"', '"TEXT[1]"', "f: tensor 'TEXT' is written as 'TEXT[1]'; write a datatype and its dimensions, such as "),
        ("inputs: {TEXT", "input: {TEXT", "f: 'inputs' is missing; f: 'input' is unknown; known are "),
        ("  encode:", "  en/code:", "f: 'nodes.en/code' is no name: a name has no space, no / and no #"),
        (
            "{model: minilm,",
            "{model: minilm, with: {a: 1},",
            "f: 'nodes.encode': `with` and `isolation` are for nodes that `run` a",
        ),
        ("max_batch_size: 4", "max_batch_size: [", "f is no YAML: "),
        (GOOD, "just words", "f holds no graph: expected inputs, outputs and nodes"),
    ],
)
def test_what_a_file_may_not_say(old: str, new: str, message: str) -> None:
    with pytest.raises(InvalidRepository) as raised:
        parse_graph(GOOD.replace(old, new), "embed", Path(), "f")
    assert raised.value.message.startswith(message)


def test_an_ensemble_is_a_graph() -> None:
    config = parse(
        """
        name: "e" platform: "ensemble" max_batch_size: 2
        input { name: "IN" data_type: TYPE_STRING dims: 1 } output { name: "OUT" data_type: TYPE_FP32 dims: [-1, 2] }
        ensemble_scheduling {
          step { model_name: "m" model_version: -1 input_map { key: "x" value: "IN" } output_map { key: "y" value: "t" } }
          step { model_name: "m" model_version: 2 input_map { key: "x" value: "t" } output_map { key: "y" value: "OUT" } }
        }
        """,
        "",
    )
    read = graph_of_ensemble(config)
    assert [(name, each.model, each.version) for name, each in read.nodes.items()] == [("m", "m", 0), ("m-2", "m", 2)]
    assert read.nodes["m-2"].inputs == {"x": "t"}
    assert read.inputs == {"IN": "BYTES[1]"}
    assert read.outputs == {"OUT": "FP32[-1,2]"}
