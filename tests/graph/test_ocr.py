"""The graph `ocr` reads what the package rapidocr-onnxruntime reads: the same lines, in the same order, with the same text.

Its models are the package's, so what is compared is everything around them: decoding, scaling, boxes, crops, padding, turning,
reading – and that lines which share batches with lines of other images are read no differently.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image

from demo.ocr import build_repository
from headrace.backends.fake import Gate
from headrace.backends.loading import load_class
from headrace.engine.engine import Engine
from headrace.errors import HeadraceError, InvalidRequest
from headrace.node import Context
from tests.graph.conftest import statistics
from tests.graph.images_of_text import image_of
from tests.onnx.conftest import GatedBackend
from tests.transport.serving import serving
from tests.waiting import until
from tools.fetch_models import wheel

LEAST_SCORE = 0.5
"""The package leaves out lines that have less."""
TOLERANCE = 1e-3
"""Absolute, of scores."""
CLIENTS = 8
Array = np.ndarray[Any, Any]


class Line(NamedTuple):
    text: str
    score: float
    box: Array


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("repository")
    build_repository(home)
    return home


@pytest.fixture(scope="module")
def nodes(repository: Path) -> ModuleType:
    return sys.modules[load_class("nodes.py:Crops", repository / "ocr").__module__]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, unpacked: installed, it would bring opencv-python, of which the headless one has the same files."""
    home = tmp_path_factory.mktemp("package")
    with zipfile.ZipFile(wheel("rapidocr-onnxruntime")) as archive:
        archive.extractall(home)
    return home


def ask(engine: Engine, image: bytes) -> dict[str, Array]:
    return {name: array[0] for name, array in engine.infer("ocr", {"image": np.array([[image]], object)}).items()}


