"""A graph that was brought up, in words: what its picture, its text and its JSON are made of. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.graph.nodes import BUILT_IN
from headrace.graph.segments import Segment, Signature, text_of
from headrace.model import ModelSpec, Padding

if TYPE_CHECKING:
    from headrace.models.graphs import Graph, GraphNode


@dataclass(frozen=True, slots=True)
class Wire:
    """A tensor at one end: what it is called there, what it is called in the graph, and its type there, as in `FP32[3,-1]`."""

    own: str
    tensor: str
    type: str


@dataclass(frozen=True, slots=True)
class NodeOutline:
    """A node. `kind` is `model`, `built-in` or `class`, `runs` the name of that; `version` is 0 for all but models.

    `rows` is what becomes of the rows (`headrace.node`), and `leads_to` the segment where they go on, if they do.
    """

    name: str
    kind: str
    runs: str
    version: int
    isolation: str
    rows: str
    leads_to: str
    reads: tuple[Wire, ...]
    writes: tuple[Wire, ...]


@dataclass(frozen=True, slots=True)
class SegmentOutline:
    """A segment, its nodes in running order. `behind` is the node whose rows it gets, empty for those of the requests.

    `max_batch_size` 0 is a segment whose tensors have no rows; `shares` whether requests share its batches.
    """

    name: str
    behind: str
    max_batch_size: int
    shares: bool
    instances: int
    padding: Padding | None
    nodes: tuple[NodeOutline, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """A graph. Its segments stand each before those behind it; the first has the queue of the requests."""

    name: str
    version: int
    digest: str
    inputs: tuple[Wire, ...]
    outputs: tuple[Wire, ...]
    segments: tuple[SegmentOutline, ...]


def outline_of(
    graph: Graph,
    first: Segment,
    specs: Mapping[str, ModelSpec],
    signatures: Mapping[str, Signature],
    versions: Mapping[str, int],
) -> Outline:
    """Put together what is known of a graph.

    Args:
        graph: what is wired to what.
        first: its first segment.
        specs: what the queue of each segment is told, by the segment's name.
        signatures: of every node, by its name.
        versions: of the model that a node runs, by the node's name.
    """
    behind = {border.segment.name: border.node for each in first.walk() for border in each.borders if border.segment is not None}
    leads = {node: segment for segment, node in behind.items()}

    def node_of(name: str, segment: Segment) -> NodeOutline:
        node, signature = graph.nodes[name], signatures[name]

        def wires(mapped: Mapping[str, str], *, are_read: bool) -> tuple[Wire, ...]:
            declared = signature.inputs if are_read else signature.outputs
            has_rows = segment.max_batch_size > 0
            return tuple(
                Wire(own, tensor, text_of(signature.seen(declared[own], has_rows=has_rows))) for own, tensor in mapped.items()
            )

        return NodeOutline(
            name,
            _kind(node),
            node.model or node.run,
            versions[name] if node.model else 0,
            node.isolation,
            signature.rows,
            leads.get(name, ""),
            wires(node.inputs, are_read=True),
            wires(node.outputs, are_read=False),
        )

    def segment_of(segment: Segment) -> SegmentOutline:
        spec = specs[segment.name]
        return SegmentOutline(
            segment.name,
            behind.get(segment.name, ""),
            segment.max_batch_size,
            spec.batching.enabled,
            spec.instances,
            spec.padding,
            tuple(node_of(name, segment) for name in segment.nodes),
        )

    whole = specs[first.name]
    return Outline(
        graph.name,
        whole.version,
        whole.digest,
        tuple(Wire(spec.name, spec.name, text_of(spec)) for spec in graph.input_specs),
        tuple(Wire(spec.name, spec.name, text_of(spec)) for spec in graph.output_specs),
        tuple(segment_of(segment) for segment in first.walk()),
    )


def told_batches(segment: SegmentOutline) -> list[str]:
    """How the queue of a segment makes batches, in short phrases."""
    if segment.max_batch_size == 0:
        told = ["each request alone, no rows"]
    elif not segment.shares:
        told = [f"each request alone, up to {segment.max_batch_size} rows"]
    else:
        told = [f"batches of up to {segment.max_batch_size} rows"]
    if segment.padding is not None:
        edges = segment.padding.edges
        lengths = " ".join(map(str, edges)) if len(edges) <= 3 else f"{edges[0]} … {edges[-1]}"
        told.append(f"padded to {lengths}")
        if segment.padding.max_elements:
            told.append(f"at most {segment.padding.max_elements} elements")
    if segment.instances > 1:
        told.append(f"{segment.instances} instances")
    return told


def told_runs(node: NodeOutline) -> str:
    """What a node runs, in a few words."""
    what = (
        f"model {node.runs} {node.version}" if node.version else f"{node.runs}{', built in' if node.kind == 'built-in' else ''}"
    )
    return what if node.isolation == "thread" else f"{what}, own process"


def _kind(node: GraphNode) -> str:
    if node.model:
        return "model"
    return "built-in" if node.run in BUILT_IN else "class"
