"""`headrace bench load` against real servers, as people use it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tritonclient.grpc as triton
from pyarrow import feather

from headrace.backends.fake import Gate, Script
from headrace.ledger.records import Outcome
from tests.build_models import add_model
from tests.command_line import refusal
from tests.transport.serving import ECHO, PATIENCE, Server, fill, serving
from tests.transport.test_drain import Process, process, slow
from tests.waiting import until

WIDE = ECHO.replace("dims: -1", "dims: 4")


def bench(*options: object, status: int | None = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", "bench", "load", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE * 2)
    assert done.returncode == status or status is None, done.stderr
    return done


def load(address: str, *options: object, seconds: float = 0.6, status: int | None = 0) -> dict[str, Any]:
    given = ("--target", address, "--model", "m", "--seconds", seconds, "--warm-up", 0.1, "--json")
    return json.loads(bench(*given, *options, status=status).stdout)


@contextmanager
def loading(address: str, *options: object) -> Iterator[subprocess.Popen[str]]:
    """A load that goes on until it is interrupted."""
    command = [sys.executable, "-m", "headrace", "bench", "load", "--target", address, "--model", "m", "--json"]
    command += ["--seconds", "600", "--warm-up", "0", *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def await_answers(address: str, count: int) -> None:
    with triton.InferenceServerClient(address) as client:
        until(lambda: client.get_inference_statistics("m").model_stats[0].inference_count >= count)


@pytest.fixture(params=["native", "portable"])
def kind(request: pytest.FixtureRequest) -> str:
    """Any V2 server will do: these two have nothing in common on the wire."""
    return request.param


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def server(kind: str, script: Script, tmp_path: Path) -> Iterator[Server]:
    # What is foretold would be refused: here the server is to be asked in vain.
    open_door = WIDE + 'parameters { key: "admission" value { string_value: "open" } }'
    fake = fill(tmp_path, {"m": (open_door, script)})
    with serving(kind, tmp_path, {"fake": fake}) as started:
        yield started


def test_a_closed_loop_asks_what_the_server_counts(server: Server) -> None:
    told = load(server.address, "--concurrency", 4, "--channels", 2)
    server.wait_settled("m")
    assert (told["loop"], told["errors"]) == ("closed", {})
    assert told["answered"] == told["requests"] > 50
    # Beyond what counts, there was a warm-up.
    ledger = server.ledger("m")
    assert ledger[Outcome.ANSWERED] > told["answered"]
    assert sum(ledger.values()) == ledger[Outcome.ANSWERED]
    latency = told["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]


def test_an_open_loop_offers_its_rate(server: Server) -> None:
    told = load(server.address, "--rate", 200, "--objective", "5s", seconds=1)
    assert told["loop"] == "open"
    assert told["offered_per_second"] == pytest.approx(200, rel=0.3)
    assert told["answered"] == told["requests"]
    assert told["goodput_per_second"] == told["rate_per_second"]
    assert told["generator"]["cores"] > 0


def test_a_stall_is_seen(tmp_path: Path) -> None:
    """No coordinated omission: those who were due while nobody answered waited for as long as that."""
    add_model(tmp_path, "m", None, WIDE)
    with process(tmp_path, "native") as server, loading(server.address, "--rate", 200) as running:
        await_answers(server.address, 300)
        os.kill(server.pid, signal.SIGSTOP)
        time.sleep(0.5)  # which is the stall
        os.kill(server.pid, signal.SIGCONT)
        await_answers(server.address, 600)
        running.send_signal(signal.SIGINT)
        told = json.loads(running.communicate(timeout=PATIENCE)[0])
    # In a closed loop one client would have seen it, once.
    assert told["latency_ms"]["p99"] > 250
    assert told["latency_ms"]["p50"] < 250
    assert told["answered"] == told["requests"]


def test_errors_are_counted_by_code(server: Server, script: Script) -> None:
    def fail(batch: object) -> None:
        raise RuntimeError("no")

    script.fail = fail
    told = load(server.address, "--concurrency", 2, status=1)
    assert told["errors"] == {"INTERNAL": told["requests"]}
    assert (told["answered"], told["rate_per_second"], told["latency_ms"]["max"]) == (0, 0.0, None)
    assert "nothing was answered" in told["doubts"]


def test_deadlines_end_requests_on_both_sides(server: Server, script: Script) -> None:
    script.gate = gate = Gate()
    told = load(server.address, "--rate", 100, "--deadline", "50ms", seconds=0.5, status=1)
    assert told["errors"] == {"DEADLINE_EXCEEDED": told["requests"]}
    gate.open()
    server.wait_settled("m")
    ledger = server.ledger("m")
    # The server was told of the deadline: nobody's answer was sent in vain.
    assert ledger[Outcome.ANSWERED] == 0
    assert ledger[Outcome.EXPIRED] + ledger[Outcome.CANCELLED] > 20


def test_a_mix_has_a_line_for_each_share(server: Server) -> None:
    told = load(server.address, "--concurrency", 2, "--mix", "weight=3", "--mix", "rows=8 priority=1")
    assert [share["share"] for share in told["shares"]] == ["weight=3", "rows=8 priority=1"]
    assert sum(share["answered"] for share in told["shares"]) == told["answered"]
    assert 1 < told["shares"][0]["answered"] / told["shares"][1]["answered"] < 9


def test_real_inputs_reach_the_model(server: Server, script: Script, tmp_path: Path) -> None:
    seen: list[list[int]] = []

    def note(batch: Any) -> None:
        seen.extend(batch.tensors()["x"].tolist())

    script.fail = note
    file = tmp_path / "inputs.arrow"
    feather.write_feather(pa.table({"x": pa.array([[1, 2, 3, 4], [5, 6, 7, 8]], pa.list_(pa.int32()))}), file)
    load(server.address, "--concurrency", 1, "--data", file)
    assert {tuple(row) for row in seen} == {(1, 2, 3, 4), (5, 6, 7, 8)}


def test_arrivals_of_a_file(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "arrivals.txt"
    file.write_text("\n".join(str(n / 100) for n in range(60)))
    told = json.loads(bench("--target", server.address, "--model", "m", "--arrivals", file, "--json").stdout)
    # All of them: what is replayed has no warm-up.
    assert (told["loop"], told["requests"], told["answered"], told["warm_up"]) == ("open", 60, 60, 0)


def test_over_a_socket_file(tmp_path: Path) -> None:
    add_model(tmp_path, "m", None, WIDE)
    server = Process(tmp_path, "native", "--grpc", f"unix:{tmp_path}/s.sock")
    try:
        assert load(f"unix:{tmp_path}/s.sock", "--concurrency", 2)["answered"] > 50
    finally:
        server.kill()


def test_a_server_that_goes_and_comes_back(tmp_path: Path) -> None:
    """The connection is opened again; what failed meanwhile is counted."""
    add_model(tmp_path, "m", None, WIDE)
    address = f"unix:{tmp_path}/s.sock"
    with ExitStack() as stack:
        with process(tmp_path, "native", "--grpc", address):
            running = stack.enter_context(loading(address, "--rate", 100))
            await_answers(address, 20)
        with process(tmp_path, "native", "--grpc", address):
            await_answers(address, 20)
        running.send_signal(signal.SIGINT)
        told = json.loads(running.communicate(timeout=PATIENCE)[0])
    assert set(told["errors"]) == {"UNAVAILABLE"}
    assert told["answered"] >= 40
    assert told["answered"] + sum(told["errors"].values()) == told["requests"]


def test_clients_that_give_up_by_the_hundred_keep_their_connection(server: Server, script: Script) -> None:
    """Answers cross requests that were given up; HTTP/2 libraries take that for an attack after a thousand."""
    script.execute_ns = 10_000_000
    told = load(server.address, "--rate", 900, "--deadline", "6ms", seconds=2, status=None)
    assert set(told["errors"]) == {"DEADLINE_EXCEEDED"}


def test_a_server_that_says_goodbye_is_not_hammered(tmp_path: Path) -> None:
    """One call is still open on a connection that takes no more; the other client must not spin meanwhile."""
    add_model(tmp_path, "m", None, slow(300_000).replace("dims: -1", "dims: 4"))
    with process(tmp_path, "native", "--drain-grace", "0") as server, loading(server.address, "--concurrency", 3) as running:
        await_answers(server.address, 1)
        server.terminate()
        server.end()
        running.send_signal(signal.SIGINT)
        told = json.loads(running.communicate(timeout=PATIENCE)[0])
    assert told["answered"] > 0
    assert set(told["errors"]) == {"UNAVAILABLE"}
    assert sum(told["errors"].values()) < 200


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href") and value]


@pytest.mark.parametrize("kind", ["native"])
def test_the_report_is_a_page_of_its_own(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "load.html"
    done = bench(
        "--target", server.address, "--model", "m", "--rate", 100, "--objective", "10ms", "--seconds", 1, "--report", file
    )
    assert f"written: {file}" in done.stderr
    page = Page()
    page.feed(file.read_text())
    assert page.tags.count("svg") == 4
    assert all(urllib.parse.urlsplit(link).scheme == "" and link.startswith("#") for link in page.links), page.links
    assert "goodput" in file.read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["load.html"]


@pytest.mark.parametrize("kind", ["native"])
def test_the_table_is_for_people(server: Server) -> None:
    told = bench("--target", server.address, "--model", "m", "--rate", 100, "--objective", "1s", "--seconds", 0.5).stdout
    assert re.search(r"m at \S+: [\d.,]+ requests/s offered \(poisson\), 0\.5 s after a warm-up of", told)
    assert re.search(r"answered/s +good/s +p50 +p90 +p99 +p99\.9 +max +errors", told)
    assert re.search(r"all +[\d.,]+ +[\d.,]+ +.* none", told)
    assert re.search(r"the generator itself: \d\.\d\d cores, requests sent .* late \(p99\)", told)


@pytest.mark.parametrize("kind", ["native"])
def test_somebody_who_looks_sees_how_it_goes(server: Server) -> None:
    """On a terminal there is a line that is kept up to date, and gone in the end; elsewhere there is none."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "headrace", "bench", "load", "--target", server.address, "--model", "m"]
    command += ["--concurrency", "2", "--seconds", "1.5", "--warm-up", "0.1", "--objective", "1s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}) as running:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(ours, 4096):
                seen += part
        os.close(ours)
        assert running.wait(PATIENCE) == 0
    assert re.search(rb"[\d,]+/s  p50 [\d.]+ \S+  p99 [\d.]+ \S+  good 100\.0%", seen), seen
    quiet = bench("--target", server.address, "--model", "m", "--concurrency", 2, "--seconds", 0.3)
    assert quiet.stderr == ""


@pytest.mark.parametrize("kind", ["native"])
def test_an_interrupt_ends_it_and_what_there_is_counts(server: Server) -> None:
    command = [sys.executable, "-m", "headrace", "bench", "load", "--target", server.address, "--model", "m"]
    command += ["--concurrency", "1", "--seconds", "60", "--warm-up", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        until(lambda: server.engine.ledger.drain() is None and server.ledger("m")[Outcome.ANSWERED] > 10)
        time.sleep(0.5)  # for a look
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, err
    told = json.loads(out)
    assert told["cut_short"]
    assert told["answered"] > 0
    assert told["seconds"] < 30


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "say either --concurrency N"),
        (("--concurrency", 1, "--rate", 5), "say either --concurrency N"),
        (("--arrivals", "bursts"), "say either --concurrency N"),
        (("--rate", 5, "--objective", "20"), "'20' is no duration"),
        (("--rate", 5, "--deadline", "0ms"), "'0ms' is no duration"),
        (("--rate", 0), "must be positive"),
        (("--rate", 5, "--seconds", 0), "must be positive"),
        (("--concurrency", 5, "--seconds", "nan"), "must be positive"),
        (("--concurrency", 5, "--seconds", "1e10"), "within reason"),
        (("--rate", 5, "--warm-up", "inf"), "within reason"),
        (("--rate", 5, "--deadline", "99999999999s"), "is no duration"),
        (("--rate", 5, "--seed", -1), "--seed"),
        (("--rate", 5, "--mix", "priority=-1"), "must not be negative"),
        (("--rate", 5, "--arrivals", "nonsense"), "neither poisson"),
        (("--rate", 5, "--mix", "what=3"), "is not understood"),
        (("--rate", 5, "--data", "x.arrow", "--shape", "x=3"), "leave out --mix and --shape"),
        (("--rate", 5, "--model", "other"), "NOT_FOUND: Request for unknown model: 'other'"),
        (("--rate", 5, "--target", "127.0.0.1:1"), "cannot connect to 127.0.0.1:1"),
        (("--rate", 5, "--target", "nonsense"), "nonsense"),
        (("--rate", 5, "--report", "/nowhere/load.html"), "/nowhere/load.html cannot be written"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    native_server: str, options: tuple[object, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal("bench", "load", "--target", native_server, "--model", "m", *options, capture=capsys)
    assert said.startswith("headrace: ")
    assert told in said
    assert said.count("\n") == 1


@pytest.fixture(scope="module")
def native_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("repository")
    with serving("native", repository, {"fake": fill(repository, {"m": (WIDE, Script())})}) as started:
        yield started.address