def read(engine: Engine, images: Sequence[bytes]) -> list[list[Line]]:
    """The lines of each image, asked for by several clients at once, that the package would not leave out."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda image: ask(engine, image), images))
    return [
        [
            Line(text.decode(), float(score), box)
            for text, score, box in zip(answer["text"], answer["score"], answer["box"], strict=True)
            if score >= LEAST_SCORE
        ]
        for answer in answers
    ]


def read_by_package(package: Path, images: Sequence[bytes], scratch: Path) -> list[list[Line]]:
    folder, answer = scratch / "images", scratch / "answer.json"
    folder.mkdir()
    for at, image in enumerate(images):
        (folder / f"{at:03}").write_bytes(image)
    script = Path(__file__).with_name("rapidocr_lines.py")
    subprocess.run([sys.executable, script, package, folder, answer], check=True)
    return [
        [Line(text, float(score), np.array(box)) for box, text, score in lines]
        for _, lines in sorted(json.loads(answer.read_text()).items())
    ]


def assert_same(mine: list[list[Line]], theirs: list[list[Line]], most_different: float = 0.01) -> None:
    """Each image has as many lines, in the same places, and but for a share of all lines the text is equal."""
    assert [len(lines) for lines in mine] == [len(lines) for lines in theirs]
    pairs = list(zip(chain(*mine), chain(*theirs), strict=True))
    for line, wanted in pairs:
        np.testing.assert_allclose(line.box, wanted.box, rtol=0, atol=0.01)
    different = [(line, wanted) for line, wanted in pairs if line.text != wanted.text]
    assert len(different) <= most_different * len(pairs), different
    for line, wanted in pairs:
        assert line.text != wanted.text or line.score == pytest.approx(wanted.score, abs=TOLERANCE)


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [image_of(seed, lines) for seed, lines in enumerate((0, 1, 4, 9, 2))]


@pytest.fixture(scope="module")
def expected(package: Path, images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> list[list[Line]]:
    return read_by_package(package, images, tmp_path_factory.mktemp("scratch"))


def test_text_is_what_the_package_reads(
    transport: str, repository: Path, images: list[bytes], expected: list[list[Line]]
) -> None:
    assert sum(map(len, expected)) > 14
    with serving(transport, repository) as server:
        assert server.engine.ready, server.engine.statuses()
        assert_same(read(server.engine, images), expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_text_is_what_the_package_reads_in_a_hundred_images(repository: Path, package: Path, tmp_path: Path) -> None:
    images = [image_of(seed, seed * 7 % 41) for seed in range(100)]
    with Engine(repository) as engine:
        assert_same(read(engine, images), read_by_package(package, images, tmp_path))


@pytest.mark.slow
def test_images_of_odd_sizes(repository: Path, package: Path, tmp_path: Path) -> None:
    """Small ones are scaled, flat ones get bars; boxes are where they are in the image that was sent all the same."""
    base = np.asarray(Image.open(io.BytesIO(image_of(4, 9))))
    small, flat = (np.full(shape, 255, np.uint8) for shape in ((26, 150, 3), (40, 900, 3)))
    for image, size in ((small, 0.5), (flat, 0.8)):
        cv2.putText(image, "wheel 12345", (10, image.shape[0] - 8), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1)
    _read_alike((small, flat, base[:, :, 0]), repository, package, tmp_path)


@pytest.mark.slow
def test_images_that_are_too_large_are_scaled(repository: Path, package: Path, tmp_path: Path) -> None:
    large = cv2.resize(np.asarray(Image.open(io.BytesIO(image_of(4, 9)))), None, fx=6, fy=7, interpolation=cv2.INTER_CUBIC)
    assert max(large.shape) > 2000
    _read_alike([large], repository, package, tmp_path)


def _read_alike(images: Sequence[Array], repository: Path, package: Path, tmp_path: Path) -> None:
    files = [cv2.imencode(".png", image)[1].tobytes() for image in images]
    wanted = read_by_package(package, files, tmp_path)
    assert all(wanted)
    with Engine(repository) as engine:
        assert_same(read(engine, files), wanted, most_different=0)


def test_lines_of_several_requests_share_batches(transport: str, repository: Path) -> None:
    """Each image has one line: rows of a batch are of as many requests."""
    backend = GatedBackend()
    images = [_one_line(f"Order {number}") for number in range(5)]
    with serving(transport, repository, {"onnxruntime": backend}) as server:
        engine = server.engine
        assert engine.ready, engine.statuses()
        (running,) = [each for each in engine.catalog.running() if each.opened.spec.name == "ocr"]
        backend.batches.clear()
        backend.gate = gate = Gate()
        with ThreadPoolExecutor(len(images)) as clients:
            asked = [clients.submit(ask, engine, image) for image in images]
            # All are before the detector, or in it.
            until(lambda: sum(backend.batches) + sum(crew.queue.depth().rows for crew in running.behind) == len(images))
            gate.open()
            answers = [each.result() for each in asked]
        server.wait_settled("ocr")
        (stats,) = statistics(server, "ocr_recognise")
    assert [answer["text"].tolist() for answer in answers] == [[f"Order {number}".encode()] for number in range(5)]
    assert stats.inference_count == len(images)
    assert max(each.batch_size for each in stats.batch_stats) >= 2


def _one_line(text: str) -> bytes:
    image = np.full((400, 400, 3), 255, np.uint8)
    cv2.putText(image, text, (20, 200), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 0, 0), 2)
    return cv2.imencode(".png", image)[1].tobytes()


def test_a_file_that_is_no_image_fails_alone(repository: Path, images: list[bytes]) -> None:
    """In its own words, whatever it shares a batch with."""
    with Engine(repository) as engine, ThreadPoolExecutor(3) as clients:
        asked = [clients.submit(ask, engine, file) for file in (images[1], b"no image", images[1])]
        with pytest.raises(HeadraceError, match="send the bytes of a PNG or JPEG file"):
            asked[1].result()
        assert [len(each.result()["text"]) for each in (asked[0], asked[2])] == [1, 1]


def test_what_is_no_image_is_the_clients_fault(nodes: ModuleType) -> None:
    for file in (b"", b"no image"):
        with pytest.raises(InvalidRequest, match="send the bytes of a PNG or JPEG"):
            nodes.decoded(file)


def test_an_image_that_has_no_side_left_when_scaled_is_refused(nodes: ModuleType) -> None:
    with pytest.raises(InvalidRequest, match="of 4000 x 4 pixels is too thin"):
        nodes.in_frame(np.zeros((4, 4000, 3), np.uint8))


@pytest.mark.parametrize("size", [(31, 170), (20, 61), (48, 320), (77, 1000), (9, 9)])
def test_turning_a_scaled_line_is_scaling_a_turned_one(nodes: ModuleType, size: tuple[int, int]) -> None:
    """To the last level of 255: OpenCV rounds up at a half, either way round."""
    crop = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    (line, width), (wanted, _) = nodes.fitted(crop, 400), nodes.fitted(np.ascontiguousarray(crop[::-1, ::-1]), 400)
    tensors = {"line": np.stack([line, line]), "width": np.array([[width], [width]], np.int32)}
    turned, left = nodes.Upright().run({**tensors, "orientation": np.array([[0.05, 0.95], [0.15, 0.85]], np.float32)})["line"]
    np.testing.assert_allclose(turned, wanted, rtol=0, atol=2.01 / 255)
    np.testing.assert_array_equal(left, line)


def test_lines_are_padded_to_the_widest_of_six(nodes: ModuleType) -> None:
    assert nodes.widths([]) == []
    assert nodes.widths([3.0]) == [320]
    assert nodes.widths([9.0, 1, 2, 10, 3, 4, 5, 20]) == [432, 432, 432, 960, 432, 432, 432, 960]


def test_reading_order(nodes: ModuleType) -> None:
    """Of boxes by their top left corners."""
    boxes = [np.array([corner] * 4, np.float32) for corner in ((300, 14), (10, 20), (150, 11), (5, 40), (400, 31))]
    assert [tuple(box[0]) for box in nodes.reading_order(boxes)] == [(10, 20), (150, 11), (300, 14), (5, 40), (400, 31)]


def test_reading_of_scores(nodes: ModuleType, tmp_path: Path) -> None:
    """Nothing is read of blanks; what goes on is read once, what comes back twice; its score is that of where it begins."""
    (tmp_path / "characters.txt").write_text("a\nö\n", encoding="utf-8")
    node = nodes.Read()
    node.load(Context("read", tmp_path, {"file": "characters.txt"}))
    assert node.inputs == {"scores": "FP32[-1,4]"}
    scores = np.zeros((2, 7, 4), np.float32)
    for place, (character, score) in enumerate([(0, 1), (1, 0.5), (1, 0.9), (0, 1), (1, 0.7), (3, 0.6), (2, 0.8)]):
        scores[0, place, character] = score
    scores[1, :, 0] = 1
    told = node.run({"scores": scores})
    assert list(told["text"]) == ["aa ö".encode(), b""]
    np.testing.assert_allclose(told["score"], [(0.5 + 0.7 + 0.6 + 0.8) / 4, 0])
