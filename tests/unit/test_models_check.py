"""What a configuration may not say, letter for letter."""

from __future__ import annotations

import pytest

from headrace.errors import InvalidRepository
from headrace.model import GraphIO, GraphTensor
from headrace.models.check import check_config, check_graph, check_tensors
from headrace.models.pbtxt import parse

NAMED = 'name: "m" backend: "fake" max_batch_size: 8 '
DYNAMIC = NAMED + "dynamic_batching { %s }"
SEQUENCE = NAMED + "sequence_batching { %s }"
STEP = 'step { model_name: "%s" input_map { key: "i" value: "%s" } output_map { key: "o" value: "%s" } }'
ENSEMBLE = 'name: "m" platform: "ensemble" input { name: "in" } output { name: "out" } ensemble_scheduling { %s }'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('backend: "fake"', "model configuration must specify 'name'"),
        ('name: "m"', "must specify 'platform' or 'backend' for 'm'"),
        ('name: "m" platform: "p"', "unexpected platform type 'p' for m"),
        (
            'name: "m" platform: "onnxruntime_onnx" backend: "python"',
            "unexpected 'platform' and 'backend' pair, got:onnxruntime_onnx, python",
        ),
        ('name: "m" platform: "p" backend: "onnxruntime"', "unexpected 'platform' and 'backend' pair, got:p, onnxruntime"),
        ('name: "m" backend: "fake" max_batch_size: -1', "'max_batch_size' must be non-negative value for m"),
        (
            NAMED + 'default_model_filename: "../../secret"',
            "'default_model_filename' must stay inside the version directory for m, got '../../secret'",
        ),
        (DYNAMIC % "preferred_batch_size: 0", "dynamic batching preferred size must be positive for m"),
        (DYNAMIC % "preferred_batch_size: [8, 9]", "dynamic batching preferred size must be <= max batch size for m"),
        (DYNAMIC % "priority_levels: 2", "default priority level must be in range [1, 2] for m"),
        (DYNAMIC % "priority_levels: 2 default_priority_level: 3", "default priority level must be in range [1, 2] for m"),
        (
            DYNAMIC % "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value {} }",
            "priority queue policy must have priority level in range [1, 2] for m",
        ),
        (
            DYNAMIC % "priority_levels: 2 default_priority_level: 1 preserve_ordering: true",
            "Only one priority level is allowed when 'preserve_ordering' is true for m",
        ),
        (
            DYNAMIC % "preserve_ordering: true default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1 }",
            "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for m",
        ),
        (
            DYNAMIC % "preserve_ordering: true "
            "priority_queue_policy { key: 1 value { timeout_action: DELAY default_timeout_microseconds: 1 } }",
            "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for m",
        ),
        (SEQUENCE % "oldest { preferred_batch_size: 0 }", "sequence batching preferred batch size must be positive for m"),
        (
            SEQUENCE % "oldest { preferred_batch_size: 9 }",
            "sequence batching preferred batch size must be <= max batch size for m",
        ),
        (
            SEQUENCE % "direct { minimum_slot_utilization: 1.5 }",
            "sequence batching minimum slot utilization must be in range (0.0, 1.0] for m",
        ),
        (SEQUENCE % "control_input {}", "sequence batching control tensor must have a name for m"),
        (
            SEQUENCE % 'control_input { name: "c" } control_input { name: "c" }',
            "sequence batching control tensor 'c' is specified for multiple control kinds for m",
        ),
        (
            NAMED + "response_cache { enable: true } model_transaction_policy { decoupled: true }",
            "Response Cache does not currently support model m with 'decoupled' transaction policy. "
            "Please disable the response cache.",
        ),
        (
            SEQUENCE % "" + "response_cache { enable: true }",
            "Response Cache does not currently support model m with 'sequence_batching' scheduling choice. "
            "Please disable the response cache.",
        ),
        (
            NAMED + 'instance_group { name: "g" kind: KIND_CPU gpus: 0 }',
            "instance group g of model m has kind KIND_CPU but specifies one or more GPUs",
        ),
        (
            NAMED + 'instance_group { name: "g" kind: KIND_MODEL gpus: 0 }',
            "instance group g of model m has kind KIND_MODEL but specifies one or more GPUs",
        ),
        (
            NAMED + 'instance_group { name: "g" kind: KIND_GPU }',
            "instance group g of model m has kind KIND_GPU but server does not support GPUs",
        ),
        (
            NAMED + 'instance_group { name: "g" kind: KIND_CPU count: -2 }',
            "instance group g of model m has count -2, which must be at least 1",
        ),
        ('name: "m" platform: "ensemble"', "ensemble scheduling must be set for ensemble m whose platform is ensemble"),
        (NAMED + "ensemble_scheduling {}", "ensemble scheduling cannot be set for model 'm' whose platform is not ensemble"),
        (ENSEMBLE % "" + "instance_group {}", "instance group should not be specified for ensemble 'm'"),
        (ENSEMBLE % "" + "optimization {}", "optimization should not be specified for ensemble 'm'"),
        (ENSEMBLE % "" + "model_warmup {}", "model_warmup can not be specified for ensemble 'm'"),
        (
            ENSEMBLE.replace('name: "in"', 'name: "in" reshape { shape: 1 }') % "step {}",
            "reshape can not be specified for ensemble 'm': declare its tensors as its steps have them",
        ),
        (ENSEMBLE % "", "must specify 'step' for ensemble 'm'"),
        (ENSEMBLE % "step {}", "must specify 'model_name' in step 0 of ensemble 'm'"),
        (ENSEMBLE % 'step { model_name: "a" }', "must specify 'input_map' in step 0 of ensemble 'm'"),
        (
            ENSEMBLE % 'step { model_name: "a" input_map { key: "i" value: "in" } }',
            "must specify 'output_map' in step 0 of ensemble 'm'",
        ),
        (
            ENSEMBLE % (STEP % ("a", "in", "out") + STEP % ("b", "in", "out")),
            "ensemble tensor 'out' can appear in an output map only once for ensemble 'm' step 1",
        ),
        (ENSEMBLE % (STEP % ("a", "x", "out")), "ensemble input 'in' for ensemble m' is not used"),
        (ENSEMBLE % (STEP % ("a", "in", "x")), "output 'out' for ensemble 'm' is not written"),
        (
            ENSEMBLE % (STEP % ("a", "in", "x") + STEP % ("b", "y", "out") + STEP % ("c", "out", "y")),
            "output 'out' for ensemble 'm' is not written: at least one of its depending tensors, 'y', is not connected",
        ),
        (ENSEMBLE % (STEP % ("a", "in", "out") + STEP % ("b", "out", "x")), "ensemble tensor 'x' is unused in ensemble 'm'"),
    ],
)
def test_whole_configuration(text: str, message: str) -> None:
    with pytest.raises(InvalidRepository) as caught:
        check_config(parse(text, ""), gpus=0)
    assert str(caught.value) == message


