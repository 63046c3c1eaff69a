"""What only a process of its own can do: end, hang, be killed, write to its output – and be started again."""

from __future__ import annotations

import gc
import logging
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from headrace.backends.node_process import ProcessRunner
from headrace.backends.nodes import Timeouts, open_node
from headrace.errors import BackendFailed, InvalidRepository
from headrace.node import Context
from tests.python.conftest import NODE, Open, children, descriptors, write_node
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

ONE = np.float32([[1, 2]])
ECHO = "return {'y': x}"


def values(runner: ProcessRunner, x: np.ndarray = ONE) -> list[list[float]]:
    result = runner.run({"x": x})
    assert isinstance(result, dict)
    return result["y"].tolist()  # type: ignore[union-attr]


@pytest.fixture
def process(opened: Open) -> Open:
    """As `opened`, in a process."""

    def start(text: str, **options: object) -> ProcessRunner:
        runner = opened(text, "process", **options)
        assert isinstance(runner, ProcessRunner)
        return runner

    return start


def kill(pid: int) -> None:
    """Kill a process, and return when it is dead."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([pidfd], [], [])
    os.close(pidfd)


@contextmanager
def fails(told: str) -> Iterator[None]:
    with pytest.raises(BackendFailed, match=told):
        yield


def shared() -> int:
    """How much memory is shared with workers; what other tests left is given back first."""
    gc.collect()
    return len([what for what in descriptors().values() if what.startswith("/memfd:headrace")])


def test_it_is_another_process(process: Open) -> None:
    runner = process("return {'y': np.float32([[os.getpid(), os.getppid(), os.getsid(0)]])}")
    pid, parent, session = values(runner)[0]
    assert (pid, parent) == (runner.pid, os.getpid())
    assert session == pid, "a Ctrl-C that is for the server does not reach it"
    assert str(runner.pid) in children()


def test_an_output_that_somebody_looks_at_stays_and_what_nobody_looks_at_is_used_again(process: Open) -> None:
    runner = process("return {'y': np.concatenate([x, x])}")
    x = np.zeros((1, 100_000), np.float32)
    kept, before = [], shared()
    for number in range(20):
        result = runner.run({"x": x + number})
        kept.append(result["y"][1:])  # a view is enough
        del result
    assert [view[0, 0] for view in kept] == list(range(20))
    at = {view.__array_interface__["data"][0] for view in kept}
    assert len(at) == 20
    memory = shared() - before
    kept.clear()
    for number in range(20):
        assert values(runner, x + number)[1][0] == number
    assert shared() - before < memory / 2
    again = {runner.run({"x": x})["y"].__array_interface__["data"][0] for _ in range(20)}
    assert len(again) <= 2


def test_outputs_outlive_the_runner(process: Open) -> None:
    runner = process(ECHO)
    result = runner.run({"x": ONE})
    runner.close()
    assert result["y"].tolist() == ONE.tolist()
    with fails("node 'n' is closed"):
        runner.run({"x": ONE})


def in_dev_shm(maps: str) -> list[str]:
    """What is mapped from there, but for ledgers of servers that other tests have run in this process."""
    return [line for line in maps.splitlines() if "/dev/shm" in line and os.environ["HEADRACE_RUNTIME_DIR"] not in line]


def test_nothing_of_it_is_in_dev_shm(process: Open) -> None:
    runner = process(ECHO)
    values(runner, np.zeros((1, 1_000_000), np.float32))
    for pid in (os.getpid(), runner.pid):
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "/memfd:headrace" in maps
        assert not in_dev_shm(maps)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9"),
        ("sys.exit(3)", "exit status 3"),
        ("os._exit(0)", "exit status 0"),
        ("import ctypes; ctypes.string_at(0)", "killed by signal 11"),
        # What it has started holds on to its socket and its output.
        ("os.fork() or time.sleep(600); os._exit(4)", "exit status 4"),
    ],
)
def test_a_process_that_ends_fails_its_batch_only(process: Open, body: str, told: str) -> None:
    runner = process(f"if x[0, 0] < 0:\n    {body}\n{ECHO}")
    assert values(runner) == ONE.tolist()
    first = runner.pid
    with fails(f"^the process of node 'n' ended: {told}; it is being restarted$"):
        runner.run({"x": -ONE})
    assert values(runner) == ONE.tolist()
    assert runner.pid not in (None, first)


def test_others_are_answered_when_one_kills_the_process(process: Open, tmp_path: Path) -> None:
    """Twelve wait while the first batch is on its way; the process is killed in the middle of it."""
    os.mkfifo(tmp_path / "began")
    runner = process(f"if x[0, 0] < 0:\n    open({str(tmp_path / 'began')!r}, 'w').close()\n    signal.pause()\n{ECHO}")
    first = runner.pid
    with ThreadPoolExecutor(12) as pool:
        bad = pool.submit(runner.run, {"x": -ONE})
        (tmp_path / "began").read_text()
        others = [pool.submit(values, runner, ONE + number) for number in range(11)]
        os.kill(runner.pid, signal.SIGKILL)
        with fails("^the process of node 'n' ended: killed by signal 9; it is being restarted$"):
            bad.result()
        assert [other.result() for other in others] == [(ONE + number).tolist() for number in range(11)]
    assert runner.pid != first


def test_one_that_dies_between_two_batches_fails_none(process: Open) -> None:
    runner = process(ECHO)
    for _ in range(3):
        first = runner.pid
        kill(first)
        assert values(runner) == ONE.tolist()
        assert runner.pid != first


def test_one_that_hangs_is_ended(process: Open) -> None:
    runner = process(f"if x[0, 0] < 0:\n    signal.pause()\n{ECHO}", timeouts=Timeouts(run=0.2))
    with fails(r"^the process of node 'n' did not answer within 0\.2 s and was ended; it is being restarted$"):
        runner.run({"x": -ONE})
    assert values(runner) == ONE.tolist()


def test_one_that_fails_again_and_again_is_not_waited_for(process: Open) -> None:
    runner = process("os._exit(7)")
    for _ in range(5):
        with fails("ended: exit status 7; it is being restarted"):
            runner.run({"x": ONE})
    # After the fifth, in 1.6 s.
    until(lambda: runner.pid is None)
    with fails(r"^the process of node 'n' is not running, it is started again in 1\.\d s; the last time it failed: ended: exit "):
        runner.run({"x": ONE})


def test_one_whose_files_have_changed_does_not_come_back_as_another(process: Open, tmp_path: Path) -> None:
    runner = process(ECHO)
    (tmp_path / "model.py").write_text(NODE.format(body="        return {'y': x}").replace('"y": "FP32', '"y": "FP64'))
    kill(runner.pid)
    with fails("the last time it failed: node 'n' declares other tensors than when it was loaded: its files have changed"):
        runner.run({"x": ONE})


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("os._exit(5)", "^the process of node 'n' ended: exit status 5, while it was loading$"),
        ("signal.pause()", r"^the process of node 'n' did not answer within 1 s and was ended, while it was loading$"),
    ],
)
def test_one_that_does_not_load(process: Open, body: str, told: str) -> None:
    text = NODE.format(body="        return {}").replace("self.context = context", body)
    with pytest.raises(InvalidRepository, match=told):
        process(text, timeouts=Timeouts(load=1 if "pause" in body else 60))


def test_parameters_that_cannot_be_sent(process: Open) -> None:
    with pytest.raises(InvalidRepository, match=r"node 'n': its parameters cannot be sent to its process \(Object of type set"):
        process(ECHO, parameters={"some": {1, 2}})


def test_what_it_prints_is_in_the_log(process: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace.node")
    runner = process(f"print('one\\ntwo'); os.write(2, b'\\xff three\\n' + b'4' * 10_000)\n{ECHO}")
    values(runner)
    runner.close()
    lines = [(record.getMessage(), vars(record)["node"]) for record in caplog.records if record.name == "headrace.node"]
    assert lines == [("one", "n"), ("two", "n"), ("\ufffd three", "n"), ("4" * 8192, "n"), ("4" * 1808, "n")]


def test_one_that_will_not_close_is_killed_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.backends.process._CLOSE_SECONDS", 0.1)
    monkeypatch.setattr("headrace.backends.process._GRACE_SECONDS", 0.1)
    text = NODE.format(body="        return {'y': np.float32([[self.child]])}").replace(
        "self.context = context",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); self.child = os.fork() or (signal.pause(), os._exit(0))",
    )
    write_node(tmp_path, text + "    def close(self): signal.pause()\n")
    runner = open_node("model.py:Model", Context("n", tmp_path), "process")
    assert isinstance(runner, ProcessRunner)
    pids = runner.pid, int(values(runner)[0][0])
    runner.close()
    until(lambda: not any(map(is_alive, pids)))


def is_alive(pid: int | None) -> bool:
    try:
        return re.search(r"^State:\s+[^ZX]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is not None
    except OSError:
        return False


SERVER = """
import sys, threading
from pathlib import Path
import numpy as np
from headrace.backends.nodes import open_node
from headrace.node import Context
runner = open_node("model.py:Model", Context("n", Path(sys.argv[1])), "process")
print(runner.pid, flush=True)
runner.run({"x": np.float32([[1]])})
"""


@pytest.mark.parametrize(
    "body", ["signal.pause()", "import ctypes; ctypes.PyDLL(None).sleep(600)"], ids=["waiting", "without a GIL"]
)
def test_it_does_not_outlive_its_server(tmp_path: Path, body: str) -> None:
    os.mkfifo(tmp_path / "began")
    write_node(tmp_path, f"open({str(tmp_path / 'began')!r}, 'w').close()\n{body}")
    with subprocess.Popen([sys.executable, "-c", SERVER, tmp_path], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pidfd = os.pidfd_open(int(server.stdout.readline()))
        (tmp_path / "began").read_text()
        server.kill()
        assert select.select([pidfd], [], [], 20)[0]
        os.close(pidfd)


def test_an_interrupt_in_the_terminal_is_for_the_server(tmp_path: Path) -> None:
    """The whole group of the server is interrupted, as a terminal does; its node still answers."""
    write_node(tmp_path, "return {'y': x * 2}")
    program = (
        SERVER.replace(
            "runner.run(",
            dedent("""
        import signal, threading
        interrupted = threading.Event()
        signal.signal(signal.SIGINT, lambda *_: interrupted.set())
        print("ready", flush=True)
        interrupted.wait()
        print(runner.run("""),
            1,
        ).rstrip()
        + '["y"].tolist(), flush=True)\nrunner.close()\n'
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert server.stdout.readline() == "ready\n"
        os.killpg(server.pid, signal.SIGINT)
        assert server.stdout.readline() == "[[2.0]]\n"
        assert server.wait() == 0


def test_onnxruntime_is_not_needed(tmp_path: Path) -> None:
    program = "import sys, headrace.backends.python, headrace.backends.worker; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("set_to", "is_seen"), [(None, "glibc.malloc.hugetlb=1"), ("glibc.malloc.check=0", "glibc.malloc.check=0")]
)
def test_a_process_asks_for_huge_pages_unless_the_server_says_otherwise(
    process: Open, monkeypatch: pytest.MonkeyPatch, set_to: str | None, is_seen: str
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if set_to is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", set_to)
    runner = process("import os\nreturn {'y': np.float32([[*os.environ['GLIBC_TUNABLES'].encode()]])}")
    assert bytes(map(int, values(runner)[0])).decode() == is_seen
