"""A Triton that fails, refuses, breaks off, is silent or late: what clients are told, and that nothing runs twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from headrace.backends.triton.channel import Unreachable
from headrace.errors import BackendDown, DeadlineExpired, ModelError
from headrace.ledger.records import Outcome
from headrace.request import Head, Request
from tests.transport.serving import PATIENCE, Asked, Server, tensor
from tests.triton.far import Triton
from tests.triton.here import Here, named_memory, rows, session_of, wait_until_gone
from tests.triton.proxy import Proxy
from tests.waiting import until

WIDTH = 65536


def ask(server: Server, first: float, **options: Any) -> Any:
    return Asked(server, "doubles", [tensor("x", rows(first), "FP32")], **options)


def refusal(asked: Asked) -> tuple[str, str]:
    """Code and words of a request that failed."""
    with pytest.raises(InferenceServerException) as caught:
        asked.result()
    return str(caught.value.status()), caught.value.message()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("INVALID_ARG", grpc.StatusCode.INVALID_ARGUMENT),
        ("NOT_FOUND", grpc.StatusCode.NOT_FOUND),
        ("UNAVAILABLE", grpc.StatusCode.UNAVAILABLE),
        ("ALREADY_EXISTS", grpc.StatusCode.ALREADY_EXISTS),
        ("UNSUPPORTED", grpc.StatusCode.UNIMPLEMENTED),
        ("INTERNAL", grpc.StatusCode.INTERNAL),
        ("UNKNOWN", grpc.StatusCode.UNKNOWN),
    ],
)
def test_its_errors_are_those_of_the_client(here: Here, far: Triton, transport: str, code: str, status: grpc.StatusCode) -> None:
    here.add("fails", far.url)
    server = here.serve(transport)
    asked = Asked(server, "fails", [tensor("code", [[code]], "BYTES")])
    assert refusal(asked) == (str(status), f"it is {code}")
    server.wait_settled("fails")
    assert server.ledger("fails")[Outcome.FAILED] == 1
    assert Asked(server, "fails", [tensor("code", [[""]], "BYTES")]).result().as_numpy("y") is not None


def test_it_goes_and_comes_back(here: Here, far: Triton, transport: str) -> None:
    """Every request is answered once, and what was answered well has run once."""
    here.add("doubles", far.url, connect_timeout_s="1")
    server = here.serve(transport)
    session = session_of(server.engine, "doubles")
    good = [float(ask(server, n).result().as_numpy("y")[0, 0]) / 2 for n in range(3)]
    far.kill()
    told = {refusal(ask(server, 100 + n))[1] for n in range(20)}
    assert all(f"no Triton answers at {far.url}" in each or "127.0.0.1" in each for each in told), told
    until(lambda: not session.is_healthy)
    server.wait_settled("doubles")
    refused = server.ledger("doubles")[Outcome.REFUSED]
    assert refusal(ask(server, 200))[0] == str(grpc.StatusCode.UNAVAILABLE)
    server.wait_settled("doubles")
    assert server.ledger("doubles")[Outcome.REFUSED] == refused + 1
    far.start()
    until(lambda: session.is_healthy)
    good += [float(ask(server, n).result().as_numpy("y")[0, 0]) / 2 for n in range(3, 6)]
    assert good == [0, 1, 2, 3, 4, 5]
    ran = [first for first in far.rows() if first]
    assert sorted(ran) == [1, 2, 3, 4, 5]
    server.wait_settled("doubles")
    until(lambda: not session.is_watched)


def test_it_is_killed_in_the_middle_of_a_load(here: Here, far: Triton, transport: str) -> None:
    """Everybody is answered, well or with an error; nothing has run twice, and what was answered well has run."""
    here.add("doubles", far.url, config="instance_group { count: 2 kind: KIND_CPU }", connect_timeout_s="1")
    server = here.serve(transport)
    far.forget_runs()
    asked = [ask(server, n) for n in range(300)]
    until(lambda: len(far.rows()) >= 20)
    far.kill()
    asked += [ask(server, n) for n in range(300, 400)]
    good: list[float] = []
    for n, each in enumerate(asked):
        try:
            assert float(each.result().as_numpy("y")[0, 0]) == 2 * n
            good.append(n)
        except InferenceServerException as error:
            assert error.status() == str(grpc.StatusCode.UNAVAILABLE), error
    ran = far.rows()
    assert len(ran) == len(set(ran))
    assert set(good) <= set(ran)
    server.wait_settled("doubles")
    ended = server.ledger("doubles")
    assert sum(ended.values()) == 400
    assert ended[Outcome.ANSWERED] == len(good)


def test_a_request_waits_for_a_connection_that_was_refused(here: Here, far: Triton, transport: str) -> None:
    """It is sent when there is one, once."""
    here.add("doubles", far.url, connect_timeout_s=PATIENCE)
    server = here.serve(transport)
    far.forget_runs()
    far.kill()
    # Whoever meets the end of the old connection is told; what it sent may have run.
    wait_until_gone(session_of(server.engine, "doubles"))
    asked = ask(server, 7)
    until(lambda: server.waiting("doubles") == 0)
    far.start()
    assert asked.result().as_numpy("y")[0, 0] == 14
    assert [first for first in far.rows() if first == 7] == [7]


@pytest.mark.usefixtures("transport")
def test_who_does_not_ask_does_not_notice(here: Here, far: Triton) -> None:
    """The server is restarted between two requests: the connection of the first is not used for the second."""
    here.add("doubles", far.url)
    engine = here.engine()
    far.forget_runs()
    engine.infer("doubles", {"x": rows(1)})
    far.kill()
    wait_until_gone(session_of(engine, "doubles"))
    far.start()
    assert (engine.infer("doubles", {"x": rows(2)})["y"] == 2 * rows(2)).all()
    assert far.rows() == [1, 2]


def test_a_connection_that_breaks_off_is_no_reason_to_run_twice(here: Here, far: Triton, proxy: Proxy, transport: str) -> None:
    here.add("doubles", proxy.url)
    server = here.serve(transport)
    far.forget_runs()
    proxy.hold()
    asked = ask(server, 5)
    until(lambda: far.rows() == [5])
    proxy.cut()
    assert refusal(asked)[0] == str(grpc.StatusCode.UNAVAILABLE)
    assert ask(server, 6).result().as_numpy("y")[0, 0] == 12
    assert far.rows() == [5, 6]


def test_silence_ends_with_the_run_timeout_and_then_nothing_is_sent(
    here: Here, far: Triton, proxy: Proxy, transport: str
) -> None:
    here.add("doubles", proxy.url, connect_timeout_s="1", run_timeout_s="0.5")
    server = here.serve(transport)
    session = session_of(server.engine, "doubles")
    proxy.hold()
    code, words = refusal(ask(server, 1))
    assert code == str(grpc.StatusCode.UNAVAILABLE)
    assert words.endswith("has not answered within run_timeout_s, 0.5 s")
    until(lambda: not session.is_healthy)
    far.forget_runs()
    code, words = refusal(ask(server, 2))
    assert code == str(grpc.StatusCode.UNAVAILABLE)
    assert "model 'doubles' cannot run now: no Triton answers" in words
    proxy.let()
    until(lambda: session.is_healthy)
    assert wait_for_answer(server, 3) == 6
    assert 2 not in far.rows()


def wait_for_answer(server: Server, first: float) -> float:
    """Ask until there is an answer: on a busy machine, 0.5 s may be too short more than once."""
    found: list[float] = []

    def is_answered() -> bool:
        try:
            found.append(float(ask(server, first).result().as_numpy("y")[0, 0]))
        except InferenceServerException:
            return False
        return True

    until(is_answered)
    return found[-1]


def expired_there(server: Server, far: Triton) -> float:
    """A request that ran there, and whose deadline passed before its answer came. On a busy machine, it may not get that far."""
    for attempt in range(8):
        first = 1000.0 + attempt
        assert refusal(ask(server, first, client_timeout=0.3 * 2**attempt))[0] == str(grpc.StatusCode.DEADLINE_EXCEEDED)
        if first in far.rows():
            return first
    raise AssertionError("no request got there in time")


def test_a_late_answer_is_dropped(here: Here, far: Triton, proxy: Proxy, transport: str) -> None:
    here.add("doubles", proxy.url)
    server = here.serve(transport)
    session = session_of(server.engine, "doubles")
    proxy.hold()
    late = expired_there(server, far)
    proxy.let()
    until(lambda: session.is_healthy)
    assert [ask(server, n).result().as_numpy("y")[0, 0] for n in (2, 3)] == [4, 6]
    ran = [first for first in far.rows() if first]
    assert ran[-3:] == [late, 2, 3]
    assert len(ran) == len(set(ran))
    server.wait_settled("doubles")
    until(lambda: not session.is_watched)


@pytest.mark.usefixtures("transport")
def test_memory_of_a_late_answer_is_not_used_again(here: Here, far: Triton, proxy: Proxy) -> None:
    here.add("wide", proxy.url)
    engine = here.engine()
    x = np.ones((1, WIDTH), np.float32)
    engine.infer("wide", {"x": x})
    (first,) = far.regions()
    session: Any = session_of(engine, "wide")
    proxy.hold()
    for attempt in range(8):  # on a busy machine, it may not be sent in time
        with pytest.raises(DeadlineExpired):
            engine.infer("wide", {"x": x}, timeout=0.3 * 2**attempt)
        until(lambda: session._client._free)
        if session._client._free[-1].region is None:
            break
    proxy.let()
    until(lambda: session.is_healthy and not session.is_watched)
    assert (engine.infer("wide", {"x": 2 * x})["y"] == 3).all()
    (second,) = far.regions()
    assert second != first


@pytest.mark.usefixtures("transport")
def test_memory_that_a_request_uses_is_forgotten_after_it(here: Here, far: Triton) -> None:
    """Triton refuses to forget it until then, and does not do it by itself later."""
    here.add("held", far.url, connect_timeout_s="5")
    engine = here.engine()
    session = session_of(engine, "held")
    far.forget_runs()
    with far.holding() as let:
        for attempt in range(8):  # on a busy machine, it may not get there in time
            with pytest.raises(DeadlineExpired):
                engine.infer("held", {"x": np.ones((1, WIDTH), np.float32)}, timeout=0.3 * 2**attempt)
            until(lambda: not session.is_watched)
            if far.runs("held"):
                break
        assert far.runs("held")
        assert far.regions()
        let()
        here.stack.close()
    assert far.regions() == []


@pytest.mark.usefixtures("transport")
def test_memory_of_a_request_that_outlasts_its_session_is_forgotten_with_it(here: Here, far: Triton) -> None:
    here.add("held", far.url, connect_timeout_s="5")
    session = session_of(here.engine(), "held")
    far.forget_runs()
    with far.holding() as let, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(session.run, _Batch(np.ones((1, WIDTH), np.float32), None))
        until(lambda: bool(far.runs("held")))
        session.close()
        let()
        assert (np.asarray(asked.result()["y"]) == 2).all()
    assert far.regions() == []


def test_a_request_whose_time_is_over_is_not_sent(here: Here, far: Triton) -> None:
    here.add("doubles", far.url)
    session = session_of(here.engine(), "doubles")
    far.forget_runs()
    with pytest.raises(DeadlineExpired):
        session.run(_Batch(rows(1), deadline=1))
    assert far.rows() == []


def test_a_batch_that_went_in_part_is_not_said_to_be_unsent(here: Here, far: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests have other parameters each, and the server is gone after the first."""
    here.add("doubles", far.url)
    session: Any = session_of(here.engine(), "doubles")
    far.forget_runs()
    infer, left = session._client.infer, [True]

    def once(*arguments: Any) -> Any:
        if not left:
            raise Unreachable("gone")
        left.clear()
        return infer(*arguments)

    monkeypatch.setattr(session._client, "infer", once)
    batch = _Batch(rows(1, 2), None)
    batch.offsets = [0, 1, 2]
    batch.heads = [Head("doubles", parameters={"k": n}) for n in range(2)]
    with pytest.raises(ModelError, match="gone"):
        session.run(batch)
    assert far.rows() == [1]


