"""Images of text to read: a seed is an image."""

from __future__ import annotations

import io
import random

from PIL import Image, ImageDraw, ImageFont

WORDS = [
    *("the", "mill", "wheel", "turns", "water", "leads", "headrace", "sluice", "weir", "gate", "river", "rain", "night", "flour"),
    *("Invoice", "Total", "Date", "Amount", "Street", "Number", "Quantity", "Order", "Customer", "PRICE", "NET", "SUM"),
    *("www.example.org", "info@example.org", "A4", "B-12", "#7", "(copy)", "100%", "&", "Co."),
]
MARGIN = 12


def image_of(seed: int, lines: int) -> bytes:
    """A PNG or JPEG file of so many lines, on tinted paper; many lines in two columns, some images upside down, some on edge."""
    chance = random.Random(seed)
    columns = 1 + (lines > 12)
    width = chance.randint(280, 480) * columns
    # Not too flat: the detector wants 736 pixels of the shorter side, and takes its time for the longer one.
    size = (width, max(width // 2, MARGIN * 2 + -(-lines // columns) * chance.randint(28, 46)))
    paper = tuple(chance.randint(200, 255) for _ in range(3))
    image = Image.new("RGB", size, paper)
    across = (size[0] - MARGIN) // columns
    down = min(60, (size[1] - 2 * MARGIN) // max(1, -(-lines // columns)))
    for line in range(lines):
        at = MARGIN + across * (line % columns), MARGIN + down * (line // columns)
        _write(image, chance, at, across - MARGIN)
    if seed % 5 == 3:
        image = image.rotate(180)
    if seed % 7 == 5:
        image = image.rotate(90, expand=True)
    file = io.BytesIO()
    image.save(file, *(("JPEG",) if seed % 3 == 2 else ("PNG",)))
    return file.getvalue()


def _write(image: Image.Image, chance: random.Random, at: tuple[int, int], room: int) -> None:
    """One line, at most `room` pixels wide."""
    font = ImageFont.load_default(size=chance.randint(13, 26))
    ink = tuple(chance.randint(0, 90) for _ in range(3))
    words, most = [_word(chance)], chance.choice((1, 2, 2, 3, 7))
    while len(words) < most and font.getlength(" ".join([*words, longer := _word(chance)])) < room:
        words.append(longer)
    ImageDraw.Draw(image).text(at, " ".join(words), ink, font)


def _word(chance: random.Random) -> str:
    return chance.choice(
        (chance.choice(WORDS), chance.choice(WORDS), f"{chance.randint(0, 99999)}", f"{chance.uniform(0, 999):.2f}")
    )
