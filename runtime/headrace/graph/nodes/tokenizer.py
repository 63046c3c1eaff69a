"""Text to token ids. The only place that imports tokenizers, which the extra `nodes` brings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from headrace.errors import InvalidRepository, InvalidRequest
from headrace.graph.nodes.parameters import Parameters, file_of, missing, parameters
from headrace.node import RAGGED, Array, Context, Rows


class TokenizerParameters(Parameters):
    """Those of `tokenizer`."""

    file: str
    """a tokenizer.json beside the graph"""
    most_tokens: Annotated[int, Field(gt=0)] = 512
    """Longer texts are cut, special tokens included."""
    type_ids: bool = True
    """Whether there is an output `type_ids`, for models that want it."""


class Tokenizer:
    """`text` BYTES[1], UTF-8, to `ids`, `mask` and `type_ids`, INT64[-1]: a row for each text, as long as it has tokens.

    Nothing is padded here, so the mask is all ones; it says what is real once rows share a length bucket.
    """

    inputs: Mapping[str, str] = {"text": "BYTES[1]"}
    outputs: Mapping[str, str]
    rows = RAGGED

    def load(self, context: Context) -> None:
        """Read the tokenizer's file."""
        given = parameters(TokenizerParameters, context)
        file = file_of(context, "file", given.file)
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise missing(context, "tokenizers") from None
        try:
            # It reads the file itself and says of a wrong one what is wrong, in errors that have no class of their own.
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:
            raise InvalidRepository(f"node '{context.name}': {file} is no tokenizer.json: {error}") from None
        special = tokenizer.num_special_tokens_to_add(False)
        if given.most_tokens <= special:
            raise InvalidRepository(
                f"node '{context.name}': most_tokens is {given.most_tokens}, "
                f"and the tokenizer adds {special} special tokens to every text; allow more"
            )
        side = (tokenizer.truncation or {}).get("direction", "right")
        tokenizer.enable_truncation(given.most_tokens, direction=side)
        tokenizer.no_padding()
        # Else its first batch starts a thread for each core, beside those of the model. Who wants them sets the variable.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._tokenizer = tokenizer
        self.outputs = dict.fromkeys(("ids", "mask", *(["type_ids"] if given.type_ids else [])), "INT64[-1]")

    def run(self, tensors: Mapping[str, Array]) -> Rows:
        """Tokenize all texts, outside the GIL.

        Raises:
            InvalidRequest: a text is no UTF-8.
        """
        texts = [_text(row, data) for row, data in enumerate(tensors["text"][:, 0])]
        # Fast: without the offsets into the text.
        encodings = self._tokenizer.encode_batch_fast(texts)
        made: dict[str, list[Any]] = {
            "ids": [np.array(encoding.ids, np.int64) for encoding in encodings],
            "mask": [np.ones(len(encoding), np.int64) for encoding in encodings],
        }
        if "type_ids" in self.outputs:
            made["type_ids"] = [np.array(encoding.type_ids, np.int64) for encoding in encodings]
        return Rows(made)


def _text(row: int, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"row {row} of 'text' is not valid UTF-8, from byte {error.start} on; send UTF-8") from None
