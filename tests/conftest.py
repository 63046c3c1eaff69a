"""Parts: with `--parts`, the run fails when a part of the suite did not really run.

A suite can be green because half of it was skipped or never collected. So every test belongs to a part (its directory; for
tests with a parameter `transport`, directory and transport; or what `@pytest.mark.part` says), parts.toml says how many tests
of each part must have run at least, and no test may skip but those marked `gpu` or `docker`.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MAY_SKIP = ("gpu", "docker")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parts", action="store_true", help="fail when fewer tests ran than tests/parts.toml says")
    parser.addoption("--without-kernels", action="store_true", help="on a machine without cargo: the native parts are left out")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--parts"):
        least = tomllib.loads((TESTS / "parts.toml").read_text())
        if config.getoption("--without-kernels"):
            least = {part: count for part, count in least.items() if not part.endswith("native")}
        config.pluginmanager.register(Parts(least))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What servers under test measure, and what they keep in memory, is none of this user's business, nor the other way round."""
    os.environ["HEADRACE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    with tempfile.TemporaryDirectory(prefix="headrace.tests.", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as memory:
        os.environ["HEADRACE_RUNTIME_DIR"] = memory
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test has logged may be no text, and with several processes it has to go from one to another."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def part_of(item: pytest.Item) -> str:
    if marker := item.get_closest_marker("part"):
        return marker.args[0]
    directory = item.path.relative_to(TESTS).parts[0]
    parameters = getattr(item, "callspec", None)
    transport = parameters.params.get("transport") if parameters else None
    return f"{directory}-{transport}" if isinstance(transport, str) else directory


class Parts:
    def __init__(self, least: dict[str, int]) -> None:
        self.least = least
        self.ran: Counter[str] = Counter()
        self.skipped: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Where the test runs, which with several processes is not where they are counted."""
        report = yield
        report.part = part_of(item)
        report.may_skip = any(item.get_closest_marker(name) for name in MAY_SKIP)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            if not report.may_skip:
                self.skipped.append(report.nodeid)
        elif report.when == "call":
            self.ran[report.part] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)

    def problems(self) -> list[str]:
        missing = [
            f"part {part}: {self.ran[part]} tests ran, at least {least} must"
            for part, least in self.least.items()
            if self.ran[part] < least
        ]
        unlisted = [f"part {part} is not in tests/parts.toml" for part in self.ran if part not in self.least]
        return missing + unlisted + [f"skipped, and neither gpu nor docker: {name}" for name in self.skipped]

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.OK and not hasattr(session.config, "workerinput") and self.problems():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for problem in self.problems():
            terminalreporter.write_line(problem, red=True)
        counts = ", ".join(f"{part} {self.ran[part]}" for part in sorted(self.ran))
        terminalreporter.write_line(f"parts: {counts}")
