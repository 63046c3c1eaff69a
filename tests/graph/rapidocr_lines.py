"""`python rapidocr_lines.py PACKAGE IMAGES ANSWER.json`: what rapidocr-onnxruntime itself reads in the image files of a folder.

A process of its own, so that nothing of Headrace can have a part in what it is judged by, nor the package in Headrace's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(package: Path, images: Path, answer: Path) -> None:
    """Write {file name: [[box, text, score], …]}; `package` is where the wheel is unpacked."""
    sys.path.insert(0, str(package))
    from rapidocr_onnxruntime import RapidOCR  # pyright: ignore[reportMissingImports]

    engine = RapidOCR()
    answer.write_text(json.dumps({file.name: engine(file.read_bytes())[0] or [] for file in sorted(images.iterdir())}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