def test_gpus_that_are_not_there() -> None:
    text = NAMED + 'instance_group { name: "g" kind: KIND_GPU gpus: [ 0, %d ] }'
    check_config(parse(text % 1, ""), gpus=2)
    with pytest.raises(InvalidRepository) as caught:
        check_config(parse(text % 2, ""), gpus=2)
    assert str(caught.value) == (
        "instance group g of model m specifies invalid or unsupported gpu id 2. GPUs that can be used are: 0, 1"
    )


def test_a_chain_with_a_side_branch_is_a_good_ensemble() -> None:
    side = 'step { model_name: "c" input_map { key: "i" value: "x" } input_map { key: "j" value: "in" }'
    side += ' output_map { key: "o" value: "out" } }'
    check_config(parse(ENSEMBLE % (side + STEP % ("a", "in", "x")), ""), gpus=0)


REFUSED_TENSORS = [
    ("data_type: TYPE_FP32 dims: 1", "{}must specify 'name' for m"),
    ('name: "X" dims: 1', "{}'X' must specify 'data_type' for m"),
    ('name: "X" data_type: TYPE_FP32', "{}'X' must specify 'dims' for m"),
    (
        'name: "X" data_type: TYPE_FP32 dims: 0',
        "{}'X' dimension must be integer >= 1, or -1 to indicate a variable-size dimension for m",
    ),
    (
        'name: "X" data_type: TYPE_FP32 dims: 1 reshape { shape: -2 }',
        "{}'X' reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension for m",
    ),
    (
        'name: "X" data_type: TYPE_FP32 dims: 1 reshape {}',
        "{}'X' cannot have empty reshape for non-batching model as scalar tensors are not supported for m",
    ),
    (
        'name: "X" data_type: TYPE_FP32 dims: [ 2, 3 ] reshape { shape: 5 }',
        "{}'X' has different size for dims and reshape for m",
    ),
    (
        'name: "X" data_type: TYPE_FP32 dims: [ -1, 2 ] reshape { shape: [ 2, -1 ] }',
        "{}'X' has different size for dims and reshape for m",
    ),
    (
        'name: "X" data_type: TYPE_FP32 dims: [ -1, -1 ] reshape { shape: -1 }',
        "{}'X' has different number of variable-size dimensions for dims and reshape for m",
    ),
    ('name: "X" data_type: TYPE_FP32 dims: -1 reshape { shape: 1 }', "{}'X' has different size for dims and reshape for m"),
]


