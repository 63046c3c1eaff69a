"""Real graphs over real data, from end to end."""

from __future__ import annotations

import hashlib
import random
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo import embed, filetype, ocr
from headrace.engine.engine import Engine
from headrace.jobs import BatchJob, Options
from headrace.model import State
from tests.graph.images_of_text import image_of
from tests.jobs.conftest import column, read

PYTHON = Path(sysconfig.get_path("stdlib"))
LARGEST = 1 << 20


def some_files(count: int) -> list[Path]:
    """Files of Python's library and of what is installed, of all kinds."""
    found = sorted(path for path in PYTHON.rglob("*") if path.is_file() and 0 < path.stat().st_size < LARGEST)
    return random.Random(1).sample(found, count)


def linked(files: list[Path], directory: Path) -> Path:
    """A directory tree of these files."""
    for number, file in enumerate(files):
        to = directory / f"{number % 17:02}" / f"{number:05}{file.suffix}"
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(file.read_bytes())
    return directory


def sorted_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_what_kind_of_files_there_are(tmp_path: Path) -> None:
    """A tree of files as rows: the labels that a server would give."""
    filetype.build_repository(tmp_path / "models")
    tree = linked(some_files(60), tmp_path / "tree")
    options = Options(columns={"content": "bytes"}, input_format="files", text=("label", "mime_type", "group"), batch_rows=4)
    done = BatchJob("filetype", tmp_path / "models", tree, tmp_path / "out", options).run()
    table = read(tmp_path / "out")
    assert (done.rows, done.rejected, table.num_rows) == (60, 0, 60)
    files = sorted_files(tree)
    assert [Path(path).name for path in table.column("path").to_pylist()] == [file.name for file in files]
    with Engine(tmp_path / "models") as engine:
        assert all(status.state is State.READY for status in engine.statuses())
        for first in range(0, 60, 4):
            # As objects: numpy's own bytes end at the last that is not zero.
            contents = np.array([[file.read_bytes()] for file in files[first : first + 4]], object)
            expected = engine.infer("filetype", {"content": contents})
            assert [label.decode() for label in expected["label"][:, 0]] == table.column("label").to_pylist()[first : first + 4]
            np.testing.assert_array_equal(expected["score"][:, 0], column(table, "score")[first : first + 4])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_files(tmp_path: Path) -> None:
    filetype.build_repository(tmp_path / "models")
    tree = linked(some_files(3000), tmp_path / "tree")
    options = Options(columns={"content": "bytes"}, input_format="files", text=("label", "mime_type", "group"))
    done = BatchJob("filetype", tmp_path / "models", tree, tmp_path / "out", options).run()
    assert (done.rows, done.rejected) == (3000, 0)
    labels = dict(zip(*(read(tmp_path / "out").column(name).to_pylist() for name in ("path", "label")), strict=True))
    python = [label for path, label in labels.items() if path.endswith(".py")]
    assert len(python) > 500
    assert python.count("python") > 0.95 * len([label for label in python if label not in ("empty", "txt")])


def lines_of_python() -> Iterator[str]:
    """Lines of Python's own sources that say something, each once."""
    seen: set[bytes] = set()
    for file in sorted(PYTHON.rglob("*.py")):
        for line in file.read_text("utf-8", "replace").splitlines():
            text = " ".join(line.split())
            digest = hashlib.md5(text.lower().encode(), usedforsecurity=False).digest()
            if 20 <= len(text) <= 60 and digest not in seen:
                seen.add(digest)
                yield text


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_vectors_of_a_hundred_thousand_texts(tmp_path: Path) -> None:
    """What differs in nothing but capitals and punctuation is nearest to what it was made of."""
    embed.build_repository(tmp_path / "models")
    texts = list(islice(lines_of_python(), 100_000))
    assert len(texts) == 100_000
    asked = random.Random(2).sample(range(len(texts)), 100)
    queries = [f"{texts[row].capitalize()}." for row in asked]
    (tmp_path / "in").mkdir()
    rows = [*texts, *queries]
    for number, first in enumerate(range(0, len(rows), 30_000)):
        part = rows[first : first + 30_000]
        table = pa.table({"body": part, "row": range(first, first + len(part))})
        pq.write_table(table, tmp_path / "in" / f"{number}.parquet", row_group_size=7000)
    options = Options(columns={"text": "body"})
    done = BatchJob("embed", tmp_path / "models", tmp_path / "in", tmp_path / "out", options).run()
    print(f"{done.rows} rows in {done.seconds:.0f} s, {done.rate:.0f} rows/s")
    table = read(tmp_path / "out")
    assert table.column("row").to_pylist() == list(range(len(rows)))
    vectors = column(table, "vector")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    nearest = (vectors[len(texts) :] @ vectors[: len(texts)].T).argmax(axis=1)
    assert (nearest == np.array(asked)).mean() >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_text_in_images(tmp_path: Path) -> None:
    """Rendered pages are read as a server reads them, and what is no image is told of."""
    ocr.build_repository(tmp_path / "models")
    (tmp_path / "in").mkdir()
    images = [image_of(number, 1 + number % 4) for number in range(60)]
    for number, image in enumerate([*images, b"\x89PNG nothing"]):
        (tmp_path / "in" / f"{number:03}").write_bytes(image)
    options = Options(columns={"image": "bytes"}, input_format="files", text=("text",))
    done = BatchJob("ocr", tmp_path / "models", tmp_path / "in", tmp_path / "out", options).run()
    assert (done.rows, done.rejected) == (61, 1)
    texts = read(tmp_path / "out").column("text").to_pylist()
    with Engine(tmp_path / "models") as engine:
        for image, own in zip(images, texts, strict=True):
            alone = engine.infer("ocr", {"image": [[image]]})
            assert own == [text.decode() for text in alone["text"].reshape(-1)]
    assert sum(map(len, texts)) > 60
