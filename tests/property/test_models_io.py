"""Auto-complete, and the checks of shapes against oracles that enumerate."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRepository
from headrace.model import GraphIO, GraphTensor
from headrace.models.autocomplete import complete
from headrace.models.check import check_config, check_graph, check_tensors, reshape_problem
from headrace.models.fill import fill
from headrace.models.spec import spec_of
from headrace.protocol.headrace_pb2 import DataType, ModelConfig, ModelInput, ModelOutput
from headrace.tensor import DTYPES

DATATYPES = st.sampled_from([*DTYPES, "BYTES"])
SIZES = st.sampled_from([-1, -1, 1, 2, 3])
SHAPES = st.lists(SIZES, max_size=4).map(tuple)


@st.composite
def graphs(draw: st.DrawFn) -> GraphIO:
    shapes = draw(st.sampled_from([SHAPES, SHAPES.map(lambda shape: (-1, *shape))]))
    names = draw(st.lists(st.text("abXY", min_size=1, max_size=4), min_size=2, max_size=6, unique=True))
    cut = draw(st.integers(1, len(names) - 1))
    inputs = [GraphTensor(name, draw(DATATYPES), draw(shapes), draw(st.integers(0, 4)) == 0) for name in names[:cut]]
    return GraphIO(tuple(inputs), tuple(GraphTensor(name, draw(DATATYPES), draw(shapes)) for name in names[cut:]))


@st.composite
def started(draw: st.DrawFn) -> tuple[ModelConfig, GraphIO]:
    """A graph, and a configuration that leaves open some of what a complete one would say of it."""
    io = draw(graphs())
    config = ModelConfig(name="m", backend="onnxruntime")
    batches = any(not t.initializer for t in io.inputs) and all(
        t.shape[:1] == (-1,) for t in (*io.inputs, *io.outputs) if not t.initializer
    )
    if batches:
        config.max_batch_size = draw(st.integers(0, 9))
    if draw(st.booleans()):
        config.dynamic_batching.SetInParent()
    fill(config, "m", [Path("1")], 0)
    check_config(config, 0)
    return config, io


@settings(max_examples=200, deadline=None)
@given(started())
def test_what_is_completed_fits_the_graph_it_came_from(case: tuple[ModelConfig, GraphIO]) -> None:
    config, io = case
    asked = config.max_batch_size
    lines = complete(config, io)
    check_config(config, 0)
    check_tensors(config)
    check_graph(config, io)
    assert config.max_batch_size in ((asked,) if asked else (0, 4))
    required = [tensor for tensor in io.inputs if not tensor.initializer]
    assert len([line for line in lines if line.startswith(("input ", "output "))]) == len(required) + len(io.outputs)
    spec = spec_of(config, 1, "", Path())
    for declared, tensor in zip(spec.inputs + spec.outputs, (*required, *io.outputs), strict=True):
        seen = declared.dims if declared.reshape is None else declared.reshape
        whole = (-1, *seen) if config.max_batch_size else seen
        # A scalar of a model that does not batch is declared as one element: reshape has no way to say it.
        assert (declared.name, declared.datatype, whole) == (tensor.name, tensor.datatype, tensor.shape or (1,))


@settings(max_examples=100, deadline=None)
@given(started())
def test_completing_twice_changes_nothing(case: tuple[ModelConfig, GraphIO]) -> None:
    config, io = case
    complete(config, io)
    once = ModelConfig()
    once.CopyFrom(config)
    assert complete(config, io) == []
    assert config == once


def fitting(shape: tuple[int, ...], sizes: list[int]) -> tuple[int, ...]:
    remaining = iter(sizes)
    return tuple(next(remaining) if size == -1 else size for size in shape)


@settings(max_examples=300, deadline=None)
@given(SHAPES, SHAPES)
def test_reshape_against_every_choice_of_sizes(dims: tuple[int, ...], reshape: tuple[int, ...]) -> None:
    """It fits when the k-th variable size goes to the k-th place and the elements before each place stay before it."""
    variable = dims.count(-1)
    possible = variable == reshape.count(-1)
    if possible:
        for sizes in product((1, 2, 5), repeat=variable):
            have, want = fitting(dims, list(sizes)), fitting(reshape, list(sizes))
            possible &= math.prod(have) == math.prod(want)
        at_dims = [i for i, size in enumerate(dims) if size == -1]
        at_reshape = [i for i, size in enumerate(reshape) if size == -1]
        for i, j in zip(at_dims, at_reshape, strict=True):
            possible &= abs(math.prod(dims[:i])) == abs(math.prod(reshape[:j]))
    problem = reshape_problem(dims, reshape)
    assert (problem is None) == possible
    if problem is not None:
        many = variable != reshape.count(-1) and variable and -1 in reshape
        assert ("number of variable-size" in problem) == bool(many)


def accepts(shape: tuple[int, ...], dims: tuple[int, ...], rows: int, *, output: bool) -> bool:
    """What Triton's rules come to, by trying every tensor the configuration lets through.

    Sizes up to 3 stand for all: an input is good when the graph takes every one of them; an output when both sides allow
    exactly the same.
    """

    def allowed(declared: tuple[int, ...]) -> set[tuple[int, ...]]:
        return set(product(*[(1, 2, 3, 4) if size == -1 else (size,) for size in declared]))

    if not shape:
        return not rows and all(size == 1 for size in dims)
    if rows and shape[0] != -1:
        return False
    ours, theirs = allowed((-1, *dims) if rows else dims), allowed(shape)
    return ours == theirs if output else ours <= theirs


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_shapes_against_every_tensor(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    rows, output = data.draw(st.sampled_from([0, 4])), data.draw(st.booleans())
    # Most random shapes differ at once: start from the graph's own, and change a little.
    near = [data.draw(st.sampled_from([size, size, size, -1, 2])) for size in (shape[1:] if rows else shape)]
    dims = data.draw(st.just(tuple(near)) | SHAPES) or (1,)
    tensor = GraphTensor("X", "FP32", shape)
    config = ModelConfig(name="m", max_batch_size=rows)
    if output:
        config.output.append(ModelOutput(name="X", data_type=DataType.TYPE_FP32, dims=dims))
    else:
        config.input.append(ModelInput(name="X", data_type=DataType.TYPE_FP32, dims=dims))
    io = GraphIO(() if output else (tensor,), (tensor,) if output else ())
    try:
        check_graph(config, io)
        accepted = True
    except InvalidRepository as refused:
        assert str(refused).startswith(("model 'm', tensor 'X': ", "unable to load model 'm', scalar tensor 'X'"))
        accepted = False
    assert accepted == accepts(shape, dims, rows, output=output)
