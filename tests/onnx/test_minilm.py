"""A real model of sentences: those of different lengths share a batch, and get what ONNX Runtime gives each alone, unpadded.

How close is that? The weights of this MiniLM are int8, but its activations are not quantised, so that no answer depends on its
neighbours. Attention gives padding exactly the weight 0. On the machine this was written on (AMD EPYC, ONNX Runtime 1.32), padded
and unpadded answers of up to 6.1 were equal to the bit, in buckets of 31, 64 and 128 tokens; other processors may add up in
another order, for which there is a tolerance. A model whose activations are quantised by the tensor (DynamicQuantizeLinear) would
be another matter: its scale is that of the whole batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from demo.minilm import build_repository, model_file, tokenizer_file
from headrace.backends.fake import Gate
from tests.onnx.conftest import GatedBackend
from tests.oracle import plain
from tests.transport.serving import TRANSPORTS, Asked, serving, tensor
from tests.waiting import until

TOLERANCE = 1e-4
"""Absolute, of numbers up to 6."""
SENTENCES = (
    "Why?",
    "The mill wheel turns.",
    "Water turns the wheel of the mill.",
    "Requests of different lengths share a batch.",
    "A headrace leads water to a mill wheel; what the wheel does not need goes over the weir.",
    "Sentence embeddings place texts of similar meaning close to each other, whatever words they are made of.",
    "It rained all night and the river rose above its banks, so the miller opened every gate he had and hoped for the best.",
)


@pytest.fixture(scope="module")
def sentences() -> list[list[int]]:
    """Token ids."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file()))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [tokenizer.encode(sentence).ids for sentence in SENTENCES]


@pytest.fixture(scope="module")
def alone(sentences: list[list[int]]) -> list[np.ndarray[Any, Any]]:
    """What ONNX Runtime gives each sentence alone."""
    return [hidden([ids], [[1] * len(ids)])[0] for ids in sentences]


def hidden(ids: list[list[int]], mask: list[list[int]]) -> np.ndarray[Any, Any]:
    inputs = {"input_ids": np.int64(ids), "attention_mask": np.int64(mask), "token_type_ids": np.zeros_like(np.int64(ids))}
    return plain(model_file(), inputs)["last_hidden_state"]


def vector(states: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A sentence's: the mean of its tokens, of length 1."""
    mean = states.mean(0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("way", TRANSPORTS)
def test_sentences_in_company_get_what_each_gets_alone(
    tmp_path: Path, way: str, sentences: list[list[int]], alone: list[np.ndarray[Any, Any]]
) -> None:
    build_repository(tmp_path)
    config = tmp_path / "minilm/config.pbtxt"
    config.write_text(config.read_text().replace('"8..512"', '"64 512"'))
    backend = GatedBackend()
    with serving(way, tmp_path, {"onnxruntime": backend}) as server:
        assert server.engine.ready, server.engine.statuses()
        backend.batches.clear()

        def ask(ids: list[int]) -> Asked:
            types = tensor("token_type_ids", [[0] * len(ids)], "INT64")
            return Asked(server, "minilm", [tensor("input_ids", [ids], "INT64"), types])

        backend.gate = gate = Gate()
        first = ask(sentences[0])
        gate.wait_for(1)
        asked = [ask(ids) for ids in sentences]
        until(lambda: server.waiting("minilm") == len(asked))
        gate.open()
        answers = [answer.result().as_numpy("last_hidden_state")[0] for answer in asked]
        first.result()
    assert backend.batches == [1, len(sentences)]
    for mine, wanted in zip(answers, alone, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=TOLERANCE)
        assert vector(mine) @ vector(wanted) > 0.99999
    # The model means what it says: the two sentences about wheels are the closest.
    vectors = np.stack([vector(states) for states in answers])
    likeness = np.triu(vectors @ vectors.T, 1)
    assert np.unravel_index(likeness.argmax(), likeness.shape) == (1, 2)


def test_the_mask_is_what_makes_them_equal(sentences: list[list[int]], alone: list[np.ndarray[Any, Any]]) -> None:
    """Otherwise the tolerance above would prove nothing."""
    ids = sentences[1]
    unmasked = hidden([ids + [0] * 20], [[1] * (len(ids) + 20)])[0, : len(ids)]
    assert np.abs(unmasked - alone[1]).max() > 100 * TOLERANCE
