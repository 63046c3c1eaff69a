"""What is sent: `ModelInferRequest`s for a model whose metadata the server tells, with random, repeated or real inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.errors import InvalidLoad
from headrace.protocol.headrace_pb2 import ModelInferRequest, ModelMetadataResponse
from headrace.protocol.validate import encode_tensor
from headrace.tensor import DTYPES, BytesTensor, Tensor, datatype_of, format_shape

if TYPE_CHECKING:
    import pyarrow as pa

VARIANTS = 8
"""Different random messages of a share."""
MOST_ROWS = 1 << 16
MOST_BYTES = 1 << 30
PICKS = 4096
MOST_PICKS = 1 << 20
MOST_TIMEOUT_US = 1 << 50
MOST_PRIORITY = 1 << 32
MOST_WEIGHT = 1e9
_COLUMNS = {"priority", "timeout_us"}
"""Columns of a data file that are no inputs."""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a mixed load: how often, and with what. `shapes` are without the rows."""

    weight: float = 1.0
    rows: int = 1
    priority: int = 0
    timeout_us: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    name: str = "all"


class Messages(NamedTuple):
    """What there is to send: packed requests, the share that each is of, and the order: indices, over and over."""

    packed: Sequence[bytes]
    shares: Sequence[int]
    picks: NDArray[np.uint32]
    names: Sequence[str]


