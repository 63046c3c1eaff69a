"""`python -m demo.reference filetype|embed`: what bare ONNX Runtime sessions answer. JSON comes in, JSON goes out.

A process of its own, so that nothing of Headrace can have a part in the answers it is judged by.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from demo import minilm
from demo.magika import Magika, package_files

MOST_TOKENS = 256


def filetype(files: list[str]) -> list[list[tuple[str, float]]]:
    """Label and score of each file: when its row runs alone, and when it runs in company.

    ONNX Runtime itself has two answers to a row, apart by a few 1e-5 in scores of this model, of files of a few bytes by up to
    0.02: it takes another path through its kernels for a batch of one. Among larger batches it differs by rounding only.
    """
    magika, session = Magika.read(), open_session(package_files() / "model.onnx")
    contents = [Path(file).read_bytes() for file in files]
    rows = np.stack([magika.row(content) for content in contents])

    def answer(batch: NDArray[np.int32]) -> NDArray[np.float32]:
        return np.asarray(session.run(["target_label"], {"bytes": batch})[0])

    alone, together = np.concatenate([answer(row[None]) for row in rows]), answer(rows)
    return [[magika.decide(content, each) for content, each in zip(contents, all_, strict=True)] for all_ in (alone, together)]


def embed(texts: list[str]) -> list[list[float]]:
    """The vector of each text, alone and without any padding."""
    tokenizer, session = Tokenizer.from_file(str(minilm.tokenizer_file())), open_session(minilm.model_file())
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    vectors = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        mean = np.asarray(session.run(["last_hidden_state"], inputs)[0])[0].mean(0)
        vectors.append((mean / np.linalg.norm(mean)).tolist())
    return vectors


def open_session(model: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    json.dump({"filetype": filetype, "embed": embed}[sys.argv[1]](json.load(sys.stdin)), sys.stdout)
