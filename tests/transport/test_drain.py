"""SIGTERM in the middle of traffic: what was accepted is answered, what was not is told so, and the accounts agree."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.build_models import add_model
from tests.transport.serving import ECHO, PATIENCE, tensor

CLIENTS = 16
ALONE = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
ANSWERED = "answered"
UNAVAILABLE = "StatusCode.UNAVAILABLE"


def slow(microseconds: int) -> str:
    """The echo, which takes this long for each batch."""
    return ECHO + f'parameters {{ key: "execute_us" value {{ string_value: "{microseconds}" }} }}'


class Process:
    """`headrace serve`, from ready to gone."""

    def __init__(self, repository: Path, transport: str, *options: str) -> None:
        command = [sys.executable, "-m", "headrace", "serve", "--repository", str(repository), "--grpc", "127.0.0.1:0"]
        command += ["--http", "none", "--metrics", "none"]
        command += ["--transport", transport, "--log-format", "json", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.ready = self._process.stdout.readline()
        self.address = self.ready.partition("grpc=")[2].split(" ")[0]

    @property
    def pid(self) -> int:
        return self._process.pid

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, dict[str, dict[str, Any]]]:
        """Wait for the end: the exit code, and what was logged, by message."""
        _, logged = self._process.communicate(timeout=PATIENCE)
        lines = [json.loads(line) for line in logged.splitlines()]
        return self._process.returncode, {line["message"]: line for line in lines}

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def process(repository: Path, transport: str, *options: str) -> Iterator[Process]:
    started = Process(repository, transport, *options)
    try:
        yield started
    finally:
        started.kill()


class Traffic:
    """Clients that ask without a pause, each over its own connection, until they have been refused so often."""

    def __init__(self, address: str, refusals: int) -> None:
        self._address, self._refusals = address, refusals
        self._lock = threading.Lock()
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(client,)) for client in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def wait_answered(self) -> None:
        assert self._enough.wait(PATIENCE)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _ask(self, client: int) -> None:
        refused = number = 0
        with triton.InferenceServerClient(self._address, channel_args=ALONE) as connection:
            while refused < self._refusals:
                number += 1
                value = 100_000 * client + number
                try:
                    result = connection.infer("m", [tensor("x", [[value]])], client_timeout=PATIENCE)
                except InferenceServerException as error:
                    refused += 1
                    self._count(error.status(), error.message() if error.status() != UNAVAILABLE else "")
                else:
                    right = result.as_numpy("y").tolist() == [[value]]
                    self._count(ANSWERED, "" if right else f"{value}: {result.as_numpy('y')}")

    def _count(self, end: str, wrong: str) -> None:
        with self._lock:
            self.ends[end] += 1
            if wrong:
                self.wrong.append(wrong)
            if self.ends[ANSWERED] >= 10 * CLIENTS:
                self._enough.set()


@pytest.mark.parametrize("grace", ["0", "0.2"])
def test_sigterm_under_load_loses_nothing(transport: str, tmp_path: Path, grace: str) -> None:
    add_model(tmp_path, "m", None, slow(2000))
    with process(tmp_path, transport, "--drain-grace", grace) as server:
        traffic = Traffic(server.address, refusals=5)
        traffic.wait_answered()
        server.terminate()
        code, logged = server.end()
        traffic.join()
    assert traffic.wrong == []
    assert set(traffic.ends) == {ANSWERED, UNAVAILABLE}
    assert code == 0
    drained = logged["drained"]
    assert drained["pushed"] == drained["answered"] == traffic.ends[ANSWERED]
    assert (drained["failed"], drained["expired"], drained["cancelled"]) == (0, 0, 0)
    # Those that found no server any more were refused by nobody.
    assert drained["refused"] <= traffic.ends[UNAVAILABLE] == 5 * CLIENTS


def test_what_is_queued_is_answered_before_the_end(transport: str, tmp_path: Path) -> None:
    """Batches of 300 ms each are on their way when the signal comes."""
    add_model(tmp_path, "m", None, slow(300_000))
    with process(tmp_path, transport, "--drain-grace", "0") as server:
        done: Counter[bool] = Counter()
        finished = threading.Semaphore(0)

        def finish(result: Any, error: Any) -> None:
            done[error is None] += 1
            finished.release()

        with triton.InferenceServerClient(server.address, channel_args=ALONE) as client:
            for value in range(20):
                client.async_infer("m", [tensor("x", [[value]])], finish)
            # They left together, 300 ms before the first of them is answered: all have been pushed then.
            assert finished.acquire(timeout=PATIENCE)
            server.terminate()
            assert all(finished.acquire(timeout=PATIENCE) for _ in range(19))
        code, logged = server.end()
    assert (code, done) == (0, Counter({True: 20}))
    assert (logged["drained"]["pushed"], logged["drained"]["answered"]) == (20, 20)


def test_an_idle_dialogue_does_not_hold_up_the_end(transport: str, tmp_path: Path) -> None:
    """The call stays open for as long as its client likes, but not for longer than the server runs."""
    add_model(tmp_path, "m", None, ECHO)
    asking = threading.Event()

    def questions() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        asking.wait()

    with process(tmp_path, transport, "--drain-grace", "0") as server, grpc.insecure_channel(server.address, ALONE) as channel:
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(questions())
        assert next(answers).list_services_response.service
        server.terminate()
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)
        asking.set()
        code, _ = server.end()
    assert code == 0
    # It was told, not cut off when time was up.
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in (ended.value.details() or "")
