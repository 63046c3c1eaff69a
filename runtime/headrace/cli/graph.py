"""`headrace graph`: what a graph consists of, as text, as JSON, and as a picture."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.backends.installed import usable_gpus
from headrace.cli.models import is_broken, load_all
from headrace.errors import HeadraceError, InvalidRepository
from headrace.files import replace_file
from headrace.graph.segments import text_of
from headrace.models.fill import GRAPHS
from headrace.node import MANY, SAME

if TYPE_CHECKING:
    from headrace.engine.engine import Engine
    from headrace.engine.lifecycle import Opened
    from headrace.graph.outline import NodeOutline, Outline, SegmentOutline, Wire
    from headrace.models.graphs import Graph


def show_graphs(repository: Path, *, json: bool) -> int:
    """List the graphs of `repository`, which are read and not loaded; the exit status.

    Raises:
        InvalidRepository: there is no repository at that path.
    """
    graphs = _graphs(repository)
    if json:
        _dump([_listed(graph) for graph in graphs.values()])
        return 0
    if not graphs:
        print(f"no graphs in {repository}")
        return 0
    from rich.markup import escape
    from rich.table import Table

    table = Table("graph", "batch", "inputs", "outputs", "nodes", box=None)
    for graph in graphs.values():
        inputs, outputs = (
            "\n".join(f"{spec.name} {text_of(spec)}" for spec in specs) for specs in (graph.input_specs, graph.output_specs)
        )
        table.add_row(*map(escape, [graph.name, str(graph.max_batch_size), inputs, outputs, ", ".join(graph.nodes)]))
    _console().print(table)
    return 0


def show_graph(repository: Path, name: str, *, json: bool, file: Path | None) -> int:
    """Load a graph as a server would, print it, and draw it into `file`; the exit status, 1 when it is broken.

    Raises:
        InvalidRepository: there is no repository at that path, no graph of that name, or the picture cannot be written.
    """
    _check_is_graph(repository, name)
    with load_all(repository, (name,)) as engine:
        # Of several versions of an ensemble, the one that requests get.
        found = [one.opened for one in engine.catalog.running() if one.opened.spec.name == name]
        if not found:
            reason = next(status.reason for status in engine.statuses() if status.model == name and is_broken(status))
            _print_broken(name, " ".join(reason.split()), json=json)
            return 1
        outline = _outline(max(found, key=lambda opened: opened.spec.version), engine)
    if json:
        _dump(_record(outline))
    else:
        _print(outline)
    if file is not None:
        _draw(outline, file)
    return 0


def _graphs(repository: Path) -> dict[str, Graph]:
    """The graphs of a repository that can be read, by name."""
    from headrace.engine.engine import source_of
    from headrace.engine.graphs import graph_of

    source, graphs = source_of(repository), dict[str, "Graph"]()
    for name in source.names():
        try:
            files = source.read(name, gpus=usable_gpus())
        except HeadraceError:
            continue  # `headrace models` says why, whatever it was to be
        if files.config.platform in GRAPHS:
            graphs[name] = graph_of(files)
    return graphs


def _check_is_graph(repository: Path, name: str) -> None:
    """Before anything is loaded; why something cannot be read is told later, as of all that is broken."""
    from headrace.engine.engine import source_of

    try:
        is_graph = source_of(repository).read(name, gpus=usable_gpus()).config.platform in GRAPHS
    except HeadraceError:
        return
    if not is_graph:
        graphs = ", ".join(_graphs(repository))
        told = f"the graphs here are {graphs}" if graphs else "there are none here"
        raise InvalidRepository(f"model '{name}' is no graph; {told}")


def _outline(opened: Opened, engine: Engine) -> Outline:
    from headrace.engine.graphs import graph_of
    from headrace.graph.outline import outline_of
    from headrace.graph.session import SegmentSession

    first = opened.sessions[0][0]
    assert isinstance(first, SegmentSession)
    sessions = [first, *(each.session for each in opened.behind)]
    steps = [step for session in sessions for step in session.steps]
    return outline_of(
        graph_of(engine.repository.read(opened.spec.name)),
        first.segment,
        {first.segment.name: opened.spec} | {each.spec.name: each.spec for each in opened.behind},
        {step.name: step.signature for step in steps},
        {step.name: step.spec.version for step in steps},
    )


def _print_broken(name: str, reason: str, *, json: bool) -> None:
    if json:
        _dump({"graph": name, "reason": reason})
        return
    from rich.markup import escape

    _console().print(f"[red]{escape(name)} is broken:[/red] {escape(reason)}", soft_wrap=True)


def _print(outline: Outline) -> None:
    console = _console()
    for line in _lines(outline):
        console.print(line, soft_wrap=True)


def _lines(outline: Outline) -> Iterator[str]:
    """What is printed, with rich's marks."""
    from rich.markup import escape

    from headrace.graph.outline import told_batches, told_runs

    first = outline.segments[0]
    yield f"[bold]{escape(outline.name)} {outline.version}[/bold] {outline.digest[:12]}, max_batch_size {first.max_batch_size}"
    yield from _wired("in", outline.inputs, "out", outline.outputs)
    for segment in outline.segments:
        whose = f"rows of {segment.behind}" if segment.behind else "requests"
        yield ""
        yield f"[bold]{escape(segment.name)}[/bold]  {escape(', '.join([whose, *told_batches(segment)]))}"
        width = max(len(node.name) for node in segment.nodes)
        for node in segment.nodes:
            yield f"  [cyan]{escape(node.name.ljust(width))}[/cyan]  {escape(told_runs(node))}"
            yield from _wired("  ←", node.reads, "  →", node.writes)
            if node.rows != SAME:
                yield f"  [magenta]{escape(_told_border(node))}[/magenta]"


