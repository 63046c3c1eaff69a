"""`python -m benchmarks.embed_loop`: the steps of the graph `embed` in a loop written by hand, on one thread of onnxruntime.

Sentences come in windows, in their order. Those of a window are tokenised together, and run in batches of one length bucket,
padded to the longest; both as the configuration of the model says. Prints sentences a second.
"""

from __future__ import annotations

import argparse
import time
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pyarrow import feather
from tokenizers import Encoding, Tokenizer

from headrace.model import Padding
from headrace.models.padding import padding_of
from headrace.models.pbtxt import parse
from headrace.models.spec import spec_of

MOST_TOKENS, MOST_ROWS = 256, 32


def batches_of(encoded: list[Encoding], padding: Padding) -> Iterator[list[Encoding]]:
    """Those of a window in batches of one bucket, within the budget."""
    buckets: dict[int, list[Encoding]] = {}
    for each in encoded:
        buckets.setdefault(padding.edges[bisect_left(padding.edges, len(each.ids))], []).append(each)
    for edge, mates in buckets.items():
        most = max(1, min(MOST_ROWS, padding.max_elements // edge))
        for at in range(0, len(mates), most):
            yield mates[at : at + most]


def vectors(session: ort.InferenceSession, batch: list[Encoding]) -> NDArray[np.float32]:
    """Padded, run, pooled, and made of length 1."""
    longest = max(len(each.ids) for each in batch)
    ids = np.zeros((len(batch), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, each in enumerate(batch):
        ids[row, : len(each.ids)] = each.ids
        mask[row, : len(each.ids)] = 1
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    hidden = np.asarray(session.run(["last_hidden_state"], feed)[0])
    pooled = (mask[:, None].astype(np.float32) @ hidden)[:, 0] / mask.sum(1, keepdims=True)
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def main() -> None:
    """Print the rate."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embed_loop", description="The steps of embed, by hand.")
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    config = parse((given.repository / "minilm/config.pbtxt").read_text(), "")
    padding = padding_of(config, spec_of(config, 1, "", Path()).inputs)
    assert padding is not None
    tokenizer = Tokenizer.from_file(str(given.repository / "embed/tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(given.repository / "minilm/1/model.onnx"), options, ["CPUExecutionProvider"])
    texts = [text for (text,) in feather.read_table(str(given.data)).column("text").to_pylist()]
    windows = [texts[at : at + given.window] for at in range(0, len(texts), given.window)]
    vectors(session, tokenizer.encode_batch_fast(windows[0]))
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < given.seconds:
        for window in windows:
            for batch in batches_of(tokenizer.encode_batch_fast(window), padding):
                done += len(vectors(session, batch))
            if time.perf_counter() - began >= given.seconds:
                break
    print(done / (time.perf_counter() - began))


if __name__ == "__main__":
    main()
