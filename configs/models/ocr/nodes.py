"""The steps of the graph `ocr` that are no models: from a file to the detector, from its map to crops, from scores to text.

They do what the package rapidocr-onnxruntime 1.4.4 does by default, to the pixel, so that the three models see what they see
there. Needs numpy, opencv and pyclipper. Boxes are four corners (x, y), clockwise from the top left one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import cv2
import numpy as np
import pyclipper
from numpy.typing import NDArray

from headrace.errors import InvalidRequest
from headrace.node import Array, Context, Rows

Floats: TypeAlias = NDArray[np.float32]
Pixels: TypeAlias = NDArray[np.uint8]

# Sides of images, in pixels.
LONGEST_SIDE = 2000
SHORTEST_SIDE = 30
FLATTEST = 8
"""Images that are wider than this many times their height get black bars above and below."""
DETECTED_SIDE = 736
"""The detector sees an image at least this large, both ways."""
STRIDE = 32
"""The detector wants sides that are multiples of it."""

# The detector's map of how likely each pixel is text: what becomes a box.
TEXT = 0.3
LIKELY_BOX = 0.5
MOST_BOXES = 1000
GROWTH = 1.6
SMALLEST_CORE, SMALLEST_BOX = 3, 5
SMALLEST_CROP = 4
SAME_LINE = 10
"""Boxes whose tops are less than this apart, in pixels, are read from left to right."""
UPRIGHT = 1.5
"""Crops at least this many times as high as wide are turned by 90 degrees."""

# Crops.
HEIGHT = 48
ORIENT_WIDTH = 192
LINE_WIDTH = 320
ALIKE = 6
CERTAINLY_UPSIDE_DOWN = 0.9


class Decode:
    """An image file → what the detector sees of it, and what crops are cut from.

    `pixels` is blue, green, red; `scene` the same, scaled for the detector. `frame` says how `pixels` came out of the file's
    image: rows of black above it, how much smaller it is (y, x), and the height and width of the file's image.
    """

    inputs: Mapping[str, str] = {"image": "BYTES[1]"}
    outputs: Mapping[str, str] = {"pixels": "UINT8[-1,-1,3]", "scene": "FP32[3,-1,-1]", "frame": "FP32[5]"}
    rows = "ragged"

    def load(self, context: Context) -> None:
        """Nothing to get ready."""

    def run(self, tensors: Mapping[str, Array]) -> Rows:
        """See the class."""
        pixels, scenes, frames = [], [], []
        for file in tensors["image"][:, 0]:
            image = decoded(file)
            framed, frame = in_frame(image)
            pixels.append(framed)
            scenes.append(normalised(scaled(framed, max(1.0, DETECTED_SIDE / min(framed.shape[:2])))))
            frames.append(frame)
        return Rows({"pixels": pixels, "scene": scenes, "frame": frames})


def decoded(file: bytes) -> Pixels:
    """[height, width, 3], as stored: neither turned as the camera was held, nor laid over anything where it is transparent.

    Raises:
        InvalidRequest: it is no image.
    """
    data = np.frombuffer(file, np.uint8)
    # OpenCV raises for no bytes at all, and returns None for wrong ones.
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if data.size else None
    if image is None:
        raise InvalidRequest("the image cannot be decoded; send the bytes of a PNG or JPEG file")
    return np.asarray(image, np.uint8)


def in_frame(image: Pixels) -> tuple[Pixels, Floats]:
    """The image at a size for the detector and the crops, and its `frame`."""
    height, width = image.shape[:2]
    if max(height, width) > LONGEST_SIDE:
        image = scaled(image, LONGEST_SIDE / max(height, width))
    elif min(height, width) < SHORTEST_SIDE:
        image = scaled(image, SHORTEST_SIDE / min(height, width))
    high, wide = image.shape[:2]
    bar = 0
    if high <= SHORTEST_SIDE or wide / high > FLATTEST:
        bar = abs(2 * max(int(wide / FLATTEST), SHORTEST_SIDE) - high) // 2
        image = np.pad(image, ((bar, bar), (0, 0), (0, 0)))
    return image, np.array([bar, height / high, width / wide, height, width], np.float32)


def scaled(image: Pixels, factor: float) -> Pixels:
    """To about `factor` times its size: both sides to a multiple of the detector's stride.

    Raises:
        InvalidRequest: one of them to 0.
    """
    height, width = (round(int(side * factor) / STRIDE) * STRIDE for side in image.shape[:2])
    if not height or not width:
        raise InvalidRequest(f"an image of {image.shape[1]} x {image.shape[0]} pixels is too thin to be searched for text")
    return np.asarray(cv2.resize(image, (width, height)), np.uint8)


def normalised(image: Pixels) -> Floats:
    """[height, width, 3] of 0 to 255 → [3, height, width] of -1 to 1."""
    return np.asarray((image.transpose(2, 0, 1).astype(np.float32) / 255 - 0.5) / 0.5, np.float32)


class Crops:
    """An image and the detector's map of it → its lines, in reading order, cut out and upright but for half a turn.

    `orient` and `line` are a line as the two models want it: scaled to their height, black (0) to the right of it; `width` is how
    much of `line` is not. `box` is where the line is in the file's image.
    """

    inputs: Mapping[str, str] = {"pixels": "UINT8[-1,-1,3]", "frame": "FP32[5]", "map": "FP32[1,-1,-1]"}
    outputs: Mapping[str, str] = {
        "orient": f"FP32[3,{HEIGHT},{ORIENT_WIDTH}]",
        "line": f"FP32[3,{HEIGHT},-1]",
        "width": "INT32[1]",
        "box": "FP32[4,2]",
    }
    rows = "many"

    def load(self, context: Context) -> None:
        """Nothing to get ready."""

    def run(self, tensors: Mapping[str, Array]) -> Rows:
        """See the class."""
        counts: list[int] = []
        rows: dict[str, list[Any]] = {name: [] for name in self.outputs}
        for pixels, frame, likely in zip(tensors["pixels"], tensors["frame"], tensors["map"][:, 0], strict=True):
            boxes = reading_order(boxes_of(likely, pixels.shape))
            crops = [cut(pixels, box) for box in boxes]
            for crop, room in zip(crops, widths([crop.shape[1] / crop.shape[0] for crop in crops]), strict=True):
                line, width = fitted(crop, room)
                rows["line"].append(line)
                rows["width"].append(np.array([width], np.int32))
                rows["orient"].append(fitted(crop, ORIENT_WIDTH)[0])
            rows["box"].extend(unframed(box, frame) for box in boxes)
            counts.append(len(boxes))
        return Rows(rows, counts)


def boxes_of(likely: Floats, shape: tuple[int, ...]) -> list[Floats]:
    """Boxes around what is text in a map [height, width], in whole pixels of an image of shape (height, width, …).

    The detector (Differentiable Binarization) is taught to mark the core of each line only; a box is its core, grown by
    as much as cores are smaller than lines.
    """
    grid, image = np.array(likely.shape[::-1], np.float32), np.array(shape[1::-1], np.float32)
    marked = cv2.dilate((likely > TEXT).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(marked, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for contour in contours[:MOST_BOXES]:
        core, side = rectangle(contour)
        if side < SMALLEST_CORE or mean_inside(likely, core) < LIKELY_BOX:
            continue
        box, side = rectangle(grown(core))
        if side < SMALLEST_BOX:
            continue
        box = clockwise(np.clip(np.round(box / grid * image), 0, image - 1))
        if min(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[0] - box[3])) >= SMALLEST_CROP:
            boxes.append(box)
    return boxes


def rectangle(points: Array) -> tuple[Floats, float]:
    """The smallest rectangle around points [n, 1, 2], at any angle, and its shorter side."""
    found = cv2.minAreaRect(points)
    return clockwise(np.asarray(cv2.boxPoints(found), np.float32)), min(found[1])


def clockwise(corners: Floats) -> Floats:
    """Corners from the top left one on."""
    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    left, right = (pair[np.argsort(pair[:, 1], kind="stable")] for pair in (by_x[:2], by_x[2:]))
    return np.stack([left[0], right[0], right[1], left[1]])


def mean_inside(likely: Floats, corners: Floats) -> float:
    """The mean of a map inside of corners."""
    edge = np.array(likely.shape[::-1]) - 1
    low = np.clip(np.floor(corners.min(0)).astype(int), 0, edge)
    high = np.clip(np.ceil(corners.max(0)).astype(int), 0, edge)
    mask = np.zeros((high - low + 1)[::-1], np.uint8)
    cv2.fillPoly(mask, [(corners - low).astype(np.int32)], (1,))
    return cv2.mean(likely[low[1] : high[1] + 1, low[0] : high[0] + 1], mask)[0]


def grown(corners: Floats) -> NDArray[np.int32]:
    """An outline [n, 1, 2] around corners, at the distance area · GROWTH / circumference."""
    here = corners.astype(np.float64)
    there = np.roll(here, -1, 0)
    area = abs(np.sum(here[:, 0] * there[:, 1] - here[:, 1] * there[:, 0])) / 2
    around = np.linalg.norm(here - there, axis=1).sum()
    offset = pyclipper.PyclipperOffset()  # pyright: ignore[reportAttributeAccessIssue]
    offset.AddPath(corners.astype(int).tolist(), pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)  # pyright: ignore[reportAttributeAccessIssue]
    return np.concatenate(offset.Execute(area * GROWTH / around)).astype(np.int32)[:, None]


def reading_order(boxes: list[Floats]) -> list[Floats]:
    """From top to bottom; from left to right where a box begins at the height of the one before it."""
    ordered: list[Floats] = []
    for box in sorted(boxes, key=lambda box: (box[0, 1], box[0, 0])):
        x, y = box[0]
        at = len(ordered)
        while at and abs(ordered[at - 1][0, 1] - y) < SAME_LINE and x < ordered[at - 1][0, 0]:
            at -= 1
        ordered.insert(at, box)
    return ordered


def cut(pixels: Pixels, box: Floats) -> Pixels:
    """What is in the box, as a rectangle that lies."""
    top, right, bottom, left = (np.linalg.norm(box[at] - box[(at + 1) % 4]) for at in range(4))
    width, height = int(max(top, bottom)), int(max(left, right))
    whole = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    turn = cv2.getPerspectiveTransform(box, whole)
    crop = cv2.warpPerspective(pixels, turn, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(np.rot90(crop) if height / width >= UPRIGHT else crop, np.uint8)


def widths(aspects: list[float]) -> list[int]:
    """What each line of an image is padded to, given width / height of each.

    The package sorts lines by aspect and runs six at a time, each padded to the widest of them. What the model reads depends on
    that: it looks at the padding, too. So a line is padded to the very width that the package pads it to, and shares batches
    with lines of other images that are as wide, the many short ones of LINE_WIDTH above all. Rounding widths up to a few steps
    would fill batches better, and read 3 % of 264 rendered lines differently (2 % where the steps are 32 pixels).
    """
    room = [0] * len(aspects)
    order = np.argsort(np.array(aspects))
    for at in range(0, len(order), ALIKE):
        alike = order[at : at + ALIKE]
        widest = max(LINE_WIDTH / HEIGHT, *(aspects[line] for line in alike))
        for line in alike:
            room[line] = int(HEIGHT * widest)
    return room


def fitted(crop: Pixels, room: int) -> tuple[Floats, int]:
    """A crop scaled to the height of lines, in [3, HEIGHT, room], squeezed where it has to be, and how wide it is in there."""
    width = min(room, math.ceil(HEIGHT * (crop.shape[1] / crop.shape[0])))
    line = np.zeros((3, HEIGHT, room), np.float32)
    line[:, :, :width] = normalised(np.asarray(cv2.resize(crop, (width, HEIGHT)), np.uint8))
    return line, width


def unframed(box: Floats, frame: Floats) -> Floats:
    """A box of `pixels` in the file's image."""
    bar, down, across, height, width = frame
    origin, scale, corner = np.array([[0, bar], [across, down], [width, height]], np.float32)
    return np.clip((box - origin) * scale, 0, corner)