def _wired(into: str, reads: Sequence[Wire], out: str, writes: Sequence[Wire]) -> Iterator[str]:
    """Tensors, one a line, types below one another."""
    from rich.markup import escape

    told = [
        (mark, wire.own if wire.own == wire.tensor else f"{wire.own}: {wire.tensor}", wire.type)
        for mark, wires in ((into, reads), (out, writes))
        for wire in wires
    ]
    width = max(len(tensor) for _, tensor, _ in told)
    for mark, tensor, type_ in told:
        yield escape(f"  {mark:3} {tensor.ljust(width)}  {type_}")


def _told_border(node: NodeOutline) -> str:
    made = "any number of rows for each" if node.rows == MANY else "rows of shapes that differ"
    return f"═══ {node.rows}: {made}" + (f"; they go on in {node.leads_to}" if node.leads_to else ", which are answered")


def _draw(outline: Outline, file: Path) -> None:
    from headrace.graph.drawing import svg_of

    try:
        replace_file(file, svg_of(outline).encode())
    except OSError as error:
        raise InvalidRepository(f"{file} cannot be written: {error.strerror}") from None
    print(f"written: {file}", file=sys.stderr)


# JSON.


def _listed(graph: Graph) -> dict[str, Any]:
    return {
        "graph": graph.name,
        "max_batch_size": graph.max_batch_size,
        "inputs": dict(graph.inputs),
        "outputs": dict(graph.outputs),
        "nodes": list(graph.nodes),
        "models": list(graph.models),
    }


def _record(outline: Outline) -> dict[str, Any]:
    return {
        "graph": outline.name,
        "version": outline.version,
        "digest": outline.digest,
        "max_batch_size": outline.segments[0].max_batch_size,
        "inputs": {wire.tensor: wire.type for wire in outline.inputs},
        "outputs": {wire.tensor: wire.type for wire in outline.outputs},
        "segments": [_segment_record(segment) for segment in outline.segments],
    }


def _segment_record(segment: SegmentOutline) -> dict[str, Any]:
    padding = segment.padding
    return {
        "segment": segment.name,
        "behind": segment.behind,
        "max_batch_size": segment.max_batch_size,
        "shares_batches": segment.shares,
        "instances": segment.instances,
        "padding": None
        if padding is None
        else {
            "values": dict(padding.values),
            "axis": padding.axis,
            "buckets": list(padding.edges),
            "budget": padding.max_elements,
        },
        "nodes": [_node_record(node) for node in segment.nodes],
    }


def _node_record(node: NodeOutline) -> dict[str, Any]:
    return {
        "node": node.name,
        "kind": node.kind,
        "runs": node.runs,
        "version": node.version or None,
        "isolation": node.isolation,
        "rows": node.rows,
        "leads_to": node.leads_to,
        "inputs": _wire_records(node.reads),
        "outputs": _wire_records(node.writes),
    }


def _wire_records(wires: Sequence[Wire]) -> list[Mapping[str, str]]:
    return [{"name": wire.own, "tensor": wire.tensor, "type": wire.type} for wire in wires]


def _dump(record: object) -> None:
    jsonlib.dump(record, sys.stdout, indent=2)
    print()


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)
