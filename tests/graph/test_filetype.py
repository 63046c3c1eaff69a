"""The graph `filetype` says of real files what Magika's own package says of them.

To ONNX Runtime a row of this model alone is not what it is in company: it takes another path through its kernels, and where a
file has few bytes, so that nearly all of the row is padding, the model makes much of the rounding. Scores of such files differ by
up to 0.02. So does what the package answers: `identify_bytes` asks for one file, `identify_paths` for many at once. Each way of
asking here is compared with the same of the package.
"""

from __future__ import annotations

import random
import site
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from magika import Magika, PredictionMode
from magika.types import ContentTypeLabel

from demo.filetype import build_repository
from headrace.backends.loading import load_class
from headrace.engine.engine import Engine
from headrace.errors import InvalidRepository
from headrace.node import Context

ROOT = Path(__file__).parents[2]
FILES = 1000
LARGEST = 4 << 20
BLOCK = 4096
ROWS = 4
TOLERANCE = 1e-6
"""Absolute, of scores."""
OUTPUTS = ("label", "mime_type", "group", "score")
Answer = Mapping[str, np.ndarray[Any, Any]]
Graph = Callable[[Sequence[bytes]], Answer]
"""Some files to what is said of them, one row a file; they run together."""

HANDMADE = {
    "nothing": b"",
    "one byte": b"a",
    "one byte that is no text": b"\xff",
    "seven bytes": b"#!/bin/",
    "seven bytes that are no text": b"\x89PNG\r\n\xff",
    "seven bytes that are UTF-8": "käse→"[:4].encode(),
    "a letter cut in two": "1234é".encode()[:-1],
    "eight bytes": b"#!/bin/s",
    "eight bytes that are no text": b"\x89PNG\r\n\x1a\n",
    "a zero": b"\0",
    "eight zeros": bytes(8),
    "a block of zeros": bytes(BLOCK),
    "white space": b" \t\n\r\x0b\x0c",
    "eight blanks": b" " * 8,
    "a block of white space": b" \t\r\n" * (BLOCK // 4),
    "white space for blocks": b"\n" * (3 * BLOCK),
    "seven bytes in white space": b"  \n 1234567 \n\n",
    "eight bytes in white space": b"  \n 12345678 \n\n",
    "seven bytes and a file behind them": b" " * (BLOCK - 7) + b"import os\n" * 1000,
    "eight bytes and a file behind them": b" " * (BLOCK - 8) + b"import os\n" * 1000,
    "white space, then a letter cut in two by the block": b" " * (BLOCK - 1) + "é".encode() + b" " * 100,
    "white space, then a file": b"\n" * BLOCK + b"#!/bin/sh\nset -eu\nexec true\n",
    "a file, then white space": b"#!/bin/sh\nset -eu\nexec true\n" + b"\n" * (2 * BLOCK),
    "a separator that Python strips of text only": b"\x1c\x1d\x1e\x1f\x85\xa0 import os",
    "no text in white space": b"    \xff\xfe    ",
    "random bytes": random.Random(1).randbytes(5000),
    "random letters": bytes(random.Random(2).choices(range(33, 127), k=5000)),
    "as long as a block": b"x = 1\n" * 683 + b"\n",
    "as long as the head": b"x = 1\n" * 171,
    "HTML": b"<!doctype html><html><head><title>mill</title></head><body><p>wheel</p></body></html>",
    "JSON": b'{"mill": {"wheels": 2, "water": true}}',
    "an empty ZIP": b"PK\x05\x06" + bytes(18),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repository")
    build_repository(path)
    return path


@pytest.fixture(scope="module")
def magika() -> Magika:
    return Magika()


@pytest.fixture(scope="module")
def graph(repository: Path) -> Iterator[Graph]:
    with Engine(repository) as engine:
        assert engine.ready, engine.statuses()

        def infer(contents: Sequence[bytes]) -> Answer:
            content = np.empty((len(contents), 1), np.object_)
            content[:, 0] = contents
            return engine.infer("filetype", {"content": content})

        yield infer


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """FILES files of as many kinds as this machine has: of this repository, of Python, of what is installed, of build/."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    here = [ROOT / name for name in listed.split("\0") if name]
    around = [sysconfig.get_path("stdlib"), *site.getsitepackages(), ROOT / "build/wheels"]
    found = chain.from_iterable(sorted(Path(folder).rglob("*")) for folder in around)
    kinds: dict[str, list[Path]] = {}
    for path in chain(here, found):
        kinds.setdefault(path.suffix, []).append(path)
    for paths in kinds.values():
        random.Random(len(paths)).shuffle(paths)
    by_turns = chain.from_iterable(zip_longest(*kinds.values()))
    fit = (path for path in by_turns if path is not None and path.is_file() and path.stat().st_size <= LARGEST)
    return list(islice(fit, FILES))


def beginnings() -> Iterator[bytes]:
    """Of real files, in the lengths at which another rule begins."""
    for path in (ROOT / "demo/__main__.py", ROOT / "build/models/magika/model.onnx", ROOT / "Makefile"):
        whole = path.read_bytes()
        yield from (whole[:size] for size in (*range(1, 17), 1023, 1024, 1025, 2048, 4095, 4097))


def batches(contents: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(contents), ROWS):
        yield contents[start : start + ROWS]


def rows_of(answer: Answer) -> Iterator[tuple[str, str, str, float]]:
    for label, mime_type, group, score in zip(*(answer[name][:, 0] for name in OUTPUTS), strict=True):
        yield label.decode(), mime_type.decode(), group.decode(), float(score)


def assert_same(answers: Sequence[Answer], expected: Sequence[Any]) -> set[str]:
    """Answers are those of the package; which labels there were."""
    for row, (answer, result) in enumerate(zip(chain.from_iterable(map(rows_of, answers)), expected, strict=True)):
        output = result.output
        assert (row, *answer[:3]) == (row, str(output.label), output.mime_type, output.group)
        assert abs(answer[3] - result.score) <= TOLERANCE, row
    return {str(result.output.label) for result in expected}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [100, pytest.param(FILES, marks=pytest.mark.slow)])
def test_real_files(graph: Graph, magika: Magika, files: list[Path], count: int) -> None:
    contents = [path.read_bytes() for path in files[:count]]
    assert len(contents) == count
    labels = assert_same([graph([content]) for content in contents], list(map(magika.identify_bytes, contents)))
    assert len(labels) > 30


def test_files_made_by_hand(graph: Graph, magika: Magika) -> None:
    contents = [*HANDMADE.values(), *beginnings()]
    labels = assert_same([graph([content]) for content in contents], list(map(magika.identify_bytes, contents)))
    assert {"empty", "txt", "unknown", "html", "python"} <= labels


def test_files_in_company(graph: Graph, magika: Magika, files: list[Path], tmp_path: Path) -> None:
    contents = [*HANDMADE.values(), *beginnings(), *(path.read_bytes() for path in files[:40])]
    contents = contents[: len(contents) // ROWS * ROWS]  # none alone
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert_same([graph(batch) for batch in batches(contents)], magika.identify_paths(paths))


def test_first_and_last_blocks_are_enough(graph: Graph, files: list[Path]) -> None:
    """As the graph's file promises clients."""
    whole = [path.read_bytes() for path in files if path.stat().st_size > 2 * BLOCK][:16]
    for long, short in zip(batches(whole), batches([each[:BLOCK] + each[-BLOCK:] for each in whole]), strict=True):
        assert list(rows_of(graph(long))) == list(rows_of(graph(short)))


def decide(repository: Path, mode: str) -> Any:
    """The node of that name."""
    made = load_class("nodes.py:Decide", repository / "filetype")()
    made.load(Context("decide", repository / "filetype", {"mode": mode}))
    return made


@pytest.mark.parametrize("mode", PredictionMode)
def test_thresholds_and_the_overwrite_map(repository: Path, mode: PredictionMode) -> None:
    """Each label of the model, with scores around every threshold there is."""
    magika = Magika(prediction_mode=mode)
    node, labels = decide(repository, str(mode)), magika._model_config.target_labels_space
    edges = np.float32(sorted({magika._model_config.medium_confidence_threshold, *magika._model_config.thresholds.values()}))
    values = np.concatenate(
        [np.nextafter(edges, np.float32(0)), edges, np.nextafter(edges, np.float32(1)), np.float32([0.01, 1])]
    )
    scores = np.zeros((len(labels) * len(values), len(labels)), np.float32)
    best = np.repeat(np.arange(len(labels)), len(values))
    scores[np.arange(len(best)), best] = np.tile(values, len(labels))
    answer = node.run({"scores": scores, "verdict": np.zeros((len(best), 1), np.int8)})
    expected = [
        magika._get_output_label_from_dl_label_and_score(ContentTypeLabel(labels[place]), float(scores[row, place]))[0]
        for row, place in enumerate(best)
    ]
    assert [label.decode() for label in answer["label"][:, 0]] == [str(label) for label in expected]
    assert {"txt", "unknown"} <= set(map(str, expected))


def test_a_mode_that_there_is_not(repository: Path) -> None:
    with pytest.raises(InvalidRepository, match="'mode' is 'wild'; it may be high_confidence, medium_confidence, best_guess"):
        decide(repository, "wild")