class Upright:
    """Lines → lines, those that the orientation model (0, 180 degrees) says are upside down turned.

    Turning the scaled line is as good as scaling the turned one: interpolation has no direction.
    """

    inputs: Mapping[str, str] = {"line": f"FP32[3,{HEIGHT},-1]", "width": "INT32[1]", "orientation": "FP32[2]"}
    outputs: Mapping[str, str] = {"line": f"FP32[3,{HEIGHT},-1]"}

    def load(self, context: Context) -> None:
        """Nothing to get ready."""

    def run(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """See the class."""
        lines = tensors["line"].copy()
        for row in np.flatnonzero(tensors["orientation"][:, 1] > CERTAINLY_UPSIDE_DOWN):
            width = tensors["width"][row, 0]
            lines[row, :, :, :width] = tensors["line"][row, :, ::-1, :width][..., ::-1]
        return {"line": lines}


class Read:
    """Scores of each character at each place [places, characters] → the text and the mean score of its characters.

    The character 0 is none (CTC's blank); the last one is the space; those between are the lines of the parameter `file`.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str] = {"text": "BYTES[]", "score": "FP32[]"}

    def load(self, context: Context) -> None:
        """Read the characters."""
        characters = (context.directory / context.parameters["file"]).read_text(encoding="utf-8").splitlines()
        self._characters = np.array(["", *characters, " "])
        self.inputs = {"scores": f"FP32[-1,{len(self._characters)}]"}

    def run(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """See the class."""
        best = tensors["scores"].argmax(2)
        # A character begins where it is not blank and not the one before, going on.
        begins = (best != 0) & np.diff(best, axis=1, prepend=0).astype(bool)
        texts, scores = np.empty(len(best), object), np.zeros(len(best), np.float32)
        for row, (line, begin) in enumerate(zip(best, begins, strict=True)):
            texts[row] = "".join(self._characters[line[begin]]).encode()
            if begin.any():
                scores[row] = tensors["scores"][row, begin].max(1).mean(dtype=np.float64)
        return {"text": texts, "score": scores}
