"""Say whether the generated protocol modules are those that their .proto files give; exit 1 where they are not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOCOL = Path("runtime/headrace/protocol")


def stale() -> list[str]:
    """Names of generated files that differ from what the generator writes now."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        shutil.copytree(ROOT / PROTOCOL, copy / PROTOCOL, ignore=shutil.ignore_patterns("*_pb2*", "__pycache__"))
        (copy / "tools").mkdir()
        tool = shutil.copy(ROOT / "tools/generate_protocol.py", copy / "tools")
        subprocess.run([sys.executable, tool], check=True)
        made = {path.name: path.read_bytes() for path in (copy / PROTOCOL).glob("*_pb2*")}
    kept = {path.name: path.read_bytes() for path in (ROOT / PROTOCOL).glob("*_pb2*")}
    return sorted(name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))


if __name__ == "__main__":
    if names := stale():
        sys.exit(f"{', '.join(names)} in {PROTOCOL}: not what the .proto files give; run `make protocol`")