@pytest.mark.parametrize("what", ["input", "output"])
@pytest.mark.parametrize(("tensor", "message"), REFUSED_TENSORS)
def test_inputs_and_outputs(what: str, tensor: str, message: str) -> None:
    with pytest.raises(InvalidRepository) as caught:
        check_tensors(parse(f'name: "m" {what} {{ {tensor} }}', ""))
    assert str(caught.value) == message.format(f"model {what} ")


def test_a_name_twice() -> None:
    twice = 'output { name: "X" data_type: TYPE_FP32 dims: 1 } ' * 2
    with pytest.raises(InvalidRepository, match=r"^model output 'X' is specified more than once for m$"):
        check_tensors(parse('name: "m" ' + twice, ""))


@pytest.mark.parametrize("reshape", ["[ 8, -1, 1, 6 ]", "[ 2, 2, 2, -1, 3, 2 ]"])
def test_reshapes_that_fit(reshape: str) -> None:
    tensor = f'input {{ name: "X" data_type: TYPE_FP32 dims: [ 2, 4, -1, 6 ] reshape {{ shape: {reshape} }} }}'
    check_tensors(parse(f'name: "m" {tensor}', ""))
    check_tensors(parse('name: "m" max_batch_size: 1 input { name: "X" data_type: TYPE_FP32 dims: [1, 1] reshape {} }', ""))


def graph(shape: tuple[int, ...] = (-1, 4), datatype: str = "FP32") -> GraphIO:
    return GraphIO(
        (GraphTensor("X", datatype, shape), GraphTensor("W", "FP32", (2,), initializer=True)),
        (GraphTensor("Y", datatype, shape), GraphTensor("Z", "INT64", (-1,))),
    )


BATCHES = "for the model to support batching the shape should have at least 1 dimension and the first dimension must be -1; "
SCALAR = (
    "unable to load model 'm', scalar tensor 'X', should only provide 1 in the model configuration when the model doesn't "
    "support batching. Model configuration provided: "
)


