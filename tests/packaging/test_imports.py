"""What importing costs, and that the rules about imports can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("onnxruntime", "grpc", "ray", "torch", "tritonclient", "rich", "yaml", "pydantic")


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import headrace", ()),
        ("from headrace import Engine", ()),
        ("import headrace.config", ("pydantic", "yaml")),
        ("import headrace.cli.serve", ("pydantic", "yaml")),
    ],
)
def test_importing_brings_nothing_heavy(statement: str, allowed: tuple[str, ...]) -> None:
    program = f"import sys; {statement}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= set(allowed)


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("errors.py", "import headrace.engine", "imports point down"),
        ("scheduling/plan.py", "import headrace.transport", "imports point down"),
        ("models/spec.py", "import headrace.scheduling.plan", "imports point down"),
        ("engine/engine.py", "import ray", "nobody imports ray"),
        ("transport/portable.py", "import tritonclient", "no server code imports the client"),
        ("engine/engine.py", "import onnxruntime", "onnxruntime only in its backend"),
        ("cli/serve.py", "import grpc", "grpc only in the portable transport"),
    ],
)
def test_the_import_rules_can_fail(tmp_path: Path, module: str, statement: str, contract: str) -> None:
    shutil.copytree(ROOT / "runtime", tmp_path / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "runtime/headrace" / module).open("a") as file:
        file.write(f"\n{statement}\n")
    program = "import sys; sys.path.insert(0, 'runtime'); from importlinter.cli import lint_imports_command as run; run()"
    command = [sys.executable, "-c", program, "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    broken = [line for line in done.stdout.splitlines() if line.rstrip().endswith("BROKEN")]
    assert any(line.startswith(contract) for line in broken), done.stdout
