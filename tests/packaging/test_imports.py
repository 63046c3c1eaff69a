"""What importing costs, and that the rules about imports can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAVY = (
    "onnxruntime",
    "grpc",
    "ray",
    "torch",
    "tritonclient",
    "prometheus_client",
    "rich",
    "yaml",
    "pydantic",
    "starlette",
    "matplotlib",
    "opentelemetry",
    "pyarrow",
    "tokenizers",
    "PIL",
)


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import headrace", ()),
        ("from headrace import Engine", ()),
        ("import headrace.config", ("pydantic", "yaml")),
        ("import headrace.graph.nodes", ()),
        ("import headrace.graph.nodes.image, headrace.graph.nodes.tokenizer", ("pydantic",)),
        ("import headrace.cli.serve", ("pydantic", "yaml")),
    ],
)
def test_importing_brings_nothing_heavy(statement: str, allowed: tuple[str, ...]) -> None:
    program = f"import sys; {statement}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= set(allowed)


VIOLATIONS = {
    "imports point down": ("errors", "engine"),
    "policy and backends know nothing of each other": ("models.spec", "scheduling.plan"),
    "ray only in the cluster": ("engine.engine", "ray"),
    "tritonclient only in its backend": ("transport.portable", "tritonclient"),
    "onnxruntime only in its backend": ("engine.routes", "onnxruntime"),
    "prometheus_client only in telemetry": ("transport.metrics", "prometheus_client"),
    "grpc only in transports, in the cluster and in the Triton backend": ("cli.serve", "grpc"),
    "kernels only in the native queue, transport and channel": ("engine.engine", "headrace_kernels"),
    "OpenTelemetry only where spans are made, sent and read": ("telemetry.metrics", "opentelemetry"),
    "matplotlib only in the load generator": ("ledger.views", "matplotlib"),
    "pyarrow and duckdb only where tables are made or asked": ("ledger.ledger", "pyarrow"),
    "the client of OpenLineage only where jobs tell of themselves": ("jobs.job", "openlineage"),
    "obstore only where objects are asked for": ("jobs.job", "obstore"),
    "tokenizers and Pillow only in the built-in nodes": ("engine.instance", "PIL"),
    "starlette and uvicorn only in what speaks HTTP": ("transport.portable", "uvicorn"),
}


def test_the_import_rules_can_fail(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "runtime", tmp_path / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, imported in VIOLATIONS.values():
        own = (tmp_path / "runtime/headrace" / imported.split(".")[0]).exists()
        with (tmp_path / "runtime/headrace" / f"{module.replace('.', '/')}.py").open("a") as file:
            file.write(f"\nimport {'headrace.' if own else ''}{imported}\n")

    program = "import sys; sys.path.insert(0, 'runtime'); from importlinter.cli import lint_imports_command as run; run()"
    command = [sys.executable, "-c", program, "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    broken = {line.removesuffix(" BROKEN") for line in done.stdout.splitlines() if line.endswith(" BROKEN")}
    assert broken == set(VIOLATIONS), done.stdout
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["name"] for contract in contracts} == set(VIOLATIONS)