@pytest.mark.parametrize(
    ("rows", "inputs", "io", "message"),
    [
        (
            0,
            'name: "X" data_type: TYPE_FP64 dims: [ -1, 4 ]',
            graph(),
            "unable to load model 'm', configuration expects datatype TYPE_FP64 for input 'X', model provides TYPE_FP32",
        ),
        (
            0,
            'name: "X" data_type: TYPE_FP64 dims: [ -1, 4 ]',
            graph(datatype=""),
            "unable to load model 'm', configuration expects datatype TYPE_FP64 for input 'X', model provides TYPE_INVALID",
        ),
        (
            0,
            'name: "Q" data_type: TYPE_FP32 dims: [ -1, 4 ]',
            graph(),
            "unexpected inference input 'Q', allowed inputs are: W, X",
        ),
        (
            4,
            'name: "X" data_type: TYPE_FP32 dims: 4',
            graph((1, 4)),
            f"model 'm', tensor 'X': {BATCHES}but shape expected by the model is [1,4]",
        ),
        (
            4,
            'name: "X" data_type: TYPE_FP32 dims: 1 reshape {}',
            graph(()),
            f"model 'm', tensor 'X': {BATCHES}but shape expected by the model is []",
        ),
        (0, 'name: "X" data_type: TYPE_FP32 dims: [ 1, 2 ]', graph(()), SCALAR + "[1,2]."),
        (0, 'name: "X" data_type: TYPE_FP32 dims: -1', graph(()), SCALAR + "[-1]."),
        (
            0,
            'name: "X" data_type: TYPE_FP32 dims: [ -1, -1 ]',
            graph(),
            "model 'm', tensor 'X': the model expects 2 dimensions (shape [-1,4]) but the model configuration specifies "
            "2 dimensions (shape [-1,-1])",
        ),
        (
            4,
            'name: "X" data_type: TYPE_FP32 dims: 4 optional: true } input { name: "W" data_type: TYPE_FP32 dims: 2',
            GraphIO((GraphTensor("W", "FP32", (-1, 2)),), ()),
            "unable to load model 'm', optional input 'X' is not supported for models that support batching",
        ),
        (
            0,
            'name: "X" data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true',
            graph(),
            "unable to load model 'm', configuration expects model provides input with shape [-1]  for ragged input 'X', "
            "model provides [-1,4]",
        ),
        (
            0,
            'name: "W" data_type: TYPE_FP32 dims: 2 allow_ragged_batch: true optional: true } '
            'input { name: "X" data_type: TYPE_FP32 dims: [ -1, 4 ]',
            graph(),
            "unable to load model 'm', configuration expects model provides input with shape [-1] for ragged input 'W', "
            "which is not supported for optional input",
        ),
    ],
)
def test_against_the_graph(rows: int, inputs: str, io: GraphIO, message: str) -> None:
    with pytest.raises(InvalidRepository) as caught:
        check_graph(parse(f'name: "m" max_batch_size: {rows} input {{ {inputs} }}', ""), io)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("rows", "tensors", "io"),
    [
        (0, 'input { name: "X" data_type: TYPE_FP32 dims: [ 7, 4 ] }', graph()),
        (0, 'input { name: "X" data_type: TYPE_FP32 dims: [ 1, 1 ] }', graph(())),
        (8, 'input { name: "X" data_type: TYPE_FP32 dims: [ 2, 2 ] reshape { shape: 4 } }', graph()),
        (8, 'input { name: "X" data_type: TYPE_FP32 dims: 1 reshape {} }', graph((-1,))),
        # Inputs with a default in the file come on top, optional or not; outputs may be a subset in any order.
        (0, 'input { name: "W" data_type: TYPE_FP32 dims: 2 } input { name: "X" data_type: TYPE_FP32 dims: [1, 4] }', graph()),
        (
            0,
            'input { name: "W" data_type: TYPE_FP32 dims: 2 optional: true } '
            'input { name: "X" data_type: TYPE_FP32 dims: [1, 4] } output { name: "Z" data_type: TYPE_INT64 dims: -1 }',
            graph(),
        ),
        (
            0,
            'input { name: "X" data_type: TYPE_FP32 dims: [1, 4] } output { name: "Z" data_type: TYPE_INT64 dims: 9 } '
            'batch_output { target_name: "Z" }',
            graph(),
        ),
        (0, 'batch_input { target_name: "X" }', graph()),
    ],
)
def test_what_fits_the_graph(rows: int, tensors: str, io: GraphIO) -> None:
    check_graph(parse(f'name: "m" max_batch_size: {rows} {tensors}', ""), io)


def test_outputs_are_compared_exactly() -> None:
    text = (
        'name: "m" input { name: "X" data_type: TYPE_FP32 dims: [1, 4] } output { name: "Y" data_type: TYPE_FP32 dims: [1, 4] }'
    )
    with pytest.raises(InvalidRepository, match=r"tensor 'Y': the model expects 2 dimensions \(shape \[-1,4\]\)"):
        check_graph(parse(text, ""), graph())
