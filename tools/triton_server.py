"""A real Triton server on this machine, without a container: for measuring beside it, and for testing against it.

The wheel of `nvidia-pytriton` ships the binary `tritonserver` and its Python backend, nothing else: models run as `model.py`. It
is installed into an environment of its own, build/triton/venv, with the same onnxruntime as ours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / "build" / "triton"
PACKAGE = "nvidia-pytriton==0.7.0"
TRITON = "2.51.0"
"""What that package ships."""


@dataclass(frozen=True)
class Start:
    """How to start it: a command, and its environment."""

    command: list[str]
    environment: dict[str, str]


def install() -> Path:
    """Install it where it is not yet; its site-packages.

    Raises:
        CalledProcessError: pip could not.
    """
    environment = HOME / "venv"
    wanted = f"{PACKAGE} onnxruntime=={version('onnxruntime')}"
    stamp = environment / ".installed"
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(environment, ignore_errors=True)
        shutil.rmtree(HOME / "backends", ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        python = environment / "bin" / "python"
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted.split()], check=True)
        stamp.write_text(wanted)
    return environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def start(repository: Path, grpc_port: int, http_port: int) -> Start:
    """How to start it on loopback. It is ready when `GET /v2/health/ready` says 200, after some seconds."""
    packages = install()
    triton = packages / "pytriton" / "tritonserver"
    backend = HOME / "backends" / "python"
    backend.mkdir(parents=True, exist_ok=True)
    stubs = triton / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}"
    for file in (*(triton / "backends" / "python").glob("*.*"), *stubs.iterdir()):
        if not (backend / file.name).exists():
            shutil.copy2(file, backend / file.name)
    options = {
        "model-repository": repository,
        "backend-directory": backend.parent,
        "grpc-address": "127.0.0.1",
        "grpc-port": grpc_port,
        "http-address": "127.0.0.1",
        "http-port": http_port,
        "allow-metrics": "false",
        "allow-gpu-metrics": "false",
        "pinned-memory-pool-byte-size": 0,
    }
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{packages / 'nvidia_pytriton.libs'}"
    # The stub takes the packages of the first interpreter on the path; with those of an environment of ours, it answers nothing.
    path = f"{packages.parents[2] / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "PATH": path}
    environment.pop("PYTHONPATH", None)
    command = [str(triton / "bin" / "tritonserver"), *(f"--{key}={value}" for key, value in options.items())]
    return Start(command, environment)
