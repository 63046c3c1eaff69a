"""A graph as a version: its nodes brought up and wired, from the models that it is lent and the classes that it runs itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from headrace.backends.base import Session
from headrace.backends.nodes import NodeRunner, Timeouts, open_node
from headrace.clock import Clock
from headrace.engine.lifecycle import Behind, Lent, Opened, goes_back
from headrace.engine.profiles import key_of
from headrace.errors import InvalidRepository
from headrace.graph.nodes import BUILT_IN
from headrace.graph.segments import Segment, Signature, cut
from headrace.graph.session import SegmentSession
from headrace.graph.steps import Step, Visits
from headrace.ledger.ledger import Ledger
from headrace.model import Batching, ModelSpec, Padding
from headrace.models.check import check_tensors
from headrace.models.files import ModelFiles, VersionFiles
from headrace.models.graphs import Graph, GraphNode, graph_of_ensemble
from headrace.models.spec import spec_of, warnings
from headrace.node import Context
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.tensor import TensorSpec

Lend = Callable[[str, str, int], Lent]
"""(node, model, version or 0) → a version that runs, held open. Raises ModelMissing."""


@dataclass(frozen=True, slots=True)
class _Bound:
    """A node with what it runs; `number` is the ledger's."""

    signature: Signature
    spec: ModelSpec
    runs: Session | NodeRunner
    number: int


def open_graph(files: ModelFiles, version: VersionFiles, lend: Lend, ledger: Ledger, clock: Clock) -> Opened:
    """Bring up the nodes of a graph, check it, and cut it into segments.

    Args:
        files: of the graph.
        version: of it.
        lend: gets it the versions that its nodes run.
        ledger: where its nodes are accounted, each under a number of its own.
        clock: the clock.

    Raises:
        InvalidRepository: it cannot run, and the message says why.
    """
    graph = graph_of(files)
    config = ModelConfig()
    config.CopyFrom(files.config)
    check_tensors(config)
    with ExitStack() as closing:
        lent: list[Lent] = []
        bound: dict[str, _Bound] = {}
        for name, node in graph.nodes.items():
            if node.model:
                lent.append(lend(name, node.model, node.version))
                closing.callback(lent[-1].running.release)
                bound[name] = _bound_model(graph, name, lent[-1])
            else:
                bound[name] = _bound_class(graph, name, node, version, ledger)
                closing.callback(bound[name].runs.close)
        first = cut(graph, {name: each.signature for name, each in bound.items()})
        digest = _digest(graph, version, lent)
        visits = Visits(ledger.write_batch, clock)
        sessions = {
            segment.name: SegmentSession(segment, _steps(graph, segment, bound), visits, clock, graph.max_rows_per_request)
            for segment in first.walk()
        }
        spec = spec_of(config, version.number, digest, files.path)
        if spec.batching.splits_oversize and first.borders:
            raise InvalidRepository(
                f"graph '{graph.name}': parameter 'split_oversize' is 'true', but the rows of node '{first.borders[0].node}' go "
                "on from one queue to the next: leave the parameter out"
            )
        batching = replace(spec.batching, enabled=_batches(first, bound))
        specs = {segment.name: _spec(graph, segment, bound, spec, batching) for segment in first.walk()}
        # The first is what clients see: its inputs and outputs are those of the configuration.
        root = specs.pop(first.name)
        spec = replace(
            spec, batching=batching, padding=root.padding, instances=root.instances, outputs=_labelled(graph, spec, bound)
        )
        sessions[first.name].close_with(closing.pop_all().close)
    behind = tuple(Behind(each, sessions[name], each.instances) for name, each in specs.items())
    told = (*files.warnings, *warnings(config))
    return Opened(
        spec,
        config,
        ((sessions[first.name], spec.instances),),
        tuple(f"{name}: {each.spec.name}" for name, each in bound.items()),
        told,
        files.config_text,
        version,
        # Neither how many threads its models have nor how many instances is in a digest.
        key_of(config, "\n".join([digest, *(each.running.opened.profile_key for each in lent)])),
        version.digest(),
        upload=files.upload,
        behind=behind,
        nodes=tuple((each.spec.name, each.number) for each in bound.values() if each.signature.is_class),
        lent=tuple(lent),
    )


def graph_of(files: ModelFiles) -> Graph:
    """The graph that a model is; only for those whose platform says so."""
    return files.graph or graph_of_ensemble(files.config)


def _bound_model(graph: Graph, name: str, lent: Lent) -> _Bound:
    spec, session = lent.running.opened.spec, lent.running.opened.sessions[0][0]
    problem = (
        "answers a request several times"
        if spec.decoupled
        else "has sequences"
        if spec.sequences
        else "is a graph itself, whose rows go on from one queue to the next"
        if not goes_back(session)
        else ""
    )
    if problem:
        raise InvalidRepository(f"graph '{graph.name}': node '{name}' runs model '{spec.name}', which {problem}; no graph can")
    # A mask is made for requests; rows that come from another node bring their own.
    made = spec.padding.mask if spec.padding is not None else ""
    inputs = {tensor.name: replace(tensor, optional=tensor.optional and tensor.name != made) for tensor in spec.inputs}
    outputs = {tensor.name: tensor for tensor in spec.outputs}
    return _Bound(
        Signature(inputs, outputs, max_batch_size=spec.max_batch_size), spec, session, lent.running.route.queue.model_number
    )


