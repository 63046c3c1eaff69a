"""Which build of ONNX Runtime is installed.

`onnxruntime` and `onnxruntime-gpu` both ship the module `onnxruntime`. With both installed, whichever came last has
overwritten files of the other, and it imports, or half works; so this is asked of the package records before importing it.
"""

from __future__ import annotations

import os
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from headrace.errors import InvalidRepository

EXTRAS = {"onnxruntime": "cpu", "onnxruntime-gpu": "gpu"}


def onnxruntime_builds() -> dict[str, str]:
    """Version by distribution name, of the two that the extras `cpu` and `gpu` install."""
    found: dict[str, str] = {}
    for name in EXTRAS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_onnxruntime() -> None:
    """Make sure that exactly one build of ONNX Runtime is there.

    Raises:
        InvalidRepository: none is, or two are; the message has the command that mends it.
    """
    builds = onnxruntime_builds()
    if len(builds) > 1:
        told = " and ".join(f"{name} {version}" for name, version in builds.items())
        raise InvalidRepository(
            f"{told} are both installed and overwrite each other's files (the extras cpu and gpu exclude each other); keep one: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'headrace[cpu]', or 'headrace[gpu]'"
        )
    # Vendors build it under other distribution names; those count as long as the module is there.
    if not builds and find_spec("onnxruntime") is None:
        raise InvalidRepository("ONNX Runtime is not installed: pip install 'headrace[cpu]', or 'headrace[gpu]' for NVIDIA GPUs")


def check_tritonclient() -> None:
    """Make sure that Triton's client is there.

    Raises:
        InvalidRepository: it is not; the message has the command that mends it.
    """
    if find_spec("tritonclient") is None or find_spec("tritonclient.grpc") is None:
        raise InvalidRepository("Triton's client is not installed: pip install 'headrace[triton]'")


_NVIDIA = Path("/proc/driver/nvidia/gpus")


def gpu_models(driver: Path = _NVIDIA) -> list[str]:
    """What the NVIDIA GPUs of this machine call themselves, usable or not."""
    models: list[str] = []
    for information in sorted(driver.glob("*/information")):
        try:
            lines = information.read_text(errors="replace").splitlines()
        except OSError:
            continue
        models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return models


def usable_gpus(driver: Path = _NVIDIA) -> int:
    """How many NVIDIA GPUs this process can use: none without the GPU build of ONNX Runtime.

    `CUDA_VISIBLE_DEVICES` counts, as it does for everything that uses CUDA.
    """
    if "onnxruntime-gpu" not in onnxruntime_builds() or not driver.is_dir():
        return 0
    present = len(list(driver.iterdir()))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([index for index in visible.split(",") if index.strip() not in ("", "-1")]))
