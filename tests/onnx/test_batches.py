"""Several requests in one run of ONNX Runtime: bit-equal to one plain run of the same rows, and each for itself in failure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.backends.fake import Gate
from headrace.errors import BackendFailed, InvalidRequest
from tests.build_models import DATATYPES, drops_rows, lookup, mlp, twice
from tests.onnx.conftest import Start, Started
from tests.oracle import Array, bits, plain, plain_bfloat16, sample
from tools.fetch_models import fetch


async def together(started: Started, requests: Sequence[dict[str, Any]]) -> list[dict[str, Array] | BaseException]:
    """The answers to requests that ran as one batch, if their shapes allow: they were pushed while another one ran."""
    started.backend.gate = gate = Gate()
    first = asyncio.create_task(started.engine.infer_async("m", requests[0]))
    await asyncio.to_thread(gate.wait_for, 1)
    tasks = [asyncio.create_task(started.engine.infer_async("m", request)) for request in requests]
    await asyncio.sleep(0)  # each runs up to its push
    depth = started.engine.routes.resolve("m").queue.depth()
    assert depth.requests == len(requests)
    gate.open()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(first, return_exceptions=True)
    return answers


def assert_bits(answers: Sequence[dict[str, Array] | BaseException], wanted: dict[str, Array], rows: Sequence[int]) -> None:
    """The answers, one below the other, are `wanted`."""
    at = 0
    for answer, count in zip(answers, rows, strict=True):
        assert not isinstance(answer, BaseException), answer
        mine = {name: array[at : at + count] for name, array in wanted.items()}
        assert {name: bits(array) for name, array in answer.items()} == {name: bits(array) for name, array in mine.items()}
        at += count


ROWS = (1, 2, 0, 3, 1)


@pytest.mark.asyncio
@pytest.mark.parametrize("datatype", DATATYPES)
async def test_every_datatype(start: Start, datatype: str) -> None:
    started = start(twice(datatype), "max_batch_size: 8")
    parts = [sample(datatype, (rows, 5), seed) for seed, rows in enumerate(ROWS, 1)]
    answers = await together(started, [{"x": part} for part in parts])
    assert started.backend.batches == [1, sum(ROWS)]
    x = np.concatenate(parts)
    if datatype == "BF16":
        wanted = plain_bfloat16(started.path, x, {"same": x.shape, "twice": (len(x), 10)})
    else:
        wanted = plain(started.path, {"x": x})
    assert_bits(answers, wanted, ROWS)


@pytest.mark.asyncio
async def test_an_mlp(start: Start) -> None:
    started = start(mlp(), "max_batch_size: 8")
    x = np.random.default_rng(3).standard_normal((sum(ROWS), 32), np.float32)
    answers = await together(started, [{"x": part} for part in np.split(x, np.cumsum(ROWS)[:-1])])
    assert started.backend.batches == [1, sum(ROWS)]
    assert_bits(answers, plain(started.path, {"x": x}), ROWS)


@pytest.fixture(scope="module")
def magika() -> Path:
    return fetch("magika") / "model.onnx"


@pytest.mark.asyncio
async def test_magika(start: Start, magika: Path) -> None:
    started = start(magika, "max_batch_size: 4")
    x = np.random.default_rng(4).integers(0, 257, (4, 2048), np.int32)
    answers = await together(started, [{"bytes": x[:1]}, {"bytes": x[1:3]}, {"bytes": x[3:]}])
    assert started.backend.batches == [1, 4]
    assert_bits(answers, plain(started.path, {"bytes": x}), (1, 2, 1))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_magika_alone(start: Start, magika: Path, rows: int) -> None:
    started = start(magika, "max_batch_size: 4")
    x = np.random.default_rng(rows).integers(0, 257, (rows, 2048), np.int32)
    answer = started.engine.infer("m", {"bytes": x})
    assert_bits([answer], plain(started.path, {"bytes": x}), [rows])


@pytest.mark.asyncio
async def test_an_index_out_of_range_fails_its_request_alone(start: Start) -> None:
    started = start(lookup(), "max_batch_size: 8")
    indices = (3, 99, 0, -77, 9)
    answers = await together(started, [{"i": np.int64([[index]])} for index in indices])
    for index, answer in zip(indices, answers, strict=True):
        if abs(index) > 9:
            assert isinstance(answer, BackendFailed)
            assert f"indices element out of data bounds, idx={index}" in answer.message
        else:
            assert not isinstance(answer, BaseException)
            assert answer["y"].tolist() == [[1.5 * index]]
    # Once together, which fails, then each alone.
    assert started.backend.batches == [1, 5, 1, 1, 1, 1, 1]


@pytest.mark.asyncio
async def test_rows_that_get_lost_fail_their_request_alone(start: Start) -> None:
    started = start(drops_rows(), "max_batch_size: 8")
    answers = await together(started, [{"x": np.float32([[value]])} for value in (1, -2, 3)])
    assert [answer["y"].tolist() for answer in (answers[0], answers[2]) if isinstance(answer, dict)] == [[[1]], [[3]]]
    assert isinstance(answers[1], BackendFailed)
    assert "the model returned shape [0,1], expected is [1,1]" in answers[1].message


@pytest.mark.asyncio
async def test_bytes_that_are_no_text_fail_their_request_alone(start: Start) -> None:
    """ONNX strings are UTF-8; the neighbours' are."""
    started = start(twice("BYTES"), "max_batch_size: 8")
    answers = await together(started, [{"x": np.array([[word]], np.object_)} for word in (b"good", b"\xff\xfe", b"gut")])
    assert [answer["same"].tolist() for answer in (answers[0], answers[2]) if isinstance(answer, dict)] == [
        [[b"good"]],
        [[b"gut"]],
    ]
    assert isinstance(answers[1], InvalidRequest)
    assert answers[1].message.startswith("input 'x' holds bytes that are no UTF-8 text")
