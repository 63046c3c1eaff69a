"""Text to token ids, against the library used plainly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from headrace.errors import InvalidRepository, InvalidRequest
from headrace.node import Rows
from tests.unit.nodes import column, loaded

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "mill", "wheel", "turn", "##s", "##ing", "käse", ".")
TEXTS = ("The mill wheel turns.", "", "turning turning turning", "käse \U0001f9c0", "Käse", "the\0mill")


@pytest.fixture
def plain(tmp_path: Path) -> Tokenizer:
    """Also in `tokenizer.json`, there with padding and truncation of its own, as files of models often have."""
    tokenizer = Tokenizer(WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS]:0 $A:0 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(4, direction="left")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokens(directory: Path, texts: Sequence[str], **parameters: Any) -> dict[str, list[np.ndarray[Any, Any]]]:
    node = loaded("tokenizer", directory, file="tokenizer.json", **parameters)
    made = node.run({"text": column(*(text.encode() for text in texts))})
    assert isinstance(made, Rows)
    assert made.counts is None
    assert set(made.tensors) == set(node.outputs)
    assert set(node.outputs.values()) == {"INT64[-1]"}
    assert all(row.dtype == np.int64 and row.ndim == 1 for rows in made.tensors.values() for row in rows)
    return {name: list(rows) for name, rows in made.tensors.items()}


def test_each_text_is_what_the_library_makes_of_it(tmp_path: Path, plain: Tokenizer) -> None:
    made = tokens(tmp_path, TEXTS)
    for index, text in enumerate(TEXTS):
        alone = plain.encode(text)
        assert made["ids"][index].tolist() == alone.ids
        assert made["mask"][index].tolist() == alone.attention_mask
        assert made["type_ids"][index].tolist() == alone.type_ids
    assert [len(ids) for ids in made["ids"]][:2] == [8, 2]


def test_long_texts_are_cut_on_the_side_that_the_file_names(tmp_path: Path, plain: Tokenizer) -> None:
    made = tokens(tmp_path, ["the mill wheel turns", "the"], most_tokens=4)
    assert [ids.tolist() for ids in made["ids"]] == [[2, 7, 8, 3], [2, 4, 3]]
    assert len(tokens(tmp_path, ["the " * 1000])["ids"][0]) == 512


def test_type_ids_can_be_left_out(tmp_path: Path, plain: Tokenizer) -> None:
    assert set(tokens(tmp_path, TEXTS, type_ids=False)) == {"ids", "mask"}


def test_what_is_no_text_is_named(tmp_path: Path, plain: Tokenizer) -> None:
    node = loaded("tokenizer", tmp_path, file="tokenizer.json")
    with pytest.raises(InvalidRequest, match=r"row 1 of 'text' is not valid UTF-8, from byte 4 on; send UTF-8"):
        node.run({"text": column(b"mill", b"mill\xff")})


def test_room_for_special_tokens_only(tmp_path: Path, plain: Tokenizer) -> None:
    with pytest.raises(InvalidRepository, match="most_tokens is 2, and the tokenizer adds 2 special tokens"):
        loaded("tokenizer", tmp_path, file="tokenizer.json", most_tokens=2)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]"])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InvalidRepository, match=r"node 'mine': .*tokenizer\.json is no tokenizer\.json: "):
        loaded("tokenizer", tmp_path, file="tokenizer.json")


THREADS = """
import sys
from pathlib import Path
from tests.unit.nodes import column, loaded
node = loaded("tokenizer", Path(sys.argv[1]), file="tokenizer.json")
before = len(list(Path("/proc/self/task").iterdir()))
node.run({"text": column(*[b"the mill wheel turns"] * 200)})
print(len(list(Path("/proc/self/task").iterdir())) - before)
"""


@pytest.mark.parametrize(("set_to", "more"), [(None, False), ("true", True)])
def test_no_threads_but_those_somebody_asks_for(tmp_path: Path, plain: Tokenizer, set_to: str | None, more: bool) -> None:
    kept = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    environment = {**kept, **({"TOKENIZERS_PARALLELISM": set_to} if set_to else {}), "RAYON_NUM_THREADS": "3"}
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", THREADS, str(tmp_path)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 0) == more
