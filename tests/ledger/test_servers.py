"""From a client's call to an answer in SQL, with real servers, side processes, and what kills them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from headrace.cli.app import app
from headrace.ledger.home import neighbours
from headrace.ledger.records import STAGES
from headrace.ledger.side import NICENESS
from headrace.protocol.origin import pseudonym
from tests.ledger.servers import Gate, Served, ask, counts, one, served
from tests.transport.serving import TRANSPORTS
from tests.waiting import until

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ENDS = {"answered": 3, "refused": 1, "invalid": 2, "expired": 1, "cancelled": 1}


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    gate.add_model(tmp_path / "models")
    yield gate
    gate.end()


def end_in_every_way(server: Served, gate: Gate) -> None:
    """Requests: see `ENDS`."""
    done: list[object] = []

    def ended(result: object, error: object) -> None:
        done.append(error)

    gate.close()
    server.client.async_infer("m", [one()], ended)
    gate.wait_for_somebody()
    gone = server.client.async_infer("m", [one()], ended)
    late = server.client.async_infer("m", [one()], ended, timeout=2_000_000)
    until(lambda: server.metric('headrace_queue_requests{model="m",version="1"}') == 2, 30)
    with pytest.raises(InferenceServerException, match="Exceeds maximum queue size"):
        server.client.infer("m", [one()])
    gone.cancel()
    until(lambda: len(done) == 2, 30)
    del late
    gate.open()
    until(lambda: len(done) == 3, 30)
    headers = {"traceparent": PARENT, "x-headrace-client": "till-4"}
    server.client.infer("m", [one()], headers=headers)
    with pytest.raises(InferenceServerException, match="unexpected inference input"):
        server.client.infer("m", [one("z")], headers={"traceparent": "00-nonsense"})
    server.post("m", X_Headrace_Client="till-5", traceparent=PARENT)
    server.post("nobody", X_Headrace_Client="till-6", traceparent="nonsense")


def cli(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    app([str(word) for word in words], standalone_mode=False)
    return capsys.readouterr().out


@pytest.mark.timeout(120)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_end_is_told_while_it_runs_and_afterwards(
    tmp_path: Path, gate: Gate, transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "ledger"
    with served(tmp_path / "models", "--ledger", kept, transport=transport) as server:
        end_in_every_way(server, gate)
        me = server.neighbour
        until(lambda: sum(counts(None, me).values()) == sum(ENDS.values()), 30)
        assert counts(None, me) == ENDS, "in the rings"
        assert server.side
        assert counts(kept, me) == ENDS, "in segments and rings together, each once"

        (traced,) = ask(f"SELECT * EXCLUDE (digest) FROM stages WHERE client = '{pseudonym('till-4'):016x}'", kept, me)
        names = [row[0] for row in ask("DESCRIBE SELECT * EXCLUDE (digest) FROM stages", kept, me)]
        row = dict(zip(names, traced, strict=True))
        assert (row["trace_id"], row["parent_span"], row["trace_flags"]) == (PARENT[3:35], PARENT[36:52], 1)
        assert (row["model"], row["version"], row["outcome"], row["rows"]) == ("m", 1, "answered", 1)
        parts = [row[f"{stage}_us"] for stage in ("receive", "queue", "gather", "execute", "scatter", "send")]
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(row["request_us"]), "no time is dark"
        whole = " + ".join(f"coalesce({stage}_us, 0)" for stage in STAGES)
        dark = f"SELECT outcome FROM stages WHERE abs({whole} - request_us) > 0.001"
        assert ask(dark, kept, me) == [], "of those that did not get far, either"
        assert ask("SELECT gather_us, queue_us > 1e6 FROM stages WHERE outcome = 'expired'", kept, me) == [(None, True)]
        malformed = "SELECT model, outcome FROM requests WHERE malformed_trace ORDER BY ALL"
        assert ask(malformed, kept, me) == [("m", "invalid"), (None, "invalid")]
        who = dict(ask("SELECT client, count(*) FROM requests GROUP BY ALL", kept, me))
        tills = {f"{pseudonym(f'till-{n}'):016x}": 1 for n in (4, 5, 6)}
        assert who == {**tills, f"{pseudonym('127.0.0.1'):016x}": sum(ENDS.values()) - 3}
        assert ask("SELECT count(*) FROM requests WHERE trace_id IS NOT NULL", kept, me) == [(2,)]
        together = "SELECT count(*) FROM requests r JOIN batches b ON r.batch = b.number AND r.model = b.model"
        until(lambda: ask(together, kept, me) == [(3,)], 30)
        assert server.metric('headrace_malformed_traces_total{model="m",version="1"}') == 1
        assert server.metric("headrace_gil_wait_seconds_count") > 0
        assert server.metric("headrace_side_process_up") == 1
        assert server.metric("headrace_ledger_overrun_total") == 0

        lines = cli(capsys, "ledger", "tail", "--of", server.process.pid, "-n", 3).splitlines()
        assert [line.split()[1] for line in lines] == ["outcome", "invalid", "answered", "invalid"]
        assert "execute" in lines[2]
        told = cli(capsys, "ledger", "query", "SELECT outcome, count(*) AS n FROM requests GROUP BY ALL", "--format", "json")
        assert {row["outcome"]: row["n"] for row in map(json.loads, told.splitlines())} == ENDS
        assert server.stop() is not None
        assert server.process.returncode == 0
    assert neighbours() == []
    assert counts(kept) == ENDS, "in segments alone"
    told = cli(capsys, "ledger", "query", "SELECT outcome, 1.5 AS x FROM requests WHERE outcome = 'refused'", "--ledger", kept)
    assert [line.split() for line in told.splitlines() if "─" not in line] == [["outcome", "x"], ["refused", "1.5"]]
    told = cli(capsys, "ledger", "query", "SELECT 1 AS a, 'b,c' AS d", "--ledger", kept, "--format", "csv")
    assert told == 'a,d\n1,"b,c"\n'


@pytest.mark.timeout(120)
def test_a_side_process_that_is_killed_costs_nothing_and_writes_nothing_twice(tmp_path: Path, gate: Gate) -> None:
    kept = tmp_path / "ledger"
    with served(tmp_path / "models", "--ledger", kept) as server:
        killed = server.side
        assert os.getsid(killed) == os.getsid(server.process.pid), "or it would not stand back: see decision 0017"
        assert os.getpgid(killed) == killed, "Ctrl-C is the server's"
        nice = min(19, os.getpriority(os.PRIO_PROCESS, server.process.pid) + NICENESS)
        assert (os.getpriority(os.PRIO_PROCESS, killed), os.sched_getscheduler(killed)) == (nice, os.SCHED_BATCH)
        server.infer(5)
        me = server.neighbour
        # A client has its answer a moment before the record is written.
        until(lambda: counts(kept, me) == {"answered": 5}, 30)
        assert list(kept.glob("requests-*")), "asking has it write what it holds"
        os.kill(killed, signal.SIGKILL)
        server.infer(5)
        until(lambda: me.tally.pid not in (0, killed), 30)
        server.infer(5)
        until(lambda: counts(kept, me) == {"answered": 15}, 30)
        told = server.stop()
        assert server.process.returncode == 0
        assert "was ended by SIGKILL; it is started again" in told
    assert counts(kept) == {"answered": 15}
    assert ask("SELECT count(*), count(DISTINCT number) FROM batches", kept) == [(15, 15)]


@pytest.mark.timeout(120)
def test_a_server_that_ends_before_its_side_process_is_up_loses_nothing(tmp_path: Path, gate: Gate) -> None:
    kept = tmp_path / "ledger"
    with served(tmp_path / "models", "--ledger", kept) as server:
        server.infer(3)
        server.stop()
    assert counts(kept) == {"answered": 3}


@pytest.mark.timeout(120)
def test_a_server_that_is_killed_leaves_what_it_had_answered(tmp_path: Path, gate: Gate, runtime_directory: Path) -> None:
    kept = tmp_path / "ledger"
    with served(tmp_path / "models", "--ledger", kept) as server:
        side = server.side
        server.infer(7)
        until(lambda: counts(None, server.neighbour) == {"answered": 7}, 30)
        server.process.kill()
        # The side process has the other end of this pipe: it has ended when the pipe has.
        told = server.process.communicate(timeout=50)[1]
        assert "ended without a word" in told
        until(lambda: not Path(f"/proc/{side}").exists(), 30)
    assert counts(kept) == {"answered": 7}
    assert list(runtime_directory.iterdir()) == []


@pytest.mark.timeout(120)
def test_tail_follows_until_the_server_ends_and_a_server_may_be_observed_later(tmp_path: Path, gate: Gate) -> None:
    with served(tmp_path / "models") as server:
        server.infer(2)
        until(lambda: counts(None, server.neighbour) == {"answered": 2}, 30)
        command = [sys.executable, "-m", "headrace"]
        follower = subprocess.Popen([*command, "ledger", "tail", "-f", "-n", "1"], stdout=subprocess.PIPE, text=True)
        assert follower.stdout is not None
        assert "received" in follower.stdout.readline()
        assert "answered" in follower.stdout.readline()
        kept = tmp_path / "ledger"
        observer = subprocess.Popen([*command, "observe", "--of", str(server.neighbour.path), "--ledger", str(kept)])
        assert server.side == observer.pid
        second = subprocess.run([*command, "observe", "--ledger", str(kept)], capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert f"has a side process already, {observer.pid}" in second.stderr
        server.infer(2)
        server.stop()
        assert observer.wait(timeout=50) == 0
        rest = follower.communicate(timeout=50)[0]
    assert rest.count("answered") == 2
    assert counts(kept) == {"answered": 4}


@pytest.mark.timeout(120)
def test_without_shared_memory_it_serves_and_says_so(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_RUNTIME_DIR", str(tmp_path / "nowhere"))
    with served(tmp_path / "models") as server:
        server.infer()
        assert server.metric('headrace_requests_total{model="m",outcome="answered",version="1"}') == 1
        assert "nobody else can read the ledger" in server.stop()
    command = [
        sys.executable,
        "-m",
        "headrace",
        "serve",
        "--repository",
        str(tmp_path / "models"),
        "--ledger",
        str(tmp_path / "l"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("headrace: --ledger needs shared memory, and there is none for it here"), done.stderr


def test_a_directory_that_cannot_be_written_to_is_told_at_the_start(tmp_path: Path, gate: Gate) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "headrace", "serve", "--repository", str(tmp_path / "models"), "--ledger"]
    done = subprocess.run([*command, str(tmp_path / "file" / "l")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"headrace: cannot keep a ledger in {tmp_path}/file/l: Not a directory\n")
