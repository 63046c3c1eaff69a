"""A real trace viewer on this machine, Arize Phoenix, to be shown traces by a test: somebody else's reading of them.

It is installed into an environment of its own, build/phoenix/venv, when it is first used: it has many packages, and none is ours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / "build" / "phoenix"
PACKAGE = "arize-phoenix==20.26.1"


def install() -> Path:
    """Install it where it is not yet; its command.

    Raises:
        CalledProcessError: pip could not.
    """
    environment = HOME / "venv"
    stamp = environment / ".installed"
    if not stamp.is_file() or stamp.read_text() != PACKAGE:
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", PACKAGE], check=True)
        stamp.write_text(PACKAGE)
    return environment / "bin" / "phoenix"


def start(directory: Path, http_port: int, grpc_port: int) -> subprocess.Popen[bytes]:
    """Start it on loopback, with its database in `directory`; it answers HTTP after some seconds."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHON"))},
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(http_port),
        "PHOENIX_GRPC_PORT": str(grpc_port),
        "PHOENIX_WORKING_DIR": str(directory),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    with (directory / "phoenix.log").open("wb") as log:
        return subprocess.Popen([str(install()), "serve"], env=environment, stdout=log, stderr=log)
