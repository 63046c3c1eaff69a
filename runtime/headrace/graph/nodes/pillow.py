"""Encoded images to pixels. The only place that imports Pillow, which the extra `nodes` brings."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from headrace.errors import InvalidRequest

FORMATS: Sequence[type[ImageFile.ImageFile]] = (JpegImageFile, PngImageFile, WebPImageFile, GifImageFile, BmpImageFile)
"""What cameras and browsers send. Pillow knows dozens more, and each is code that reads what strangers wrote."""


def decoded(data: bytes, row: int, mode: str, most_pixels: int) -> Image.Image:
    """An image as one sees it: upright, its first frame, 8 bits a channel, without alpha; `mode` is RGB or L.

    `row` is for the message.

    Raises:
        InvalidRequest: it cannot be decoded, or its header says that it has more than `most_pixels`.
    """
    try:
        image = _opened(data)
        if image is not None and image.width * image.height <= most_pixels:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _converted(image, mode)
    except MemoryError:
        raise
    except Exception as error:
        # Whatever a decoder stumbles over, the bytes are the client's; and there is hardly a class that none of them raises.
        raise InvalidRequest(f"row {row} of 'image' cannot be decoded: {error}") from None
    if image is None:
        known = ", ".join(str(kind.format) for kind in FORMATS)
        raise InvalidRequest(f"row {row} of 'image', {len(data)} bytes, is no image of a known format; send one of {known}")
    raise InvalidRequest(
        f"row {row} of 'image' has {image.width} x {image.height} pixels, and at most {most_pixels} are allowed; "
        "send a smaller one"
    )


def resized(image: Image.Image, size: tuple[int, int], fit: str, resample: str) -> Image.Image:
    """An image of `size` (width, height), as Pillow's `resize`, `ImageOps.fit` (`crop`) and `ImageOps.pad` (in black) make it."""
    method = Image.Resampling[resample.upper()]
    if fit == "crop":
        return ImageOps.fit(image, size, method)
    if fit == "pad":
        return ImageOps.pad(image, size, method, color=0)
    return image.resize(size, method)


def _opened(data: bytes) -> ImageFile.ImageFile | None:
    # Reads no more than the header. Not Image.open: it tries every format there is, and minds a limit that is the process's.
    for kind in FORMATS:
        try:
            return kind(io.BytesIO(data))
        except SyntaxError:  # of another format
            continue
    return None


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits of grey. Of 16 bits of colour Pillow keeps the upper byte; here it is left to us.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "P":
        # Alpha of a palette is otherwise something to warn about.
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)
