"""A graph, checked and cut into segments. Pure: what the nodes take and give is an argument.

A segment is nodes of one row count, which run back to back in one instance thread. A node whose rows are not those that it got
is the border to the next: its rows wait in a queue of their own, and what came of them goes back to the requests they belong to.
So the segments form a tree; a node runs in the deepest segment that its inputs come from, and what it reads from above is handed
down with the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from headrace.errors import InvalidRepository
from headrace.node import MANY, SAME
from headrace.tensor import TensorSpec, format_shape

if TYPE_CHECKING:
    from headrace.models.graphs import Graph

MOST_ROWS = 64
"""Of a batch of a segment, where no model in it says how many it can take."""

Path: TypeAlias = tuple[str, ...]
"""Where a tensor is: the border nodes between the request and its rows."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a node takes and gives, behind the rows; what becomes of the rows: `headrace.node`.

    `max_batch_size` is that of a model, and 0 one whose tensors have no rows; None is a class, which takes any number.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    rows: str = SAME
    max_batch_size: int | None = None

    @property
    def is_class(self) -> bool:
        """Whether it is a class, and no model."""
        return self.max_batch_size is None

    def seen(self, spec: TensorSpec, *, has_rows: bool) -> TensorSpec:
        """One of its tensors as its segment has it: where that has no rows, those of a model are one more dimension."""
        return replace(spec, dims=(-1, *spec.dims)) if self.max_batch_size and not has_rows else spec


