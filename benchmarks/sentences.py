"""Sentences that people wrote, as token ids: those of Python's own manual, which comes with Python."""

from __future__ import annotations

import random
import re
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
from pyarrow import feather
from tokenizers import Tokenizer

_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z])")
_FEWEST_WORDS = 3
MOST_TOKENS = 512
"""MiniLM's own limit."""


def sentences(count: int) -> list[str]:
    """So many of them, the same ones each time with one Python, in no order."""
    paragraphs = (" ".join(part.split()) for _, text in sorted(topics.items()) for part in text.split("\n\n"))
    found = (sentence for paragraph in paragraphs for sentence in _END.split(paragraph))
    # Examples of code, tables and lines of asterisks are none.
    known = sorted({each for each in found if len(each.split()) >= _FEWEST_WORDS and each[0].isalpha() and each[-1] in ".!?:"})
    return random.Random(0).sample(known, count)


def tokens(tokenizer: Path, texts: list[str]) -> list[list[int]]:
    """The token ids of each, with those that begin and end a sentence; none is padded."""
    known = Tokenizer.from_file(str(tokenizer))
    known.no_padding()
    known.enable_truncation(MOST_TOKENS)
    return [encoded.ids for encoded in known.encode_batch(texts)]


def write_table(file: Path, ids: list[list[int]], length: int = 0) -> Path:
    """A file for `headrace bench load --data`: one sentence a request, in this order, padded to at least `length` tokens."""
    file.parent.mkdir(parents=True, exist_ok=True)
    gaps = [[0] * max(0, length - len(each)) for each in ids]
    columns = {
        "input_ids": [each + gap for each, gap in zip(ids, gaps, strict=True)],
        "attention_mask": [[1] * len(each) + gap for each, gap in zip(ids, gaps, strict=True)],
        "token_type_ids": [[0] * len(each) + gap for each, gap in zip(ids, gaps, strict=True)],
    }
    feather.write_feather(pa.table(columns), str(file))
    return file
