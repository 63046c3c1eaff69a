"""Every example of the README works, in the order in which it stands there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace import kernels
from tools.ports import free_port

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^<!-- test( with kernels)? -->\n```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


WAYS = {"grpc": "8001", "http": "8000", "metrics": "8002"}


@dataclass
class Reader:
    """Somebody who types what the README says; port 8001 may be taken here, so a free one stands for it."""

    ports: dict[str, int]
    """Free ones, by those in the text."""
    memory: str
    """Where its servers keep what other processes read: those of other tests are none of its business."""
    servers: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "COLUMNS": "160", "HEADRACE_RUNTIME_DIR": self.memory}

    def follow(self, language: str, text: str) -> None:
        for shown, free in self.ports.items():
            text = text.replace(f"127.0.0.1:{shown}", f"127.0.0.1:{free}")
        if language == "python":
            self.run([sys.executable, "-c", text])
            return
        for example in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, shown = example.partition("\n")
            command = {"make run": f"{sys.executable} -m demo"}.get(command, command)  # test_install.py does it in a clone
            told = self.serve(command) if command.endswith("&") else self.run(["sh", "-c", command])
            assert re.search(pattern(shown), told, re.MULTILINE), f"{command}\n{told}"

    def run(self, command: list[str]) -> str:
        done = subprocess.run(command, cwd=ROOT, env=self.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def serve(self, command: str) -> str:
        where = " ".join(f"--{way} 127.0.0.1:{self.ports[port]}" for way, port in WAYS.items())
        command = f"exec {command.rstrip(' &')} {where} --drain-grace 0"
        server = subprocess.Popen(command, shell=True, cwd=ROOT, env=self.environment(), stdout=subprocess.PIPE, text=True)
        self.servers.append(server)
        assert server.stdout is not None
        return server.stdout.readline()


def pattern(shown: str) -> str:
    """A regular expression for output: `...` is anything, and runs of blanks are as wide as they are."""
    parts = (r"\s+".join(map(re.escape, part.split())) for part in shown.strip().split("..."))
    return r"(?:.|\n)*?".join(parts)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    first = free_port(following=len(WAYS) - 1)
    reader = Reader({way: first + place for place, way in enumerate(WAYS.values())}, str(tmp_path))
    yield reader
    for server in reader.servers:
        server.send_signal(signal.SIGTERM)
        server.communicate()
        assert server.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_examples_work(reader: Reader) -> None:
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    assert len(blocks) >= 6
    for needs_kernels, language, text in blocks:
        if kernels.are_installed() or not needs_kernels:
            reader.follow(language, text)


def test_every_example_is_tested() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(re.findall(r"^```(?:console|python)$", text, re.MULTILINE)) == len(BLOCK.findall(text))


def test_the_options_are_those_of_the_command() -> None:
    table = set(re.findall(r"`(--[a-z-]+)[` ]", (ROOT / "README.md").read_text().partition("| option |")[2].partition("\n\n")[0]))
    command = [sys.executable, "-m", "headrace", "serve", "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"(?<!\S)(--[a-z-]+)", told.partition("Options:")[2]))
    assert table == options - {"--help", "--config", "--no-strict-readiness", "--no-probe"}


def test_its_links_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name} links to {target}"
