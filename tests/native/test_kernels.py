"""The kernels as a package: found, refused, described."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import headrace_kernels
import pytest

from headrace.errors import InvalidRepository, KernelsUnusable
from headrace.transport.native import NativeTransport
from headrace.transport.ways import chosen_transport
from headrace.version import __version__

ROOT = Path(__file__).parent.parent.parent
REMEDY = f"pip install headrace-kernels=={__version__}"


def test_versions_are_the_same() -> None:
    workspace = tomllib.loads((ROOT / "kernels/Cargo.toml").read_text())["workspace"]
    assert workspace["package"]["version"] == headrace_kernels.__version__ == __version__


def test_auto_prefers_them() -> None:
    assert (chosen_transport("auto"), chosen_transport("portable")) == ("native", "portable")


def test_another_version_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headrace_kernels, "__version__", "0.0.9")
    for wanted in ("auto", "native"):
        with pytest.raises(KernelsUnusable) as caught:
            chosen_transport(wanted)
        assert f"needs headrace-kernels {__version__}, and 0.0.9 is installed" in caught.value.message
        assert REMEDY in caught.value.message
    assert chosen_transport("portable") == "portable"


@pytest.mark.parametrize("program", [f"import headrace.{part}.native" for part in ("scheduling", "transport", "backends.triton")])
def test_another_version_is_refused_at_import(program: str, tmp_path: Path) -> None:
    (tmp_path / "headrace_kernels.py").write_text("__version__ = '0.0.9'\n")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {program}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert REMEDY in done.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "is not installed"), ("raise ImportError('wrong ELF class')", "does not load (wrong ELF class)")],
)
def test_missing_or_broken_ones(content: str | None, told: str, tmp_path: Path) -> None:
    """As `headrace serve` tells it: a line, exit status 2; without them, auto does without."""
    if content is not None:
        (tmp_path / "headrace_kernels.py").write_text(content)
    hide = f"sys.path.insert(0, {str(tmp_path)!r}); sys.path[:] = [p for p in sys.path if 'kernels' not in p]"
    program = f"import sys; {hide}; sys.argv = ['headrace', 'serve', '--repository', {str(tmp_path)!r}, '--transport', 'native']"
    command = [sys.executable, "-c", f"{program}; from headrace.cli.app import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert told in done.stderr
    assert "--transport portable" in done.stderr


def test_the_stub_is_what_the_module_is() -> None:
    command = [sys.executable, "-m", "mypy.stubtest", "headrace_kernels", "--ignore-missing-stub", "--concise"]
    command += ["--ignore-unused-allowlist", "--allowlist", str(ROOT / "tests/native/stubtest-allow.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT / "kernels/py/python")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_pattern_that_only_python_knows() -> None:
    with pytest.raises(InvalidRepository, match=r"is none that the native transport understands \(.*\); use a plainer one"):
        NativeTransport("127.0.0.1:0", header_forward_pattern="(?<=x)tenant")


def test_closing_a_transport_that_was_not_started() -> None:
    NativeTransport("127.0.0.1:0").close(0)
