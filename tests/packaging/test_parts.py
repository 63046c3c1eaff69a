"""The parts check must itself be able to fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent.parent / "conftest.py"

RUNS = "def test_one(): pass\n"
SKIPS = "import pytest\ndef test_one(): pytest.skip('no reason')\n"
SKIPS_WITHOUT_GPU = "import pytest\n@pytest.mark.gpu\ndef test_one(): pytest.skip('no GPU')\n"
SKIPS_WHOLLY = "import pytest\npytest.skip('all of it', allow_module_level=True)\n"
BY_TRANSPORT = "import pytest\n@pytest.mark.parametrize('transport', ['portable', 'native'])\ndef test_one(transport): pass\n"
MARKED = "import pytest\n@pytest.mark.part('other')\ndef test_one(): pass\n"


@pytest.mark.parametrize(
    ("test", "parts", "problem"),
    [
        (RUNS, "unit = 1", None),
        (RUNS, "unit = 2", "part unit: 1 tests ran, at least 2 must"),
        (RUNS, "unit = 1\nengine = 1", "part engine: 0 tests ran, at least 1 must"),
        (RUNS, "", "part unit is not in tests/parts.toml"),
        (SKIPS, "", "skipped, and neither gpu nor docker: tests/unit/test_unit.py::test_one"),
        (SKIPS_WITHOUT_GPU, "", None),
        (SKIPS_WHOLLY, "", "skipped, and neither gpu nor docker: tests/unit/test_unit.py"),
        (BY_TRANSPORT, "unit-portable = 1\nunit-native = 1", None),
        (BY_TRANSPORT, "unit-portable = 1\nunit-native = 2", "part unit-native: 1 tests ran, at least 2 must"),
        (MARKED, "other = 1", None),
    ],
)
def test_a_part_that_did_not_run_fails_the_session(tmp_path: Path, test: str, parts: str, problem: str | None) -> None:
    for part, text in (("unit", test), ("more", RUNS)):  # `more` runs even where the test at hand skips
        (tmp_path / "tests" / part).mkdir(parents=True)
        (tmp_path / "tests" / part / f"test_{part}.py").write_text(text)
    shutil.copy(CONFTEST, tmp_path / "tests")
    (tmp_path / "tests/parts.toml").write_text(f"more = 1\n{parts}\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  gpu\n  part\n")

    command = [sys.executable, "-m", "pytest", "-q", "--parts", "-p", "no:cacheprovider", "tests"]
    bare = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # starts in half the time
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, check=False)

    assert done.returncode == (1 if problem else 0), done.stdout
    assert (problem or "parts: ") in done.stdout
