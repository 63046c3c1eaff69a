"""What a graph is: nodes over named tensors, written in a `graph.yaml`, in an ensemble's `config.pbtxt`, or in Python.

    graph = Graph.of(
        "embed",
        inputs={"TEXT": "BYTES[1]"},
        outputs={"VECTOR": "FP32[384]"},
        nodes={
            "tokens": {"run": "tokenizer", "with": {"file": "tokenizer.json"},
                       "inputs": {"text": "TEXT"}, "outputs": {"ids": "ids", "mask": "mask"}},
            "encode": {"model": "minilm", "inputs": {"input_ids": "ids", "attention_mask": "mask"},
                       "outputs": {"last_hidden_state": "hidden"}},
            "pool": {"run": "mean_pooling", "inputs": {"hidden": "hidden", "mask": "mask"}, "outputs": {"vector": "VECTOR"}},
        },
        max_batch_size=32,
        directory="models/embed",
    )

The same words make a `graph.yaml`. Here a graph is only read; `headrace.graph` checks it against its models and runs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from headrace.errors import InvalidRepository
from headrace.models.datatypes import config_datatype, v2_datatype
from headrace.models.fill import GRAPH
from headrace.node import tensor_of
from headrace.protocol.headrace_pb2 import DataType, ModelConfig
from headrace.tensor import TensorSpec

MOST_ROWS_PER_REQUEST = 1 << 17
"""Unless a graph says another number."""
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, StringConstraints(pattern=r"^[^/#\s]+$")]


class GraphNode(BaseModel):
    """One node: a model of the repository, or a class. `inputs` and `outputs` name, by the node's own tensor, one of the graph.

    `run` is a built-in node, `file.py:Class` beside the graph, or `package.module:Class`; its parameters are `with`. With
    `isolation: process` it runs in a process of its own, which is ended when it takes longer than the timeouts, and started
    again. `version` 0 is the highest that is ready.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    model: str = ""
    version: Annotated[int, Field(ge=0)] = 0
    run: str = ""
    parameters: Annotated[Mapping[str, Any], Field(alias="with")] = {}
    isolation: Annotated[str, Field(pattern="^(thread|process)$")] = "thread"
    load_timeout_s: Seconds = 60.0
    run_timeout_s: Seconds = 300.0
    inputs: Annotated[Mapping[str, str], Field(min_length=1)]
    outputs: Annotated[Mapping[str, str], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_one_thing(self) -> GraphNode:
        if bool(self.model) == bool(self.run):
            raise PydanticCustomError("kind", "expected either `model`, a model of the repository, or `run`, a class")
        if self.model and (self.parameters or self.isolation != "thread"):
            raise PydanticCustomError("kind", "`with` and `isolation` are for nodes that `run` a class")
        return self


class Graph(BaseModel):
    """Nodes by name; inputs and outputs by name, each a datatype and the dimensions behind the rows.

    `max_batch_size` is how many rows a batch may have; 0 is a graph whose tensors have no rows, as in Triton's ensembles without
    batching. `instances` is how many batches run at once: None leaves it to the models. `max_rows_per_request` is
    how many rows a border may make of one request. `parameters` are those of a
    configuration, such as `objective_ms`. `directory` is where the files of its nodes are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    inputs: Annotated[Mapping[Name, str], Field(min_length=1)]
    outputs: Annotated[Mapping[Name, str], Field(min_length=1)]
    nodes: Annotated[Mapping[Name, GraphNode], Field(min_length=1)]
    max_batch_size: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    instances: Annotated[int, Field(gt=0, le=1024)] | None = None
    max_rows_per_request: Annotated[int, Field(gt=0)] = MOST_ROWS_PER_REQUEST
    parameters: Mapping[str, str | int | float | bool] = {}
    directory: Path = Path()

    @staticmethod
    def of(  # noqa: PLR0913  # the keys of a graph.yaml
        name: str,
        *,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        nodes: Mapping[str, Mapping[str, Any] | GraphNode],
        max_batch_size: int = 0,
        instances: int | None = None,
        max_rows_per_request: int = MOST_ROWS_PER_REQUEST,
        parameters: Mapping[str, str | int | float | bool] | None = None,
        directory: Path | str = ".",
    ) -> Graph:
        """A graph written in Python.

        Raises:
            InvalidRepository: something in it cannot be; the message says where.
        """
        told = {
            "inputs": inputs,
            "outputs": outputs,
            "nodes": nodes,
            "max_batch_size": max_batch_size,
            "instances": instances,
            "max_rows_per_request": max_rows_per_request,
            "parameters": parameters or {},
        }
        return _validated(told, name, Path(directory), f"graph '{name}'")

    @property
    def models(self) -> tuple[str, ...]:
        """The models its nodes name, each once."""
        return tuple(dict.fromkeys(node.model for node in self.nodes.values() if node.model))

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """What a request brings."""
        return tuple(tensor_of(name, text) for name, text in self.inputs.items())

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """What its answer holds."""
        return tuple(tensor_of(name, text) for name, text in self.outputs.items())


def parse_graph(text: str, name: str, directory: Path, where: str) -> Graph:
    """The graph in the text of a `graph.yaml`; `where` is the file, for messages.

    Raises:
        InvalidRepository: it is none.
    """
    try:
        told: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidRepository(f"{where} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(told, dict):
        raise InvalidRepository(f"{where} holds no graph: expected inputs, outputs and nodes")
    return _validated({str(key): value for key, value in told.items()}, name, directory, where)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def graph_of_ensemble(config: ModelConfig) -> Graph:
    """The graph that an `ensemble_scheduling` block describes; `config` is checked. Steps that run one model are numbered."""
    nodes: dict[str, GraphNode] = {}
    for step in config.ensemble_scheduling.step:
        names = (
            step.model_name,
            *(f"{step.model_name}-{number}" for number in range(2, len(config.ensemble_scheduling.step) + 1)),
        )
        nodes[next(name for name in names if name not in nodes)] = GraphNode(
            model=step.model_name,
            version=max(0, step.model_version),
            inputs=dict(step.input_map),
            outputs=dict(step.output_map),
        )
    return Graph.model_construct(
        name=config.name,
        inputs={tensor.name: _text(tensor.data_type, tensor.dims) for tensor in config.input},
        outputs={tensor.name: _text(tensor.data_type, tensor.dims) for tensor in config.output},
        nodes=nodes,
        max_batch_size=config.max_batch_size,
        instances=None,
        max_rows_per_request=1,
        parameters={key: value.string_value for key, value in config.parameters.items()},
        directory=Path(),
    )


def config_of(graph: Graph) -> ModelConfig:
    """The configuration that clients are told of a graph that has none of its own."""
    config = ModelConfig(name=graph.name, platform=GRAPH, max_batch_size=graph.max_batch_size)
    for spec in graph.input_specs:
        config.input.add(name=spec.name, data_type=config_datatype(spec.datatype), dims=spec.dims)
    for spec in graph.output_specs:
        config.output.add(name=spec.name, data_type=config_datatype(spec.datatype), dims=spec.dims)
    for key, value in graph.parameters.items():
        config.parameters[key].string_value = str(value).lower() if isinstance(value, bool) else str(value)
    return config


def _text(datatype: DataType, dims: Iterable[int]) -> str:
    return f"{v2_datatype(datatype)}[{','.join(map(str, dims))}]"


def _validated(told: Mapping[str, object], name: str, directory: Path, where: str) -> Graph:
    try:
        graph = Graph.model_validate({**told, "name": name, "directory": directory})
    except ValidationError as error:
        raise InvalidRepository("; ".join(_problem(dict(detail), where) for detail in error.errors())) from None
    try:
        for tensor, text in (*graph.inputs.items(), *graph.outputs.items()):
            tensor_of(tensor, text)
    except InvalidRepository as error:
        raise InvalidRepository(f"{where}: {error.message}") from None
    return graph


def _problem(detail: Mapping[str, Any], where: str) -> str:
    place = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    said = str(detail["msg"])
    if detail["type"] == "extra_forbidden":
        known = Graph if len(detail["loc"]) == 1 else GraphNode
        words = [field.alias or key for key, field in known.model_fields.items() if key not in ("name", "directory")]
        return f"{where}: '{place}' is unknown; known are {', '.join(words)}"
    if detail["type"] == "missing":
        return f"{where}: '{place}' is missing"
    if detail["type"] == "string_pattern_mismatch" and "[key]" in map(str, detail["loc"]):
        return f"{where}: '{place}' is no name: a name has no space, no / and no #"
    return f"{where}: '{place}': {said[:1].lower()}{said[1:]}" if place else f"{where}: {said[:1].lower()}{said[1:]}"
