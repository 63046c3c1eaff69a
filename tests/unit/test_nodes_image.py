"""Encoded images to pixels, against Pillow and numpy used plainly; and what hostile or broken bytes are answered."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from headrace.errors import InvalidRequest
from headrace.node import Rows
from tests.unit.nodes import column, loaded, ran

PICTURE = np.random.default_rng(3).integers(0, 256, (12, 20, 3), np.uint8)
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}}
KNOWN = "JPEG, PNG, WEBP, GIF, BMP"


def encoded(picture: Image.Image | np.ndarray[Any, Any], form: str = "PNG", **options: Any) -> bytes:
    written = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(written, form, **options)
    return written.getvalue()


def png(width: int, height: int, bits: int, colour: int, data: bytes) -> bytes:
    """A PNG by hand; `data` is what would be compressed."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def decoded(data: bytes, **parameters: Any) -> np.ndarray[Any, Any]:
    made = loaded("decode", **parameters).run({"image": column(data)})
    assert isinstance(made, Rows)
    assert made.counts is None
    (pixels,) = made.tensors["pixels"]
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    return pixels


@pytest.mark.parametrize("form", LOSSLESS)
def test_what_was_written_is_read(form: str) -> None:
    np.testing.assert_array_equal(decoded(encoded(PICTURE, form, **LOSSLESS[form])), PICTURE)


def test_rows_keep_their_sizes() -> None:
    made = loaded("decode").run({"image": column(encoded(PICTURE), encoded(PICTURE[:5, :7], "JPEG"))})
    assert isinstance(made, Rows)
    assert [pixels.shape for pixels in made.tensors["pixels"]] == [(12, 20, 3), (5, 7, 3)]