def parse_share(text: str, shapes: Mapping[str, tuple[int, ...]]) -> Share:
    """`weight=3 rows=4 priority=1 timeout_us=5000 shape.x=16,16`, every word of it optional; `shapes` holds where it is silent.

    Raises:
        InvalidLoad: a word is none of these.
    """
    share = Share(shapes=shapes, name=text)
    for word in text.split():
        key, equals, value = word.partition("=")
        try:
            if key == "weight":
                share = replace(share, weight=float(value))
            elif key in ("rows", "priority", "timeout_us"):
                share = replace(share, **{key: int(value)})
            elif key.startswith("shape.") and equals:
                share = replace(share, shapes={**share.shapes, key.removeprefix("shape."): parse_dims(value)})
            else:
                raise ValueError
        except ValueError:
            raise InvalidLoad(
                f"--mix '{text}': '{word}' is not understood; expected words like weight=3 rows=4 priority=1 timeout_us=5000 "
                "shape.INPUT=16,16"
            ) from None
    if not 0 < share.weight <= MOST_WEIGHT or share.rows < 1:
        raise InvalidLoad(f"--mix '{text}': weight and rows must be positive, and weight at most {MOST_WEIGHT:g}")
    if not 0 <= share.priority <= MOST_PRIORITY or not 0 <= share.timeout_us <= MOST_TIMEOUT_US:
        raise InvalidLoad(f"--mix '{text}': priority and timeout_us must not be negative, nor beyond all reason")
    return share


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`INPUT=16,16`.

    Raises:
        InvalidLoad: it is not that.
    """
    name, equals, dims = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return name, parse_dims(dims)
    except ValueError:
        raise InvalidLoad(f"--shape '{text}': expected INPUT=16,16, the dimensions without the rows") from None


def parse_dims(text: str) -> tuple[int, ...]:
    """`16,16`; nothing is no dimension.

    Raises:
        ValueError: one is no size.
    """
    dims = tuple(int(size) for size in text.split(",") if size)
    if any(size < 0 for size in dims):
        raise ValueError(text)
    return dims


def random_messages(model: ModelMetadataResponse, version: str, shares: Sequence[Share], seed: int) -> Messages:
    """Messages with random inputs: normal numbers, zeros and ones, short texts.

    Raises:
        InvalidLoad: a share names an input that there is not, or a dimension has no size.
    """
    _check_names(model, {name for share in shares for name in share.shapes}, "--shape")
    random = np.random.default_rng(seed)
    packed: list[bytes] = []
    owners: list[int] = []
    sizes = [sum(_size(spec.datatype, _shape(spec, share)) for spec in model.inputs) for share in shares]
    if VARIANTS * sum(sizes) > MOST_BYTES:
        raise InvalidLoad(f"requests of {max(sizes) >> 20} MiB are too large: {VARIANTS} of each share must fit into 1 GiB")
    for number, share in enumerate(shares):
        for _ in range(VARIANTS):
            inputs = {spec.name: _random(random, spec.datatype, _shape(spec, share)) for spec in model.inputs}
            packed.append(_packed(model.name, version, inputs, share.priority, share.timeout_us))
            owners.append(number)
    picks = _shuffled(random, [shares[owner].weight for owner in owners])
    return Messages(packed, owners, picks, [share.name for share in shares])


def messages_of_file(model: ModelMetadataResponse, version: str, file: Path) -> Messages:
    """Messages with the rows of a table as inputs, one request a row, in their order, over and over.

    Columns are named after inputs; lists become tensors of the declared shape, in which one dimension may be left open.
    The columns `priority` and `timeout_us` are parameters of the requests; each priority is a share of its own.

    Args:
        model: what the server says of it.
        version: empty for the default.
        file: Arrow IPC (`.arrow`, `.feather`) or Parquet.

    Raises:
        InvalidLoad: the file cannot be read, or does not suit the model; the message names column and row.
    """
    table = _read(file)
    columns = set(table.column_names) - _COLUMNS
    _check_names(model, columns, str(file))
    if missing := [spec.name for spec in model.inputs if spec.name not in columns]:
        raise InvalidLoad(f"{file} has no column for input '{missing[0]}' of model '{model.name}'")
    packed: list[bytes] = []
    priorities: list[int] = []
    size = 0
    for number, row in enumerate(_rows(table)):
        where = f"{file}, row {number}, column"
        inputs = {spec.name: _of_value(spec, row[spec.name], f"{where} '{spec.name}'") for spec in model.inputs}
        priority, timeout_us = _whole(row, "priority", MOST_PRIORITY, where), _whole(row, "timeout_us", MOST_TIMEOUT_US, where)
        packed.append(_packed(model.name, version, inputs, priority, timeout_us))
        priorities.append(priority)
        size += len(packed[-1])
        if size > MOST_BYTES:
            raise InvalidLoad(f"the first {number + 1} rows of {file} have more than {MOST_BYTES >> 20} MiB; take fewer")
    levels = sorted(set(priorities))
    owners = [levels.index(priority) for priority in priorities]
    names = ["all"] if len(levels) == 1 else [f"priority={level}" for level in levels]
    return Messages(packed, owners, np.arange(len(packed), dtype=np.uint32), names)


def _check_names(model: ModelMetadataResponse, names: set[str], where: str) -> None:
    known = [spec.name for spec in model.inputs]
    if unknown := sorted(names - set(known)):
        raise InvalidLoad(f"{where}: model '{model.name}' has no input '{unknown[0]}'; its inputs are {', '.join(known)}")


def _shape(spec: Any, share: Share) -> tuple[int, ...]:
    """The shape of an input: an open first dimension is the rows."""
    batches = bool(spec.shape) and spec.shape[0] == -1
    inner = spec.shape[1:] if batches else spec.shape
    given = share.shapes.get(spec.name)
    fits = given is None or (len(given) == len(inner) and all(d in (-1, size) for d, size in zip(inner, given, strict=True)))
    if given is not None and not fits:
        told = ",".join(map(str, given))
        raise InvalidLoad(f"--shape {spec.name}={told}: the model declares {format_shape(inner)}, rows left out")
    if given is None and -1 in inner:
        raise InvalidLoad(
            f"input '{spec.name}' has the shape {format_shape(spec.shape)}: say how large the open dimensions are, as in "
            f"--shape {spec.name}={','.join('16' if size == -1 else str(size) for size in inner)}"
        )
    return (*((share.rows,) if batches else ()), *(inner if given is None else given))


def _shuffled(random: np.random.Generator, weights: Sequence[float]) -> NDArray[np.uint32]:
    """Indices in random order, each as often as its weight says, to one, and at least once."""
    ideal = np.array(weights) / sum(weights)
    count = int(np.clip(1 / ideal.min(), PICKS, MOST_PICKS))
    counts = np.maximum(1, np.round(ideal * count).astype(int))
    picks = np.repeat(np.arange(len(weights), dtype=np.uint32), counts)
    random.shuffle(picks)
    return picks


def _size(datatype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * (12 if datatype == "BYTES" else DTYPES[datatype].itemsize)


def _random(random: np.random.Generator, datatype: str, shape: tuple[int, ...]) -> Tensor:
    if datatype == "BYTES":
        return BytesTensor.of([b"headrace"] * math.prod(shape), shape)
    dtype = DTYPES[datatype]
    if datatype in ("FP16", "BF16", "FP32", "FP64"):
        return random.standard_normal(shape, np.float32).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)


def _packed(model: str, version: str, inputs: Mapping[str, Tensor], priority: int, timeout_us: int) -> bytes:
    message = ModelInferRequest(model_name=model, model_version=version)
    for name, tensor in inputs.items():
        message.inputs.add(name=name, datatype=datatype_of(tensor), shape=tensor.shape)
        message.raw_input_contents.append(encode_tensor(tensor))
    if priority:
        message.parameters["priority"].uint64_param = priority
    if timeout_us:
        message.parameters["timeout"].int64_param = timeout_us
    return message.SerializeToString()


def _read(file: Path) -> pa.Table:
    try:
        from pyarrow import ArrowException, dataset
    except ModuleNotFoundError:
        raise InvalidLoad("--data needs pyarrow: pip install 'headrace[bench]'") from None
    if not file.exists():
        raise InvalidLoad(f"there is no file {file}")
    kind = "parquet" if file.suffix == ".parquet" else "ipc"
    try:
        table: pa.Table = dataset.dataset(file, format=kind).head(MOST_ROWS)
    except (ArrowException, OSError) as error:
        raise InvalidLoad(f"{file} cannot be read as {'Parquet' if kind == 'parquet' else 'Arrow IPC'}: {error}") from None
    if not table.num_rows:
        raise InvalidLoad(f"{file} has no rows")
    return table


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches():
        yield from batch.to_pylist()


def _whole(row: Mapping[str, Any], column: str, most: int, where: str) -> int:
    """The value of one of our columns; a missing one is 0."""
    value = row.get(column) or 0
    if not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidLoad(f"{where} '{column}': {value!r} is no whole number from 0 to {most}")
    return value


def _of_value(spec: Any, value: Any, where: str) -> Tensor:
    if value is None:
        raise InvalidLoad(f"{where}: is null")
    try:
        if spec.datatype == "BYTES":
            flat: Any = [value] if isinstance(value, (str, bytes)) else list(value)
            return BytesTensor.of(flat, _fit(spec.shape, len(flat)))
        array = np.asarray(value, DTYPES[spec.datatype])
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidLoad(f"{where}: no {spec.datatype} tensor of the shape {format_shape(spec.shape)}: {error}") from None
    try:
        return array.reshape(_fit(spec.shape, array.size))
    except ValueError as error:
        raise InvalidLoad(f"{where}: {error}") from None


def _fit(declared: Sequence[int], size: int) -> tuple[int, ...]:
    """The shape for so many elements: one open dimension is what is left; of two, the first – the rows – is 1.

    Raises:
        ValueError: none fits.
    """
    open_dims = [place for place, dim in enumerate(declared) if dim == -1]
    shape = [1 if dim == -1 else dim for dim in declared]
    if open_dims:
        shape[open_dims[-1]] = size // max(1, math.prod(shape))
    if math.prod(shape) != size or len(open_dims) > 2:
        raise ValueError(f"{size} elements do not fit the shape {format_shape(declared)}")
    return tuple(shape)
