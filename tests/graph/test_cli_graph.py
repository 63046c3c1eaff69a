"""`headrace graph`: what is printed, and the picture. Pictures are looked at by their elements."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from headrace.graph.drawing import svg_of
from headrace.graph.outline import Outline, outline_of
from headrace.graph.segments import Signature, cut
from headrace.model import Batching, ModelSpec
from headrace.models.graphs import Graph
from headrace.node import MANY, RAGGED, SAME, tensor_of
from tests.command_line import refusal
from tests.graph.conftest import Home
from tests.graph.test_borders import COUNT, NODES, TEXTS

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def graphs(home: Home) -> Home:
    home.model("work", rows=4, dims="1")
    home.graph("count", COUNT, NODES)
    home.graph("texts", TEXTS, NODES)
    return home


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", "graph", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_graph_is_printed_and_drawn(graphs: Home, tmp_path: Path) -> None:
    done = run("-r", graphs.root, "count", "--svg", tmp_path / "count.svg")
    assert done.returncode == 0, done.stderr
    assert re.match(r"count 1 [0-9a-f]{12}, max_batch_size 8\n", done.stdout)
    assert "count#2  rows of split, batches of up to 4 rows" in done.stdout
    assert re.search(r"  work +model work 1\n +← +x: part +FP32\[1\]\n +→ +y: t +FP32\[1\]\n", done.stdout)
    assert "many: any number of rows for each; they go on in count#2" in done.stdout
    assert labels(ElementTree.fromstring((tmp_path / "count.svg").read_text())) >= {"count#2", "split", "model work 1"}


def test_graphs_are_listed(graphs: Home) -> None:
    done = run("-r", graphs.root)
    assert done.returncode == 0
    assert re.findall(r"^ ?(\w+) +8 ", done.stdout, re.MULTILINE) == ["count", "texts"]
    assert [each["graph"] for each in json.loads(run("-r", graphs.root, "--json").stdout)] == ["count", "texts"]


def test_a_graph_as_json(graphs: Home) -> None:
    told = json.loads(run("-r", graphs.root, "count", "--json").stdout)
    assert [each["segment"] for each in told["segments"]] == ["count", "count#2"]
    assert told["outputs"] == {"OUT": "FP32[-1,1]", "PLACE": "INT64[-1,1]"}
    (split,) = told["segments"][0]["nodes"]
    assert (split["rows"], split["leads_to"], split["runs"]) == ("many", "count#2", "nodes.py:Split")


def test_a_graph_that_is_broken_says_why(graphs: Home) -> None:
    graphs.graph("count", COUNT.replace("model: work", "model: gone"), NODES)
    done = run("-r", graphs.root, "count")
    assert done.returncode == 1
    assert done.stdout.startswith("count is broken: graph 'count': node 'work' runs model 'gone', which is not loaded")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["work"], "model 'work' is no graph; the graphs here are count, texts"),
        (["nobody"], "failed to load 'nobody', failed to poll from model repository"),
        (["--svg", "x.svg"], "--svg draws one graph: give its name"),
        (["count", "--svg", "/there/is/none.svg"], "/there/is/none.svg cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_shown(graphs: Home, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal("graph", "-r", graphs.root, *arguments, capture=capsys)
    assert said.count("\n") == 1
    assert told in said


# The picture.


def outline(wiring: str, **rows: str) -> Outline:
    """`name: inputs > outputs`, one a line, all FP32[3]; a border's rows by its name."""
    nodes: dict[str, dict[str, object]] = {}
    for line in wiring.strip().splitlines():
        name, reads, writes = re.split(r"[:>]", line)
        wired = [
            {f"{what}{number}": tensor for number, tensor in enumerate(each.split())}
            for what, each in zip("xy", (reads, writes), strict=True)
        ]
        nodes[name.strip()] = {"run": "nodes.py:Any", "inputs": wired[0], "outputs": wired[1]}
    written = [tensor for node in nodes.values() for tensor in node["outputs"].values()]  # type: ignore[attr-defined]
    outputs = {name: "FP32[-1,3]" if MANY in rows.values() else "FP32[3]" for name in written if name.startswith("OUT")}
    graph = Graph.of("g", inputs={"IN": "FP32[3]"}, outputs=outputs, nodes=nodes, max_batch_size=8)  # type: ignore[arg-type]
    spec = tensor_of("t", "FP32[3]")
    signatures = {
        name: Signature(dict.fromkeys(node.inputs, spec), dict.fromkeys(node.outputs, spec), rows.get(name, SAME))
        for name, node in graph.nodes.items()
    }
    first = cut(graph, signatures)
    specs = {
        each.name: ModelSpec(each.name, 1, "d" * 64, "", "", 8, each.inputs, each.outputs, Batching(enabled=True))
        for each in first.walk()
    }
    return outline_of(graph, first, specs, signatures, dict.fromkeys(graph.nodes, 1))


CHAIN = "a: IN > t\nb: t > u\nc: u > OUT"
DIAMOND = "a: IN > t u\nb: t > v\nc: u > w\nd: v w IN > OUT"
NESTED = "detect: IN > crop box\nread: crop > word\nsplit: word > letter\nname: letter box > OUT"
LARGE = "\n".join(
    ["n0: IN > t0"]
    + [f"n{n}: t{n - 1} t{max(0, n - 4)} > t{n}" for n in range(1, 29)]
    + ["n29: t28 t27 t26 t25 > OUT"]
)  # fmt: skip
PICTURES: dict[str, Outline] = {
    "chain": outline(CHAIN),
    "diamond": outline(DIAMOND),
    "nested": outline(NESTED, detect=MANY, split=RAGGED),
    "large": outline(LARGE),
}


def labels(picture: ElementTree.Element) -> set[str]:
    return {span.text or "" for span in picture.iter(f"{SVG}tspan")}


@pytest.mark.parametrize("name", PICTURES)
def test_every_node_and_tensor_is_drawn_and_none_on_another(name: str) -> None:
    told = PICTURES[name]
    text = svg_of(told)
    assert text == svg_of(told)
    picture = ElementTree.fromstring(text)
    width, height = (float(picture.attrib[side]) for side in ("width", "height"))
    nodes = {node.name for segment in told.segments for node in segment.nodes}
    tensors = {wire.tensor for segment in told.segments for node in segment.nodes for wire in (*node.reads, *node.writes)}
    assert labels(picture) >= nodes | tensors | {segment.name for segment in told.segments}
    boxes = [box for box in picture.iter(f"{SVG}rect") if box.attrib["class"] not in ("page", "band")]
    assert len(boxes) == len(nodes) + len(tensors)
    places = [tuple(float(box.attrib[key]) for key in ("x", "y", "width", "height")) for box in boxes]
    for x, y, w, h in places:
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    for (x, y, w, h), (x2, y2, w2, h2) in combinations(places, 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_names_of_any_kind_are_drawn() -> None:
    told = outline('a: IN > t\nb<"&>é漢: t > OUT'.replace(">é", "é"))
    assert 'b<"&é漢' in labels(ElementTree.fromstring(svg_of(told)))