@dataclass(frozen=True, slots=True)
class Border:
    """A node whose rows are not those that it got, and what follows it; `segment` is None where nothing does.

    `outputs` are the tensors of its own rows that are in the answer.
    """

    node: str
    rows: str
    segment: Segment | None
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Nodes in the order in which they run, those at the borders among them.

    `inputs` are the tensors that rows bring; `outputs` what goes back for them, by those who sent them: what a node behind a
    border gave has a dimension more, which varies, where that border makes many rows of one. With `max_batch_size` 0, tensors
    have no rows: only the first segment can be so.
    """

    name: str
    nodes: tuple[str, ...]
    borders: tuple[Border, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int

    def walk(self) -> Iterator[Segment]:
        """This segment and all behind it, each before those that follow it."""
        yield self
        for border in self.borders:
            if border.segment is not None:
                yield from border.segment.walk()


def cut(graph: Graph, signatures: Mapping[str, Signature]) -> Segment:
    """The first segment of a graph, and so all of them.

    Args:
        graph: what is wired to what.
        signatures: of every node, by its name.

    Raises:
        InvalidRepository: it cannot run; the message names node, tensor and, where they differ, both types.
    """
    return _Cut(graph, signatures).segment((), graph.name)


def text_of(spec: TensorSpec) -> str:
    """A type as it is written: `FP32[3,-1]`."""
    return f"{spec.datatype}{format_shape(spec.dims)}"


class _Cut:
    """What is found out of one graph on the way."""

    def __init__(self, graph: Graph, signatures: Mapping[str, Signature]) -> None:
        self._graph, self._signatures = graph, signatures
        self._specs: dict[str, TensorSpec] = {spec.name: spec for spec in graph.input_specs}
        """Tensors by name, as they are within the rows of their place."""
        self._places: dict[str, Path] = dict.fromkeys(self._specs, ())
        self._told: dict[str, str] = {name: f"input '{name}' of the graph" for name in self._specs}
        self._homes: dict[str, Path] = {}
        """The segment of each node, in the order in which they can run."""
        self._check_names()
        for node in self._in_order():
            self._enter(node)
        self._check_outputs()
        self._numbers = {path: number for number, path in enumerate(self._paths(), 1)}

    # Who writes what, and who reads it.

    def _check_names(self) -> None:
        for name, node in self._graph.nodes.items():
            signature = self._signatures[name]
            for what, mapped, known in (("input", node.inputs, signature.inputs), ("output", node.outputs, signature.outputs)):
                if unknown := next((tensor for tensor in mapped if tensor not in known), None):
                    raise self._wrong(f"node '{name}' has no {what} '{unknown}'; its {what}s are {', '.join(known) or 'none'}")
            for tensor, spec in signature.inputs.items():
                if tensor not in node.inputs and not spec.optional:
                    raise self._wrong(f"input '{tensor}' of node '{name}', {text_of(spec)}, is missing: name a tensor for it")
        self._check_ends(self._writers())

    def _writers(self) -> dict[str, str]:
        """Who writes each tensor, in words."""
        written: dict[str, str] = dict.fromkeys(self._specs, "the graph's inputs")
        for name, node in self._graph.nodes.items():
            for tensor in node.outputs.values():
                if tensor in written:
                    raise self._wrong(f"tensor '{tensor}' is written twice, by {written[tensor]} and by node '{name}'")
                written[tensor] = f"node '{name}'"
        return written

    def _check_ends(self, written: Mapping[str, str]) -> None:
        """Nothing is read that nobody writes, nothing is written that nobody reads."""
        read = {tensor: name for name, node in self._graph.nodes.items() for tensor in node.inputs.values()}
        for tensor, name in read.items():
            if tensor not in written:
                raise self._wrong(f"node '{name}' reads tensor '{tensor}', which nobody writes; there are {', '.join(written)}")
        for tensor in self._graph.outputs:
            if tensor not in written or tensor in self._specs:
                raise self._wrong(f"output '{tensor}' of the graph is written by no node")
        for tensor, writer in written.items():
            if tensor not in read and tensor not in self._graph.outputs:
                raise self._wrong(f"tensor '{tensor}', which comes from {writer}, is not used: nobody reads it")

    def _in_order(self) -> list[str]:
        """The nodes, each behind those it reads from; otherwise as they are written."""
        waiting = dict(self._graph.nodes)
        ready = set(self._specs)
        order: list[str] = []
        while waiting:
            runnable = [name for name, node in waiting.items() if ready.issuperset(node.inputs.values())]
            if not runnable:
                raise self._wrong(f"the nodes {', '.join(waiting)} form a cycle, or stand behind one: none of them can run first")
            for name in runnable:
                ready.update(waiting.pop(name).outputs.values())
            order += runnable
        return order

    # Rows, and types.

    def _enter(self, name: str) -> None:
        node, signature = self._graph.nodes[name], self._signatures[name]
        home = max((self._places[tensor] for tensor in node.inputs.values()), key=len)
        for own, tensor in node.inputs.items():
            place = self._places[tensor]
            if home[: len(place)] != place:
                raise self._wrong(
                    f"node '{name}' reads rows of node '{home[-1]}' and, as '{own}', tensor '{tensor}', which has rows of node "
                    f"'{place[-1]}': what runs together needs the same rows"
                )
            self._check_type(name, own, tensor, self._seen(name, signature.inputs[own], home))
        self._check_rows(name, signature, home)
        self._homes[name] = home
        inside = home if signature.rows == SAME else (*home, name)
        for own, tensor in node.outputs.items():
            # What it is reshaped from, and whether it may be left out, was the node's own affair.
            seen = self._seen(name, signature.outputs[own], home)
            self._specs[tensor] = replace(seen, name=tensor, reshape=None, optional=False)
            self._places[tensor] = inside
            self._told[tensor] = f"output '{own}' of node '{name}'"

    def _has_rows(self, place: Path) -> bool:
        return bool(place) or self._graph.max_batch_size > 0

    def _seen(self, name: str, spec: TensorSpec, home: Path) -> TensorSpec:
        """A tensor of a node as its segment has it."""
        return self._signatures[name].seen(spec, has_rows=self._has_rows(home))

    def _check_type(self, name: str, own: str, tensor: str, wanted: TensorSpec) -> None:
        given = self._specs[tensor]
        if not _fits(wanted, given):
            given_by = _named(self._told[tensor], tensor)
            raise self._wrong(f"node '{name}' takes input '{own}' as {text_of(wanted)}, and {given_by} is {text_of(given)}")

    def _check_rows(self, name: str, signature: Signature, home: Path) -> None:
        most = signature.max_batch_size
        if most == 0 and self._has_rows(home):
            raise self._wrong(
                f"node '{name}' runs model '{self._graph.nodes[name].model}', whose max_batch_size is 0, on rows; "
                "set it to the most rows it can take"
            )
        if most and not home and self._graph.max_batch_size > most:
            raise self._wrong(
                f"ensemble '{self._graph.name}' allows maximum batch size {self._graph.max_batch_size}, but it contains model "
                f"'{self._graph.nodes[name].model}' which only allows maximum batch size to be {most}"
            )

    def _check_outputs(self) -> None:
        for declared in self._graph.output_specs:
            given = self._answered(declared.name, ())
            if not _fits(declared, given):
                raise self._wrong(
                    f"output '{declared.name}' of the graph is declared as {text_of(declared)}, and "
                    f"{_named(self._told[declared.name], declared.name)} is {text_of(given)}"
                )

    def _answered(self, tensor: str, place: Path) -> TensorSpec:
        """A tensor as those at `place` get it for their rows."""
        between = self._places[tensor][len(place) :]
        many = sum(self._signatures[node].rows == MANY for node in between)
        return replace(self._specs[tensor], dims=(*(-1,) * many, *self._specs[tensor].dims))

    # Segments.

    def _paths(self) -> list[Path]:
        """Where nodes run, each before those behind it."""
        return sorted(set(self._homes.values()), key=lambda path: (len(path), [*self._homes].index(path[-1]) if path else 0))

    def segment(self, place: Path, name: str) -> Segment:
        """The segment at a place, with all behind it."""
        mine = tuple(node for node, home in self._homes.items() if home == place)
        borders = tuple(self._border(node, place) for node in mine if self._signatures[node].rows != SAME)
        within = [node for node, home in self._homes.items() if home[: len(place)] == place]
        brought = dict.fromkeys(
            tensor for node in within for tensor in self._graph.nodes[node].inputs.values() if self._is_above(tensor, place)
        )
        answered = [
            tensor
            for tensor in self._graph.outputs
            if self._places[tensor][: len(place)] == place and not self._is_above(tensor, place)
        ]
        sizes = [size for node in mine if (size := self._signatures[node].max_batch_size)]
        return Segment(
            name,
            mine,
            borders,
            tuple(self._specs[tensor] for tensor in (brought if place else self._graph.inputs)),
            tuple(self._declared(tensor, place) for tensor in answered),
            self._graph.max_batch_size if not place else min(sizes, default=self._graph.max_batch_size or MOST_ROWS),
        )

    def _is_above(self, tensor: str, place: Path) -> bool:
        """Whether rows at `place` have to bring it: the border itself wrote it, or somebody before."""
        writer = self._places[tensor]
        return len(writer) < len(place) or (writer == place and self._told_by(tensor) == place[-1:])

    def _told_by(self, tensor: str) -> Path:
        return next(((name,) for name, node in self._graph.nodes.items() if tensor in node.outputs.values()), ())

    def _declared(self, tensor: str, place: Path) -> TensorSpec:
        """What the graph declares is what its clients are told; further in, it is what the nodes say."""
        if not place:
            return next(spec for spec in self._graph.output_specs if spec.name == tensor)
        return self._answered(tensor, place)

    def _border(self, node: str, place: Path) -> Border:
        behind = (*place, node)
        segment = None
        if behind in self._numbers:
            segment = self.segment(behind, f"{self._graph.name}#{self._numbers[behind]}")
        direct = [tensor for tensor in self._graph.nodes[node].outputs.values() if tensor in self._graph.outputs]
        return Border(node, self._signatures[node].rows, segment, tuple(self._specs[tensor] for tensor in direct))

    def _wrong(self, what: str) -> InvalidRepository:
        return InvalidRepository(f"graph '{self._graph.name}': {what}")


def _named(told: str, tensor: str) -> str:
    return told if told.startswith(f"input '{tensor}'") else f"tensor '{tensor}', {told},"


def _fits(wanted: TensorSpec, given: TensorSpec) -> bool:
    same = wanted.datatype == given.datatype and len(wanted.dims) == len(given.dims)
    return same and all(a == b or -1 in (a, b) for a, b in zip(wanted.dims, given.dims, strict=True))


def varies(wanted: Sequence[int], given: Sequence[int]) -> bool:
    """Whether a tensor that was found to fit may still turn out to be of a shape that does not."""
    return any(a != b and b == -1 for a, b in zip(wanted, given, strict=True))
