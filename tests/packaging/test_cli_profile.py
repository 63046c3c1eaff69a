"""`headrace models --profile` as people meet it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from headrace.cli.profile import Measured, print_profiles
from headrace.engine.engine import ModelStatus
from headrace.engine.profile import Calls, Point, Profile
from headrace.errors import InvalidLoad
from headrace.load.plots import check_plots
from headrace.model import State
from tests.build_models import add_model, mlp
from tests.command_line import refusal
from tests.waiting import until

HEADRACE = [sys.executable, "-m", "headrace"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "profiles"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    # With a count, so that what is measured cannot make another configuration of it.
    add_model(models, "good", mlp(), "max_batch_size: 4 instance_group { count: 1 }")
    add_model(models, "bad", None, "max_bach_size: 4")
    return models


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HEADRACE, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_models_are_measured_kept_and_shown(repository: Path, cache: Path, tmp_path: Path) -> None:
    done = run("models", "-r", repository, "--profile", "--svg", tmp_path / "plot.svg")
    assert done.returncode == 1, "one is broken"
    assert re.search(r"^good 1 [0-9a-f]{12}\n rows .*rows/s.*\n    1 .*\n    2 .*\n    4 ", done.stdout, re.MULTILINE)
    assert done.stdout.count(" best") == 1
    assert re.search(r"^bad is broken: .*max_bach_size", done.stdout, re.MULTILINE)
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")
    (file,) = cache.iterdir()

    done = run("models", "-r", repository, "--profile", "--json", "good")
    assert (done.returncode, done.stderr) == (0, "")
    (record,) = json.loads(done.stdout)
    assert (record["model"], record["version"], record["why"]) == ("good", 1, "")
    assert record["profile"] == json.loads(file.read_bytes()), "and not measured again"

    done = run("models", "-r", repository, "--profile", "--json", "--fresh", "good")
    (anew,) = json.loads(done.stdout)
    assert anew["profile"] == json.loads(file.read_bytes()) != record["profile"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--profile", "absent"], "failed to load 'absent'"),
        (["absent"], "failed to load 'absent'"),
        (["--fresh"], "--fresh and --svg have a meaning with --profile only"),
        (["--profile", "good", "--svg", "/no/such/folder/plot.svg"], "/no/such/folder/plot.svg cannot be written"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    repository: Path, cache: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refusal("models", "-r", repository, *options, capture=capsys).splitlines()[-1]


def test_names_choose_what_is_listed(repository: Path) -> None:
    done = run("models", "-r", repository, "--json", "good")
    assert [record["model"] for record in json.loads(done.stdout)] == ["good"]


def test_a_server_measures_when_idle_unless_told_otherwise(repository: Path, cache: Path) -> None:
    command = [*HEADRACE, "serve", "-r", str(repository), "--grpc=127.0.0.1:0", "--http=none", "--metrics=none"]

    def serve(*options: str) -> None:
        with subprocess.Popen([*command, "--drain-grace=0", *options], stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                assert "models=1/2" in server.stdout.readline()
                until(lambda: len(list(cache.glob("*.json"))) == 1, seconds=30)
            finally:
                server.terminate()
        assert server.returncode == 0

    serve()
    (file,) = cache.iterdir()
    os.utime(file, (0, 0))
    serve("--no-probe")
    assert file.stat().st_mtime == 0, "nobody wanted to know"
    serve()
    assert file.stat().st_mtime > 0


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidLoad, match=r"--svg needs matplotlib: pip install 'headrace\[bench\]'"):
        check_plots("--svg", tmp_path / "plot.svg")


def test_what_is_printed() -> None:
    points = (
        Point(1, 16, 1, (2_000_000,)),
        Point(1, 16, 2, (2_000_000,)),
        Point(1, 16, 4, (8_000_000, 16_000_000, 8_000_000)),
        Point(2, 32, 1, (4_000_000,)),
    )
    console = Console(width=100, record=True, file=io.StringIO())
    print_profiles(
        console,
        [
            Measured("text", 3, "0123456789abcdef", Profile(points, Calls(2, 2, 1000.0, 1400.0)), ""),
            Measured("slow[er]", 1, "d", None, "it has sequences"),
        ],
        [ModelStatus("bad", 1, State.UNAVAILABLE, "no\nfile")],
    )
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    bar = "━" * 32
    assert lines == [
        "text 3 0123456789ab",
        " length  rows  median ms  p95 ms  rows/s",
        f"     16     1      2.000   2.000     500  {bar[:16]}",
        f"     16     2      2.000   2.000   1,000  {bar} best",
        f"     16     4      8.000  16.000     500  {bar[:16]}",
        f"     32     1      4.000   4.000     250  {bar[:8]} best",
        "2 calls on 1 thread each: 1.4x the rows/s of 1 call on 2 threads (1,400 and 1,000, 2 rows a call)",
        "",
        "slow[er] 1 has no profile: it has sequences",
        "",
        "bad is broken: no file",
    ]