class _Batch:
    """A batch of one request."""

    def __init__(self, x: np.ndarray[Any, Any], deadline: int | None) -> None:
        self.rows, self.offsets = len(x), [0, len(x)]
        self.requests, self.heads = [Request("doubles", {"x": x}, deadline=deadline)], [Head("doubles", deadline=deadline)]

    def tensors(self) -> Any:
        return self.requests[0].inputs

    def wanted(self) -> tuple[str, ...]:
        return ("y",)


@pytest.mark.usefixtures("transport")
def test_a_server_that_stops_answering_altogether(here: Here, far: Triton) -> None:
    """As a machine does that has no memory left: connections stay, nothing comes."""
    here.add("doubles", far.url, connect_timeout_s="1", run_timeout_s="0.5")
    engine = here.engine()
    session = session_of(engine, "doubles")
    far.stop_answering()
    try:
        with pytest.raises(ModelError, match="has not answered within run_timeout_s"):
            engine.infer("doubles", {"x": rows(1)})
        until(lambda: not session.is_healthy)
        with pytest.raises(BackendDown, match="no Triton answers"):
            engine.infer("doubles", {"x": rows(2)})
    finally:
        far.answer_again()
    until(lambda: session.is_healthy)
    assert 2 not in far.rows()


@pytest.mark.usefixtures("transport")
def test_closing_does_not_wait_for_a_server_that_is_gone(here: Here, far: Triton) -> None:
    here.add("wide", far.url, connect_timeout_s="1")
    engine = here.engine()
    engine.infer("wide", {"x": np.ones((1, WIDTH), np.float32)})
    far.kill()
    with pytest.raises((BackendDown, ModelError)):
        engine.infer("wide", {"x": np.ones((1, WIDTH), np.float32)})
    here.stack.close()
    assert named_memory() == set()


def test_what_is_left_of_a_server_that_was_killed(here: Here, far: Triton, transport: str) -> None:
    """Nothing in /dev/shm; a mapping at the Triton, which the next one lets it forget."""
    here.add("wide", far.url)
    command = [sys.executable, "-m", "headrace", "serve", f"--repository={here.repository}", f"--transport={transport}"]
    near = subprocess.Popen(
        [*command, "--grpc=127.0.0.1:0", "--http=none", "--metrics=none"], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        assert near.stdout is not None
        address = near.stdout.readline().split("grpc=")[1].split()[0]
        with triton.InferenceServerClient(address) as client:
            client.infer("wide", [tensor("x", np.ones((1, WIDTH)), "FP32")])
    finally:
        near.send_signal(signal.SIGKILL)
        near.communicate()
    assert len(far.regions()) == 1
    assert named_memory(near.pid) == set()
    here.engine().infer("wide", {"x": np.ones((1, WIDTH), np.float32)})
    assert len(far.regions()) == 1
    here.stack.close()
    assert far.regions() == []
