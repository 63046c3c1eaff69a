"""What is around Magika's model: what it looks at of a file, and what is made of its scores.

Both nodes go by two files of Magika's package, which lie beside this one: `config.min.json` has the sizes, the labels, the
thresholds and the overwrite map; `content_types_kb.min.json` says of each kind of file what else is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headrace.errors import InvalidRepository
from headrace.node import Array, Context

# What is known of a file without the model; its scores count only where nothing is.
ASK, EMPTY, TEXT, UNKNOWN = range(4)

MODES = ("high_confidence", "medium_confidence", "best_guess")


class Features:
    """Contents → what the model sees, INT32[head + tail], and a verdict on those that it need not see.

    The model sees the first bytes behind leading white space and the last ones before trailing white space, each looked for in
    one block, and a number that is no byte where there are none.
    """

    inputs: Mapping[str, str] = {"content": "BYTES[1]"}
    outputs: Mapping[str, str]

    def load(self, context: Context) -> None:
        """Read the sizes."""
        config = _config(context.directory)
        self._head, self._tail, self._block = config["beg_size"], config["end_size"], config["block_size"]
        self._least, self._padding = config["min_file_size_for_dl"], config["padding_token"]
        self.outputs = {"bytes": f"INT32[{self._head + self._tail}]", "verdict": "INT8[1]"}

    def run(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """See the class."""
        contents = tensors["content"][:, 0]
        rows = np.full((len(contents), self._head + self._tail), self._padding, np.int32)
        verdicts = np.zeros((len(contents), 1), np.int8)
        for row, verdict, content in zip(rows, verdicts, contents, strict=True):
            first = content[: self._block].lstrip()[: self._head]
            last = content[-self._block :].rstrip()[-self._tail :]
            row[: len(first)] = np.frombuffer(first, np.uint8)
            row[len(row) - len(last) :] = np.frombuffer(last, np.uint8)
            if len(first) < self._least:
                verdict[:] = _of_few_bytes(content[: self._block])
        return {"bytes": rows, "verdict": verdicts}


class Decide:
    """Scores and verdicts → the kind of each file.

    The kind is that of the best score, or what the overwrite map has for it. Where the score is below the threshold of that
    label – the parameter `mode` says which – it is `txt` or `unknown`, as the kind is text or not.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str] = {"label": "BYTES[1]", "score": "FP32[1]", "mime_type": "BYTES[1]", "group": "BYTES[1]"}

    def load(self, context: Context) -> None:
        """Lay the rules out as arrays, with an entry a label of the model."""
        mode = context.parameters.get("mode", MODES[0])
        if mode not in MODES:
            raise InvalidRepository(f"node '{context.name}': parameter 'mode' is {mode!r}; it may be {', '.join(MODES)}")
        config = _config(context.directory)
        known = json.loads((context.directory / "content_types_kb.min.json").read_text())
        places = {name: place for place, name in enumerate(known)}
        labels: list[str] = config["target_labels_space"]
        kinds = [config["overwrite_map"].get(label, label) for label in labels]

        self.inputs = {"scores": f"FP32[{len(labels)}]", "verdict": "INT8[1]"}
        self._thresholds = np.array([_threshold(mode, config, label) for label in labels])
        self._sure = np.array([places[kind] for kind in kinds])
        self._unsure = np.array([places["txt" if known[kind]["is_text"] else "unknown"] for kind in kinds])
        self._ruled = np.array([places["undefined"], places["empty"], places["txt"], places["unknown"]])
        # [kinds, 3]: an object array, so that numpy does not make all of them as long as the longest.
        self._told = np.array([_told(name, kind) for name, kind in known.items()], np.object_)

    def run(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """See the class."""
        scores, verdicts = tensors["scores"], tensors["verdict"][:, 0]
        best = scores.argmax(1)
        score = scores.max(1)
        # In FP64, as the thresholds are written: 0.9 is above the FP32 nearest to it.
        kinds = np.where(score.astype(np.float64) >= self._thresholds[best], self._sure[best], self._unsure[best])
        ruled = verdicts != ASK
        told = self._told[np.where(ruled, self._ruled[verdicts], kinds)]
        return {
            "label": told[:, :1],
            "score": np.where(ruled, np.float32(1), score)[:, None],
            "mime_type": told[:, 1:2],
            "group": told[:, 2:],
        }


def _config(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.min.json").read_text())


def _of_few_bytes(content: bytes) -> int:
    """A file of which there is next to nothing but white space, by its first block."""
    if not content:
        return EMPTY
    try:
        content.decode()
    except UnicodeDecodeError:
        return UNKNOWN
    return TEXT


def _threshold(mode: str, config: Mapping[str, Any], label: str) -> float:
    if mode == "best_guess":
        return 0.0
    medium = config["medium_confidence_threshold"]
    return config["thresholds"].get(label, medium) if mode == "high_confidence" else medium


def _told(name: str, kind: Mapping[str, Any]) -> list[bytes]:
    """Label, MIME type and group; many kinds of file have no MIME type of their own, some no group."""
    mime_type = kind["mime_type"] or ("text/plain" if kind["is_text"] else "application/octet-stream")
    return [name.encode(), mime_type.encode(), (kind["group"] or "unknown").encode()]
