"""The graph `ocr`, which reads the text in images, and its three models: `python -m demo.ocr REPOSITORY` puts them there."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime

from demo.repository import add_configuration, add_model, write_missing
from tools.fetch_models import fetch

MODELS = {
    "ocr_detect": "ch_PP-OCRv4_det_infer.onnx",
    "ocr_orient": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "ocr_recognise": "ch_PP-OCRv4_rec_infer.onnx",
}


def build_repository(repository: Path) -> None:
    """Put the graph and its models into `repository`; what is there already stays as it is."""
    home = fetch("rapidocr-onnxruntime")
    for name, file in MODELS.items():
        add_model(repository, name, home / file)
    add_configuration(repository, "ocr")
    write_missing(repository / "ocr/characters.txt", characters(home / MODELS["ocr_recognise"]).encode())


def characters(model: Path) -> str:
    """What the recognition model can read, a character a line; the model carries them itself."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map["character"]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("name the repository: python -m demo.ocr REPOSITORY")
    build_repository(Path(sys.argv[1]))
