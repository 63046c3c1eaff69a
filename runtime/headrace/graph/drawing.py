"""The picture of a graph, as SVG: from top to bottom the inputs, the segments in their running order, the outputs.

A segment is a shaded band, with what its queue does written beside it. Tensors are drawn between the nodes; those that rows
bring over a border are at the head of the band where these rows are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

from headrace.graph.layout import ANSWER, NODE, TENSOR, WAY, Item, Link, links_of, ordered, placed
from headrace.graph.outline import NodeOutline, Outline, SegmentOutline, Wire, told_batches, told_runs
from headrace.node import SAME

_EM = 0.61
"""The width of a letter of any common monospace font, in its size; some are narrower."""
_NAME, _SMALL = 13.0, 11.0
_LINE = 16.0
_PAD = 12.0
_MARGIN = 20.0
_BETWEEN = 24.0
"""Between layers at least; lines that go far to the side get more."""
_TENSOR_HEIGHT = 22.0

_STYLE = """
text { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 11px; fill: #1f2328; }
.page { fill: #ffffff; }
.band { fill: #eef2f7; }
.box { fill: #ffffff; stroke: #57606a; stroke-width: 1.2; }
.model { fill: #e3edff; stroke: #2f5fb3; }
.border { stroke-dasharray: 5 3; }
.tensor { fill: #ffffff; stroke: #afb8c1; }
.end { fill: #fff6dd; stroke: #9a6700; }
.line { fill: none; stroke: #8c959f; stroke-width: 1.3; stroke-linecap: round; }
.tip { fill: #8c959f; }
.name { font-size: 13px; font-weight: bold; }
.soft { fill: #57606a; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .page { fill: #0d1117; }
  .band { fill: #1a212b; }
  .box { fill: #0d1117; stroke: #8b949e; }
  .model { fill: #16294d; stroke: #6d9ff0; }
  .tensor { fill: #0d1117; stroke: #545d68; }
  .end { fill: #33290c; stroke: #bb8d1f; }
  .line { stroke: #768390; }
  .tip { fill: #768390; }
  .soft { fill: #9aa5b1; }
}
"""


def svg_of(outline: Outline) -> str:
    """The picture; the same for the same graph."""
    return _Drawing(outline).svg()


class _Drawing:
    """What goes where."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._nodes: dict[Item, NodeOutline] = {}
        self._wires: dict[Item, Wire] = {}
        self._bands: list[tuple[SegmentOutline, int, int]] = []
        """Segments, with their first and their last layer."""
        self._layers = self._layered()
        self._links = links_of(self._lines())
        for layer in {item.layer for link in self._links for item in link}:
            known = set(self._layers[layer])
            ways = {item: None for link in self._links for item in link if item.layer == layer and item not in known}
            self._layers[layer] += ways
        self._layers = ordered(self._layers, self._links)
        widths = {item: self._width(item) for layer in self._layers for item in layer}
        self._widths: Mapping[Item, float] = widths
        self._centres = placed(self._layers, widths, self._links)
        self._ports = self._all_ports()
        self._gutter = max(_text_width(line, size) for band, _, _ in self._bands for line, size in _beside(band)) + 2 * _PAD
        self._left = _MARGIN + self._gutter + _PAD
        self._right = self._left + max(self._centres[item] + widths[item] / 2 for item in self._centres) + _PAD
        self._right = max(self._right, _MARGIN + _text_width(self._title(), _NAME))
        self._tops: list[float] = []
        self._heights = [max(map(self._height, layer)) for layer in self._layers]
        self._edges: list[tuple[float, float]] = []
        """Of the bands: top and bottom."""
        self._bottom = self._stack()

    # Layers.

    def _layered(self) -> list[list[Item]]:
        """Boxes by layers: inputs; of each segment, what its rows bring, then nodes and tensors in turn; outputs."""
        outline = self._outline
        read = {wire.tensor for segment in outline.segments for node in segment.nodes for wire in node.reads}
        layers: list[list[Item]] = [[self._tensor(TENSOR, wire, 0) for wire in outline.inputs]]
        for segment in outline.segments:
            brought = [
                wire
                for each in outline.segments
                for node in each.nodes
                for wire in node.writes
                if node.leads_to == segment.name and wire.tensor in read
            ]
            first = len(layers)
            if brought:
                layers.append([self._tensor(TENSOR, wire, first) for wire in brought])
            depths: dict[str, int] = {}
            """Of the tensors written in this segment: how many nodes they have gone through."""
            begin = len(layers)
            for node in segment.nodes:
                depth = max((depths.get(wire.tensor, 0) for wire in node.reads), default=0)
                layer = begin + 2 * depth
                while len(layers) < layer + 2:
                    layers.append([])
                item = Item(NODE, node.name, layer)
                self._nodes[item] = node
                layers[layer].append(item)
                if node.rows == SAME:
                    depths |= {wire.tensor: depth + 1 for wire in node.writes}
                    layers[layer + 1] += [self._tensor(TENSOR, wire, layer + 1) for wire in node.writes if wire.tensor in read]
            if not layers[-1]:
                layers.pop()
            self._bands.append((segment, first, len(layers) - 1))
        layers.append([self._tensor(ANSWER, wire, len(layers)) for wire in outline.outputs])
        return layers

    def _tensor(self, kind: str, wire: Wire, layer: int) -> Item:
        item = Item(kind, wire.tensor, layer)
        self._wires[item] = wire
        return item

    def _lines(self) -> list[tuple[str, Item, Item]]:
        """From tensors to those who read them, and from nodes to what they write."""
        boxes = {(item.kind, item.name): item for item in (*self._nodes, *self._wires)}
        lines: list[tuple[str, Item, Item]] = []
        for item, node in self._nodes.items():
            lines += [(wire.tensor, boxes[TENSOR, wire.tensor], item) for wire in node.reads]
            for wire in node.writes:
                ends = [boxes[key] for key in ((TENSOR, wire.tensor), (ANSWER, wire.tensor)) if key in boxes]
                lines += [(wire.tensor, source, target) for source, target in zip((item, *ends), ends, strict=False)]
        return lines

    # Sizes.

    def _width(self, item: Item) -> float:
        if item.kind == WAY:
            return 4.0
        if item.kind != NODE:
            wire = self._wires[item]
            return _text_width(f"{wire.tensor} {wire.type}", _SMALL) + 2 * _PAD
        node = self._nodes[item]
        return max(_text_width(node.name, _NAME), *(_text_width(line, _SMALL) for line in _below_name(node))) + 2 * _PAD

    def _height(self, item: Item) -> float:
        if item.kind == NODE:
            return _LINE * (1 + len(_below_name(self._nodes[item]))) + _PAD
        return 0.0 if item.kind == WAY else _TENSOR_HEIGHT

    def _all_ports(self) -> dict[tuple[Link, int], float]:
        """Where links leave (0) and reach (1) their items: side by side along a node, in the middle of the rest."""
        ports: dict[tuple[Link, int], float] = {}
        for end in (0, 1):
            ends: dict[Item, list[Link]] = {}
            for link in self._links:
                ends.setdefault(link[end], []).append(link)
            for item, links in ends.items():
                links.sort(key=lambda link: self._centres[link[1 - end]])
                step = min(18.0, (self._widths[item] - 2 * _PAD) / len(links)) if item.kind == NODE else 0.0
                for number, link in enumerate(links):
                    ports[link, end] = self._centres[item] + (number - (len(links) - 1) / 2) * step
        return ports

    def _stack(self) -> float:
        """Say where layers and bands begin, from the top; return where the last one ends."""
        begins = {first: band for band, first, _ in self._bands}
        ends = {last: band for band, _, last in self._bands}
        y, top = _MARGIN + 2 * _LINE, 0.0
        for layer, height in enumerate(self._heights):
            if layer:
                aside = max((abs(a - b) for a, b in self._between(layer)), default=0.0)
                y += _BETWEEN + min(40.0, aside / 10)
            if layer in begins:
                top = y
                y += _PAD
            self._tops.append(y)
            y += height
            if layer in ends:
                least = top + _LINE * len(_beside(ends[layer])) + _PAD
                y = max(y + _PAD, least)
                self._edges.append((top, y))
        return y

    def _between(self, layer: int) -> Iterator[tuple[float, float]]:
        for link in self._links:
            if link[1].layer == layer:
                yield self._ports[link, 0], self._ports[link, 1]

    # Out.

    def _title(self) -> str:
        return f"{self._outline.name} {self._outline.version} {self._outline.digest[:12]}"

    def svg(self) -> str:
        """The text of the file."""
        width, height = round(self._right + _MARGIN), round(self._bottom + _MARGIN)
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
            f"<title>{_text(self._title())}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="page" width="{width}" height="{height}"/>',
            _line(
                _MARGIN, _MARGIN + _LINE, [("name", self._outline.name), ("soft", self._title()[len(self._outline.name) + 1 :])]
            ),
            *self._drawn_bands(),
            *self._drawn_links(),
            *self._drawn_boxes(),
            "</svg>",
        ]
        return "\n".join(lines) + "\n"

    def _drawn_bands(self) -> Iterator[str]:
        for (band, _, _), (top, bottom) in zip(self._bands, self._edges, strict=True):
            yield _rectangle("band", _MARGIN, top, self._right - _MARGIN, bottom - top, 10)
            for number, (line, size) in enumerate(_beside(band), 1):
                yield _line(_MARGIN + _PAD, top + number * _LINE + 2, [("name" if size == _NAME else "soft", line)])

    def _drawn_links(self) -> Iterator[str]:
        for link in self._links:
            source, target = link
            x, end = self._left + self._ports[link, 0], self._left + self._ports[link, 1]
            layer = source.layer
            top, bottom = self._tops[layer], self._tops[target.layer]
            y = top + self._height(source) if source.kind != WAY else top + self._heights[layer]
            middle = (top + self._heights[layer] + bottom) / 2
            start = f"M{x:.1f} {y:.1f}V{top + self._heights[layer]:.1f}"
            through = f"V{bottom + self._heights[target.layer]:.1f}" if target.kind == WAY else ""
            yield (
                f'<path class="line" d="{start}C{x:.1f} {middle:.1f} {end:.1f} {middle:.1f} {end:.1f} {bottom:.1f}{through}"/>'
            )
            if target.kind in (NODE, ANSWER):
                yield f'<path class="tip" d="M{end - 3.5:.1f} {bottom - 7:.1f}h7l-3.5 7z"/>'

    def _drawn_boxes(self) -> Iterator[str]:
        for item in (*self._nodes, *self._wires):
            width, height = self._widths[item], self._height(item)
            centre, top = self._left + self._centres[item], self._tops[item.layer]
            if item.kind == NODE:
                node = self._nodes[item]
                kind = "box" + (" model" if node.kind == "model" else "") + (" border" if node.rows != SAME else "")
                yield _rectangle(kind, centre - width / 2, top, width, height, 7)
                for number, line in enumerate((node.name, *_below_name(node)), 1):
                    yield _line(centre, top + number * _LINE + 3, [("soft" if number > 1 else "name", line)], "middle")
            else:
                wire = self._wires[item]
                is_end = item.kind == ANSWER or item.layer == 0
                yield _rectangle("end" if is_end else "tensor", centre - width / 2, top, width, height, height / 2)
                yield _line(centre, top + 15, [("", wire.tensor), ("soft", wire.type)], "middle")


def _beside(segment: SegmentOutline) -> list[tuple[str, float]]:
    """What stands beside a band, line by line, and how large."""
    whose = f"rows of {segment.behind}" if segment.behind else "rows of the requests" if segment.max_batch_size else "requests"
    return [(segment.name, _NAME), *((line, _SMALL) for line in (whose, *told_batches(segment)))]


def _below_name(node: NodeOutline) -> list[str]:
    rows = {SAME: []}.get(node.rows, [f"{node.rows} rows" + (f" → {node.leads_to}" if node.leads_to else "")])
    return [told_runs(node), *rows]


def _text_width(text: str, size: float) -> float:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text) * size * _EM


def _text(text: str) -> str:
    # What XML cannot hold at all, not even escaped, may still be in a name.
    return escape(re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


def _rectangle(kind: str, x: float, y: float, width: float, height: float, radius: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:.0f}"/>'


def _line(x: float, y: float, parts: Sequence[tuple[str, str]], anchor: str = "start") -> str:
    spans = " ".join(
        f'<tspan class="{kind}">{_text(text)}</tspan>' if kind else f"<tspan>{_text(text)}</tspan>" for kind, text in parts
    )
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{spans}</text>'