def _bound_class(graph: Graph, name: str, node: GraphNode, version: VersionFiles, ledger: Ledger) -> _Bound:
    where = BUILT_IN.get(node.run, node.run)
    context = Context(f"{graph.name}/{name}", version.path, node.parameters)
    runner = open_node(where, context, node.isolation, Timeouts(node.load_timeout_s, node.run_timeout_s))
    # What stands for a model of its own: for checks, messages and accounts.
    inputs, outputs = tuple(runner.inputs.values()), tuple(runner.outputs.values())
    spec = ModelSpec(f"{graph.name}/{name}", version.number, version.digest(), "python", "", 1, inputs, outputs)
    return _Bound(Signature(runner.inputs, runner.outputs, runner.rows), spec, runner, ledger.register(spec))


def _steps(graph: Graph, segment: Segment, bound: Mapping[str, _Bound]) -> list[Step]:
    given = {spec.name: spec for spec in segment.inputs}
    steps: list[Step] = []
    for name in segment.nodes:
        node, each = graph.nodes[name], bound[name]
        steps.append(
            Step(name, node, each.signature, each.spec, each.runs, each.number, given, has_rows=segment.max_batch_size > 0)
        )
        given |= {tensor: each.signature.outputs[own] for own, tensor in node.outputs.items()}
    return steps


def _batches(first: Segment, bound: Mapping[str, _Bound]) -> bool:
    """Whether requests share batches: not where a model in the first segment does not want that."""
    models = [bound[name].spec for name in first.nodes if not bound[name].signature.is_class]
    return first.max_batch_size > 0 and all(model.batching.enabled for model in models)


def _spec(graph: Graph, segment: Segment, bound: Mapping[str, _Bound], whole: ModelSpec, batching: Batching) -> ModelSpec:
    """What a queue needs to know of a segment."""
    models = [(name, bound[name].spec) for name in segment.nodes if not bound[name].signature.is_class]
    return replace(
        whole,
        name=segment.name,
        backend="graph",
        max_batch_size=segment.max_batch_size,
        inputs=segment.inputs,
        outputs=segment.outputs,
        batching=replace(batching, enabled=True, splits_oversize=False),
        instances=graph.instances or max((model.instances for _, model in models), default=1),
        padding=_padding(graph, segment, models),
    )


def _labelled(graph: Graph, spec: ModelSpec, bound: Mapping[str, _Bound]) -> tuple[TensorSpec, ...]:
    """The outputs of a graph; where it has no labels of its own, they are those of the model that writes the tensor."""
    labels = {
        tensor: declared.labels
        for name, node in graph.nodes.items()
        for own, tensor in node.outputs.items()
        for declared in bound[name].spec.outputs
        if declared.name == own
    }
    return tuple(replace(output, labels=output.labels or labels.get(output.name, ())) for output in spec.outputs)


def _padding(graph: Graph, segment: Segment, models: list[tuple[str, ModelSpec]]) -> Padding | None:
    """How rows of different lengths share a batch: as the first model does it whose padded inputs come with the rows."""
    brought = {spec.name: spec for spec in segment.inputs}
    for name, model in models:
        padding = model.padding
        if padding is None or segment.max_batch_size == 0:
            continue
        wired = graph.nodes[name].inputs
        values = {wired[own]: value for own, value in padding.values.items() if own in wired}
        if values and all(tensor in brought and brought[tensor].dims[padding.axis] == -1 for tensor in values):
            # What comes right out of the model is as long as its inputs were; of the rest nobody knows.
            padded = {graph.nodes[name].outputs.get(output.name) for output in model.outputs if output.name not in padding.whole}
            whole = tuple(spec.name for spec in segment.outputs if spec.name not in padded)
            _check_lengths(graph, segment, whole)
            return replace(padding, values=values, mask="", whole=whole)
    return None


def _check_lengths(graph: Graph, segment: Segment, whole: tuple[str, ...]) -> None:
    """What a node made of padded rows may be as long as the padding, or not; nobody can tell, and so cut it back."""
    declared = {spec.name: spec.dims for spec in graph.output_specs}
    for spec in segment.outputs:
        told = declared[spec.name][len(declared[spec.name]) - len(spec.dims) :]
        if spec.name in whole and any(own == -1 and size == -1 for own, size in zip(spec.dims, told, strict=True)):
            raise InvalidRepository(
                f"graph '{graph.name}': output '{spec.name}' is made of rows that are padded, and its size varies: it cannot be "
                "told from the padding. Declare its size in the graph, or answer what the model itself gives"
            )


def _digest(graph: Graph, version: VersionFiles, lent: list[Lent]) -> str:
    """Of all that its answers depend on: its own words and files, and the models it runs."""
    parts = [version.digest(), graph.model_dump_json(exclude={"directory"})]
    parts += [f"{each.model} {each.running.opened.spec.digest}" for each in lent]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
