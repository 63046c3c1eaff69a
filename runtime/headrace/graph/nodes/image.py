"""Encoded images to what models take. Pillow is imported by `pillow.py`, when a node is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from headrace.graph.nodes.parameters import Parameters, missing, parameters
from headrace.node import RAGGED, Array, Context, Rows

Size = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
_COUNT = {"RGB": "3 numbers", "L": "1 number"}


class DecodeParameters(Parameters):
    """Those of `decode`."""

    most_pixels: Size = 64_000_000
    """Width x height of an encoded image; what claims more is refused before it is decoded."""


class ImageParameters(DecodeParameters):
    """Those of `image`."""

    size: Annotated[list[Size], Field(min_length=2, max_length=2)]
    """[height, width] of the pixels that come out"""
    mode: Literal["RGB", "L"] = "RGB"
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    """What to do where height and width are in another proportion: crop cuts the long sides, pad puts black around the short."""
    resample: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    layout: Literal["CHW", "HWC"] = "CHW"
    scale: Positive = 255.0
    """A pixel is (value / scale - mean) / std."""
    mean: list[float] | None = None
    """One a channel; none is 0."""
    std: list[Positive] | None = None
    """One a channel; none is 1."""

    @field_validator("mean", "std")
    @classmethod
    def _one_a_channel(cls, value: list[float] | None, info: ValidationInfo) -> list[float] | None:
        mode = info.data.get("mode", "RGB")
        if value is not None and len(value) != len(mode):
            raise PydanticCustomError("channels", "expected {count}, for mode {mode}", {"count": _COUNT[mode], "mode": mode})
        return value


class Image:
    """`image` BYTES[1], an encoded file, to `pixels` FP32: decoded, upright, resized, normalised.

    Pixels are [channels, height, width] or, in the layout HWC, [height, width, channels].
    """

    inputs: Mapping[str, str] = {"image": "BYTES[1]"}
    outputs: Mapping[str, str]

    def load(self, context: Context) -> None:
        """Settle what comes out."""
        self._given = given = parameters(ImageParameters, context)
        self._pillow = _pillow(context)
        height, width = given.size
        self._first = given.layout == "CHW"
        self._shape = (len(given.mode), height, width) if self._first else (height, width, len(given.mode))
        self.outputs = {"pixels": f"FP32[{','.join(map(str, self._shape))}]"}

    def run(self, tensors: Mapping[str, Array]) -> Mapping[str, Any]:
        """Decode image after image, outside the GIL; one at a time is in memory at its full size.

        Raises:
            InvalidRequest: an image cannot be decoded or has too many pixels.
        """
        given, images = self._given, tensors["image"][:, 0]
        height, width = given.size
        pixels = np.empty((len(images), *self._shape), np.float32)
        channels_last = np.moveaxis(pixels, 1, -1) if self._first else pixels
        for row, data in enumerate(images):
            image = self._pillow.decoded(data, row, given.mode, given.most_pixels)
            image = self._pillow.resized(image, (width, height), given.fit, given.resample)
            channels_last[row] = np.asarray(image).reshape(height, width, -1)
        pixels /= np.float32(given.scale)
        if given.mean is not None:
            pixels -= self._channels(given.mean)
        if given.std is not None:
            pixels /= self._channels(given.std)
        return {"pixels": pixels}

    def _channels(self, values: list[float]) -> NDArray[np.float32]:
        return np.array(values, np.float32).reshape((-1, 1, 1) if self._first else -1)


class Decode:
    """`image` BYTES[1], an encoded file, to `pixels` UINT8[-1,-1,3]: height, width, RGB, upright, each row of its own size.

    All images of a batch are in memory at their full size.
    """

    inputs: Mapping[str, str] = {"image": "BYTES[1]"}
    outputs: Mapping[str, str] = {"pixels": "UINT8[-1,-1,3]"}
    rows = RAGGED

    def load(self, context: Context) -> None:
        """Settle how large an image may be."""
        self._most_pixels = parameters(DecodeParameters, context).most_pixels
        self._pillow = _pillow(context)

    def run(self, tensors: Mapping[str, Array]) -> Rows:
        """Decode image after image, outside the GIL.

        Raises:
            InvalidRequest: an image cannot be decoded or has too many pixels.
        """
        images = enumerate(tensors["image"][:, 0])
        return Rows({"pixels": [np.asarray(self._pillow.decoded(data, row, "RGB", self._most_pixels)) for row, data in images]})


def _pillow(context: Context) -> Any:
    try:
        return import_module("headrace.graph.nodes.pillow")
    except ModuleNotFoundError:
        raise missing(context, "pillow") from None