def test_grey_and_alpha_and_palettes() -> None:
    grey = PICTURE[..., 0]
    in_three = np.repeat(grey[..., np.newaxis], 3, -1)
    np.testing.assert_array_equal(decoded(encoded(grey)), in_three)
    np.testing.assert_array_equal(decoded(encoded(np.stack([grey, grey // 2], -1))), in_three)
    np.testing.assert_array_equal(decoded(encoded(np.dstack([PICTURE, grey]))), PICTURE)
    indexed = Image.fromarray(PICTURE).quantize(16)
    colours = np.asarray(indexed.convert("RGB"))
    np.testing.assert_array_equal(decoded(encoded(indexed)), colours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transparent = encoded(indexed, transparency=bytes(range(16)))
    np.testing.assert_array_equal(decoded(transparent), colours)
    black_and_white = Image.fromarray(grey > 127)
    np.testing.assert_array_equal(decoded(encoded(black_and_white)), (in_three > 127) * np.uint8(255))
    assert decoded(encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG")).shape == PICTURE.shape


def test_sixteen_bits_keep_the_upper_eight() -> None:
    deep = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], np.uint16)
    wanted = np.repeat((deep >> 8).astype(np.uint8)[..., np.newaxis], 3, -1)
    np.testing.assert_array_equal(decoded(encoded(deep)), wanted)
    lines = b"".join(b"\0" + np.repeat(line[:, np.newaxis], 3, -1).astype(">u2").tobytes() for line in deep)
    np.testing.assert_array_equal(decoded(png(4, 2, 16, 2, lines)), wanted)


def test_the_first_frame_of_a_moving_picture() -> None:
    frames = [Image.fromarray(np.full((4, 6, 3), value, np.uint8)) for value in (0, 128, 255)]
    for form, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        moving = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decoded(moving), np.zeros((4, 6, 3)))


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_cameras_that_were_held_otherwise(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(PICTURE, form, exif=exif, **LOSSLESS.get(form, {}))
    plain = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"))
    assert plain.shape == PICTURE.shape
    np.testing.assert_array_equal(decoded(stored), UPRIGHT[orientation](plain))
    assert ran(loaded("image", size=[3, 4]), {"image": column(stored)})["pixels"].shape == (1, 3, 3, 4)


def test_a_camera_that_writes_nonsense_about_itself() -> None:
    picture = encoded(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\5\0\x12\1\3\0")
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        assert decoded(picture).shape == PICTURE.shape


RESAMPLED = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}
FITTED = {
    "stretch": lambda image, method: image.resize((9, 7), method),
    "crop": lambda image, method: ImageOps.fit(image, (9, 7), method),
    "pad": lambda image, method: ImageOps.pad(image, (9, 7), method),
}


@pytest.mark.parametrize("resample", RESAMPLED)
@pytest.mark.parametrize("fit", FITTED)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_resized_and_normalised(fit: str, resample: str, mode: str) -> None:
    mean, std = [0.485, 0.456, 0.406][: len(mode)], [0.229, 0.224, 0.225][: len(mode)]
    given: dict[str, Any] = dict(size=[7, 9], mode=mode, fit=fit, resample=resample, mean=mean, std=std)
    pictures = (PICTURE, PICTURE.swapaxes(0, 1), PICTURE[:, :, 0])
    rows = column(*(encoded(np.ascontiguousarray(picture)) for picture in pictures))
    plain = [FITTED[fit](Image.fromarray(np.ascontiguousarray(p)).convert(mode), RESAMPLED[resample]) for p in pictures]
    values = np.stack([np.asarray(image, np.float32).reshape(7, 9, len(mode)) for image in plain])
    wanted = (values / np.float32(255) - np.float32(mean)) / np.float32(std)

    last = ran(loaded("image", layout="HWC", **given), {"image": rows})["pixels"]
    np.testing.assert_array_equal(last, wanted)
    first = ran(loaded("image", **given), {"image": rows})["pixels"]
    np.testing.assert_array_equal(first, wanted.transpose(0, 3, 1, 2))
    assert first.flags.c_contiguous


def test_padding_is_black_and_cropping_cuts() -> None:
    white = encoded(np.full((10, 40, 3), 255, np.uint8))
    padded = ran(loaded("image", size=[8, 8], fit="pad"), {"image": column(white)})["pixels"]
    np.testing.assert_array_equal(padded[0, 0].max(1), [0, 0, 0, 1, 1, 0, 0, 0])
    cropped = ran(loaded("image", size=[8, 8], fit="crop", scale=1), {"image": column(white)})["pixels"]
    np.testing.assert_array_equal(cropped, np.full((1, 3, 8, 8), 255))


@pytest.mark.parametrize("fit", FITTED)
def test_a_line_fits_too(fit: str) -> None:
    line = encoded(np.full((1, 5000, 3), 255, np.uint8))
    assert ran(loaded("image", size=[4, 4], fit=fit), {"image": column(line)})["pixels"].shape == (1, 3, 4, 4)


def refused(node: Any, *rows: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        node.run({"image": column(*rows)})
    return str(caught.value)


def test_more_pixels_than_allowed_are_not_decoded() -> None:
    """The bytes behind the header are no image at all, so that decoding them would be another error."""
    limit, before = Image.MAX_IMAGE_PIXELS, encoded(PICTURE)
    for width, height in ((50_000, 50_000), (10_000, 10_000), (8_001, 8_000)):
        bomb = png(width, height, 8, 2, b"")
        assert len(bomb) < 100
        for node in (loaded("image", size=[2, 2]), loaded("decode")):
            wanted = f"row 1 of 'image' has {width} x {height} pixels, and at most 64000000 are allowed; send a smaller one"
            assert refused(node, before, bomb) == wanted
    assert limit == Image.MAX_IMAGE_PIXELS


def test_how_many_pixels_are_allowed_can_be_told() -> None:
    assert decoded(encoded(PICTURE), most_pixels=240).shape == PICTURE.shape
    assert "20 x 12 pixels, and at most 239" in refused(loaded("decode", most_pixels=239), encoded(PICTURE))
    # More than Pillow allows by itself: what stops this one is that there is nothing behind its header.
    hollow = png(200_000_000, 1, 1, 0, b"")
    assert refused(loaded("decode", most_pixels=10**9), hollow).startswith(
        "row 0 of 'image' cannot be decoded: image file is trunc"
    )


def test_a_frame_that_is_larger_than_its_screen() -> None:
    gif = bytearray(encoded(Image.new("P", (4, 4)), "GIF"))
    at = gif.index(b"\x2c\0\0\0\0\4\0\4\0")
    gif[at + 5 : at + 9] = struct.pack("<HH", 50_000, 50_000)
    assert "row 0 of 'image'" in refused(loaded("decode"), bytes(gif))


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"hello", b"<svg/>", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF89a"]
)
def test_what_is_no_image(data: bytes) -> None:
    message = refused(loaded("image", size=[2, 2]), data)
    assert message == f"row 0 of 'image', {len(data)} bytes, is no image of a known format; send one of {KNOWN}"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_what_is_cut_off_or_flipped(form: str) -> None:
    whole = encoded(PICTURE, form)
    node = loaded("decode")
    assert "row 0 of 'image'" in refused(node, whole[: len(whole) // 2])
    random = np.random.default_rng(5)
    for cut in range(0, len(whole) - 64, 7):
        assert "row 0 of 'image'" in refused(node, whole[:cut])
    for _ in range(300):
        # Whatever becomes of it, an image or a refusal, but no other error.
        broken = bytearray(whole)
        broken[random.integers(len(broken))] ^= 1 << random.integers(8)
        try:
            node.run({"image": column(bytes(broken))})
        except InvalidRequest as error:
            assert "row 0 of 'image'" in str(error)


@pytest.mark.parametrize("form", ["TIFF", "PPM", "ICO"])
def test_formats_that_nobody_sends(form: str) -> None:
    assert f"is no image of a known format; send one of {KNOWN}" in refused(loaded("decode"), encoded(PICTURE, form))
