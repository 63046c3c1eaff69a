"""The parameters of a configuration that say how inputs are padded, so that requests of different lengths share a batch.

padding          inputs and what each is padded with: `input_ids=0 attention_mask=0`
padding_axis     which dimension, counted without the batch dimension; 0 unless it is said
padding_mask     one of these inputs: where a request leaves it out, it is made, 1 for what is real
padding_buckets  where each bucket of lengths ends: `16 32 64`, or `16..512` for steps of about 1.3
padding_budget   the most elements of a batch, rows times padded length; 0, no limit, unless it is said
padding_whole    outputs that are not cut back to a request's own length, although a dimension of theirs varies

The first switches it on, and needs the buckets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise

import numpy as np

from headrace.errors import InvalidRepository
from headrace.model import Padding
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.tensor import DTYPES, TensorSpec, format_shape

_STEP = 1.3
_LONGEST = (1 << 31) - 1
_KEYS = ("padding", "padding_axis", "padding_mask", "padding_buckets", "padding_budget", "padding_whole")


def padding_of(config: ModelConfig, inputs: tuple[TensorSpec, ...]) -> Padding | None:
    """How the `inputs` of a configuration are padded; None when it does not say so.

    Raises:
        InvalidRepository: what it says means nothing, or does not suit the inputs.
    """
    given = {key: config.parameters[key].string_value for key in _KEYS if key in config.parameters}
    if "padding" not in given:
        if given:
            raise _wrong(config, f"parameter '{next(iter(given))}' has no meaning without 'padding'")
        return None
    if config.max_batch_size <= 0:
        raise _wrong(config, "padding needs a batch dimension, and max_batch_size is 0: set it to the most rows of a batch")
    if "padding_buckets" not in given:
        raise _wrong(config, "padding needs 'padding_buckets', the lengths to pad to, as in 16..512")
    axis = _number_of(config, given, "padding_axis")
    known = {tensor.name: tensor for tensor in inputs}
    values: dict[str, float] = {}
    for name, text in _pairs(config, given["padding"]):
        if name not in known:
            raise _wrong(config, f"padding names input '{name}'; the inputs are {', '.join(known)}")
        if name in values:
            raise _wrong(config, f"padding names input '{name}' twice")
        _check_input(config, known[name], axis)
        values[name] = _value(config, known[name], text)
    mask = given.get("padding_mask", "")
    if mask:
        _check_mask(config, known, values, mask, axis)
    edges = _edges(config, given["padding_buckets"])
    return Padding(axis, values, edges, mask, _number_of(config, given, "padding_budget"), _whole_outputs(config, given))


def made_input(config: ModelConfig) -> str:
    """The name of the input that is made where a request leaves it out, or nothing."""
    named = "padding" in config.parameters and "padding_mask" in config.parameters
    return config.parameters["padding_mask"].string_value if named else ""


def _pairs(config: ModelConfig, text: str) -> list[tuple[str, str]]:
    pairs = [word.rpartition("=") for word in _words(text)]
    if not pairs or not all(name and value for name, _, value in pairs):
        raise _unknown(config, "padding", text, "inputs and what each is padded with, as in input_ids=0 attention_mask=0")
    return [(name, value) for name, _, value in pairs]


def _check_input(config: ModelConfig, tensor: TensorSpec, axis: int) -> None:
    who = f"input '{tensor.name}' cannot be padded"
    if tensor.datatype == "BYTES":
        raise _wrong(config, f"{who}: it is BYTES, and only numbers can be")
    if tensor.reshape is not None:
        raise _wrong(config, f"{who}: it has a reshape; declare it as the model sees it")
    if axis >= len(tensor.dims) or tensor.dims[axis] != -1:
        raise _wrong(config, f"{who}: padding_axis is {axis}, and dimension {axis} of dims {format_shape(tensor.dims)} is not -1")


def _check_mask(config: ModelConfig, known: Mapping[str, TensorSpec], values: Mapping[str, float], mask: str, axis: int) -> None:
    if mask not in values:
        raise _wrong(config, f"padding_mask is '{mask}', which is not padded; padding names {', '.join(values)}")
    dims = known[mask].dims
    if any(size == -1 for place, size in enumerate(dims) if place != axis):
        raise _wrong(config, f"padding_mask '{mask}' has dims {format_shape(dims)}: to be made, only dimension {axis} may vary")


def _value(config: ModelConfig, tensor: TensorSpec, text: str) -> float:
    """The number `text`, if an element of the tensor can be it; rounded, if its elements are."""
    dtype = DTYPES[tensor.datatype]
    try:
        value = _number(text, is_whole=dtype.kind in "iu")
    except ValueError:
        raise _wrong(config, f"padding of input '{tensor.name}' is '{text}', expected a number") from None
    if dtype.kind == "b":
        fits = value in (0, 1)
    elif dtype.kind in "iu":
        limits = np.iinfo(dtype)
        fits = limits.min <= value <= limits.max and value == int(value)
    else:
        with np.errstate(over="ignore"):
            fits = "inf" in text.lower() or bool(np.isfinite(np.array(value).astype(dtype)))
    if not fits:
        raise _wrong(config, f"padding of input '{tensor.name}' is {text}, which {tensor.datatype} cannot hold")
    return value


def _number(text: str, *, is_whole: bool) -> float:
    if is_whole:
        with suppress(ValueError):
            return int(text)
    value = float(text)
    if math.isnan(value):
        raise ValueError
    return value


def _edges(config: ModelConfig, text: str) -> tuple[int, ...]:
    expected = "lengths that ascend, as in 16 32 64, or the first and the last, as in 16..512"
    span = re.fullmatch(r"\s*([0-9]{1,10})\.\.([0-9]{1,10})\s*", text)
    words = _words(text) if span is None else list(span.groups())
    if not words or not all(re.fullmatch(r"[0-9]{1,10}", word) for word in words):
        raise _unknown(config, "padding_buckets", text, expected)
    edges = [int(word) for word in words]
    if edges[0] < 1 or edges[-1] > _LONGEST or any(b < a + (span is None) for a, b in pairwise(edges)):
        raise _unknown(config, "padding_buckets", text, f"{expected}, from 1 to {_LONGEST}")
    return tuple(edges) if span is None else _steps(*edges)


def _steps(first: int, last: int) -> tuple[int, ...]:
    count = math.ceil(math.log(last / first, _STEP))
    return tuple(sorted({round(first * (last / first) ** (step / count)) for step in range(count)} | {last}))


def _number_of(config: ModelConfig, given: Mapping[str, str], key: str) -> int:
    text = given.get(key, "0")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise _unknown(config, key, text, "a whole number from 0 on")
    return int(text)


def _whole_outputs(config: ModelConfig, given: Mapping[str, str]) -> tuple[str, ...]:
    whole = tuple(_words(given.get("padding_whole", "")))
    known = [output.name for output in config.output]
    for name in whole:
        if name not in known:
            raise _wrong(config, f"padding_whole names output '{name}'; the outputs are {', '.join(known)}")
    return whole


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[,\s]+", text) if word]


def _unknown(config: ModelConfig, key: str, text: str, expected: str) -> InvalidRepository:
    return _wrong(config, f"parameter '{key}' is '{text}', expected {expected}")


def _wrong(config: ModelConfig, what: str) -> InvalidRepository:
    return InvalidRepository(f"model '{config.name}': {what}")
